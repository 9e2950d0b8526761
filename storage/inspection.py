"""One look at PostgreSQL itself: whether it takes writes, how it is set, and what this role may do."""

import dataclasses
import re
import time
from typing import Final

import asyncpg

from domain.failures import DependencyDown
from settings import DatabaseSettings
from storage import migrate
from storage.database import AWAY

_PRIVILEGES: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What was seen.

    Attributes:
        seconds: How long it took to connect and to be answered.
        version: Such as `18.4`.
        takes_writes: Whether it is the primary, and not set to read only.
        synchronous_commit: The setting, as this role has it.
        connections: How many are open.
        most_connections: How many may be.
        clock_seconds: How far its clock is ahead of this machine's. It is off by `seconds` at most.
        role: Whom we are connected as.
        missing: Tables of the migrations that were applied and cannot be found.
        refused: What the role may not do with those that are there, by table.
    """

    seconds: float
    version: str
    takes_writes: bool
    synchronous_commit: str
    connections: int
    most_connections: int
    clock_seconds: float
    role: str
    missing: tuple[str, ...]
    refused: dict[str, tuple[str, ...]]


async def inspect(settings: DatabaseSettings) -> Inspection:
    """Looks once, over a connection of its own.

    Raises:
        DependencyDown: PostgreSQL is away, or does not let this role in.
    """
    began = time.monotonic()
    try:
        connection = await asyncpg.connect(
            settings.url.get_secret_value(), timeout=settings.connect_timeout, command_timeout=settings.command_timeout
        )
        try:
            return await _inspected(connection, began)
        finally:
            await connection.close(timeout=1)
    except (*AWAY, asyncpg.PostgresError) as error:
        text = str(error).splitlines()[0] if str(error) else ""
        raise DependencyDown("postgres", f"{type(error).__name__}{': ' if text else ''}{text}") from error


async def _inspected(connection: "asyncpg.Connection[asyncpg.Record]", began: float) -> Inspection:
    # The first round trip is about the time alone: what it takes is how far off the clocks' difference may be.
    sent = time.time()
    there = await connection.fetchval("select extract(epoch from clock_timestamp())::float8")
    received = time.time()
    took = time.monotonic() - began
    row = await connection.fetchrow(
        "select current_setting('server_version') as version, current_user as role,"
        " not pg_is_in_recovery() and current_setting('transaction_read_only') = 'off' as takes_writes,"
        " current_setting('synchronous_commit') as synchronous_commit,"
        " current_setting('max_connections')::int as most_connections,"
        " (select sum(numbackends)::int from pg_stat_database) as connections"  # all are seen by everybody
    )
    assert row is not None
    granted = {
        table["name"]: table["may"]
        for table in await connection.fetch(
            "select name, array(select each from unnest($2::text[]) as each"
            " where has_table_privilege(to_regclass(name), each)) as may"
            " from unnest($1::text[]) as name where to_regclass(name) is not null",
            sorted(tables()),
            _PRIVILEGES,
        )
    }
    return Inspection(
        seconds=took,
        version=row["version"].split()[0],
        takes_writes=row["takes_writes"],
        synchronous_commit=row["synchronous_commit"],
        connections=row["connections"],
        most_connections=row["most_connections"],
        clock_seconds=there - (sent + received) / 2,
        role=row["role"],
        missing=tuple(sorted(tables() - granted.keys())),
        refused={
            name: tuple(each for each in _PRIVILEGES if each not in may)
            for name, may in granted.items()
            if len(may) < len(_PRIVILEGES)
        },
    )


def tables() -> set[str]:
    """Returns the tables that the migrations of this version leave."""
    found: set[str] = set()
    for migration in migrate.all_migrations():
        sql = re.sub(r"--.*", "", migration.sql)
        found |= set(re.findall(r"create table (?:if not exists )?(\w+)", sql))
        found -= set(re.findall(r"drop table (?:if exists )?(\w+)", sql))
    return found
