"""Applies the plain SQL files of storage/migrations, in the order of their names."""

import dataclasses
import hashlib
import pathlib
from typing import Final

import asyncpg

import fault_points
from settings import DatabaseSettings

_FOLDER: Final = pathlib.Path(__file__).parent / "migrations"
_LOCK: Final = 0x6F72_6465_7266_6C6F  # any number that nobody else takes: "orderflo"


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


async def migrate(settings: DatabaseSettings) -> list[Migration]:
    """Applies what is pending, each file in a transaction of its own, one process at a time. Returns what it applied.

    Raises:
        MigrationError: see `pending`.
    """
    connection = await _connect(settings)
    try:
        await connection.execute("select pg_advisory_lock($1)", _LOCK)
        await connection.execute(
            "create table if not exists schema_migrations ("
            " name text primary key, checksum text not null, applied_time timestamptz not null default now())"
        )
        todo = await _pending(connection)
        for migration in todo:
            async with connection.transaction():
                await connection.execute("set local lock_timeout = '5s'")
                await connection.execute(migration.sql)
                await connection.execute(
                    "insert into schema_migrations (name, checksum) values ($1, $2)", migration.name, migration.checksum
                )
            fault_points.reached("W16")
        return todo
    finally:
        await connection.close(timeout=5)


async def _connect(settings: DatabaseSettings) -> "asyncpg.Connection[asyncpg.Record]":
    return await asyncpg.connect(settings.url.get_secret_value(), timeout=settings.connect_timeout, command_timeout=60)


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
