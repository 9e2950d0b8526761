"""Applies the plain SQL files of storage/migrations, in the order of their names."""

import asyncio
import dataclasses
import hashlib
import pathlib
from typing import Final

import asyncpg

import fault_points
from settings import DatabaseSettings

_FOLDER: Final = pathlib.Path(__file__).parent / "migrations"
_LOCK: Final = 0x6F72_6465_7266_6C6F  # any number that nobody else takes: "orderflo"
_LOCK_PAUSE_SECONDS: Final = 0.2
_MOST_TRIES: Final = 10
"""Of one file: it waits for those who are at work, and they for it."""

_STATEMENT_BY_STATEMENT: Final = "-- Statement by statement, in no transaction:"


class MigrationError(Exception):
    """The database's migrations and the files do not agree. The text says how."""


@dataclasses.dataclass(frozen=True)
class Migration:
    """One SQL file."""

    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def statements(self) -> list[str] | None:
        """Of a file that says so in its first line, what is run one by one. None: all in one transaction.

        Such a file may break off in the middle and is then run from its beginning: each statement may be repeated.
        """
        if not self.sql.startswith(_STATEMENT_BY_STATEMENT):
            return None
        return [statement.strip() for statement in self.sql.split(";\n") if statement.strip()]


def all_migrations() -> list[Migration]:
    """Returns the files in order."""
    return [Migration(path.name, path.read_text()) for path in sorted(_FOLDER.glob("*.sql"))]


async def pending(settings: DatabaseSettings) -> list[Migration]:
    """Returns what `migrate` would apply.

    Raises:
        MigrationError: an applied file has changed, or the database is ahead of this version.
    """
    connection = await _connect(settings)
    try:
        return await _pending(connection)
    finally:
        await connection.close(timeout=5)


async def require_none_pending(settings: DatabaseSettings) -> None:
    """Checks that the database is this version's.

    Raises:
        MigrationError: it is not.
    """
    if await pending(settings):
        raise MigrationError("migrations are pending: run `orderflow db migrate` first")


async def migrate(settings: DatabaseSettings) -> list[Migration]:
    """Applies what is pending, one process at a time. Returns what it applied.

    Each file runs in a transaction of its own, or statement by statement if it says so. What running processes keep it
    from is tried again.

    Raises:
        MigrationError: see `pending`.
    """
    connection = await _connect(settings, command_timeout=None)  # an index of a large table takes its time
    try:
        await _wait_for_turn(connection)
        await connection.execute(
            "create table if not exists schema_migrations ("
            " name text primary key, checksum text not null, applied_time timestamptz not null default now())"
        )
        todo = await _pending(connection)
        for migration in todo:
            await _applied(connection, migration)
            fault_points.reached("W16")
        return todo
    finally:
        await connection.close(timeout=5)


async def _wait_for_turn(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    # Who waits for a lock inside of PostgreSQL holds a snapshot, and an index that is built concurrently waits for all
    # snapshots: the two would wait for each other.
    while True:
        if await connection.fetchval("select pg_try_advisory_lock($1)", _LOCK):
            return
        await asyncio.sleep(_LOCK_PAUSE_SECONDS)


async def _applied(connection: "asyncpg.Connection[asyncpg.Record]", migration: Migration) -> None:
    # A file that locks several tables may meet a transaction that has locked them in another order, or is slow.
    for tries_left in reversed(range(_MOST_TRIES)):
        try:
            return await _apply(connection, migration)
        except (asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError):
            if not tries_left:
                raise
        await asyncio.sleep(_LOCK_PAUSE_SECONDS)  # lets those who waited for it go on
    return None


async def _apply(connection: "asyncpg.Connection[asyncpg.Record]", migration: Migration) -> None:
    for statement in migration.statements or ():
        # No limit: what such a file does waits for old transactions, and nobody waits for it meanwhile.
        await connection.execute(statement)
    async with connection.transaction():
        if migration.statements is None:
            await connection.execute("set local lock_timeout = '5s'")
            await connection.execute(migration.sql)
        await connection.execute(
            "insert into schema_migrations (name, checksum) values ($1, $2)", migration.name, migration.checksum
        )


async def _connect(
    settings: DatabaseSettings, *, command_timeout: float | None = 60
) -> "asyncpg.Connection[asyncpg.Record]":
    return await asyncpg.connect(
        settings.url.get_secret_value(), timeout=settings.connect_timeout, command_timeout=command_timeout
    )


async def _pending(connection: "asyncpg.Connection[asyncpg.Record]") -> list[Migration]:
    exists = await connection.fetchval("select to_regclass('schema_migrations') is not null")
    rows = await connection.fetch("select name, checksum from schema_migrations") if exists else []
    applied: dict[str, str] = {row["name"]: row["checksum"] for row in rows}
    files = all_migrations()
    ahead = sorted(set(applied) - {migration.name for migration in files})
    if ahead:
        raise MigrationError(f"the database has migrations that this version does not know: {', '.join(ahead)}")
    for migration in files:
        if applied.get(migration.name, migration.checksum) != migration.checksum:
            raise MigrationError(f"{migration.name} was changed after it was applied: add a new file instead")
    return [migration for migration in files if migration.name not in applied]
