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
_EXPANDS_ONLY: Final = "-- Expands only:"


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
    def expands_only(self) -> bool:
        """Whether a line of its own says so: code that does not know the file works with a database that has it."""
        return any(line.startswith(_EXPANDS_ONLY) for line in self.sql.splitlines())

    @property
    def statements(self) -> list[str] | None:
        """Of a file that says so in its first line, what is run one by one. None: all in one transaction.

        Such a file may break off in the middle and is then run from its beginning: each statement may be repeated.
        """
        if not self.sql.startswith(_STATEMENT_BY_STATEMENT):
            return None
        return [statement.strip() for statement in self.sql.split(";\n") if statement.strip()]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The files of this version beside what a database has.

    Attributes:
        pending: What `migrate` would apply.
        ahead: Names that the database has and this version does not know.
        in_the_way: Those of them that do not only expand: this version does not work with them.
        changed: Files that are not what was applied under their names.
    """

    pending: list[Migration]
    ahead: list[str]
    in_the_way: list[str]
    changed: list[str]

    def require_sound(self) -> None:
        """Checks that this version works with what was applied.

        Raises:
            MigrationError: a file has changed, or the database is ahead by one that does not only expand.
        """
        if self.in_the_way:
            raise MigrationError(
                f"the database has migrations that this version does not know: {', '.join(self.in_the_way)}"
            )
        for name in self.changed:
            raise MigrationError(f"{name} was changed after it was applied: add a new file instead")


def all_migrations() -> list[Migration]:
    """Returns the files in order."""
    return [Migration(path.name, path.read_text()) for path in sorted(_FOLDER.glob("*.sql"))]


async def compare(settings: DatabaseSettings) -> Comparison:
    """Compares the files with what the database has, and changes nothing."""
    connection = await _connect(settings)
    try:
        return await _compared(connection)
    finally:
        await connection.close(timeout=5)


async def pending(settings: DatabaseSettings) -> list[Migration]:
    """Returns what `migrate` would apply.

    A database that is ahead by files that only expand is as good as this version's own: a version may be rolled back.

    Raises:
        MigrationError: an applied file has changed, or the database is ahead by one that does not only expand.
    """
    compared = await compare(settings)
    compared.require_sound()
    return compared.pending


async def require_this_version(settings: DatabaseSettings) -> None:
    """Checks that the database is exactly this version's, for what goes through every table: it must know them all.

    Raises:
        MigrationError: it is not.
    """
    compared = await compare(settings)
    compared.require_sound()
    if compared.ahead:
        raise MigrationError(
            f"the database is ahead of this version ({', '.join(compared.ahead)}), which may not know all of its"
            " tables: use the version that it was migrated with"
        )
    if compared.pending:
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
            " name text primary key, checksum text not null, applied_time timestamptz not null default now(),"
            " expands_only boolean not null default false)"
        )
        await connection.execute(
            "alter table schema_migrations add column if not exists expands_only boolean not null default false"
        )
        compared = await _compared(connection)
        compared.require_sound()
        for migration in compared.pending:
            await _applied(connection, migration)
            fault_points.reached("W16")
        return compared.pending
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
            "insert into schema_migrations (name, checksum, expands_only) values ($1, $2, $3)",
            migration.name,
            migration.checksum,
            migration.expands_only,
        )


async def _connect(
    settings: DatabaseSettings, *, command_timeout: float | None = 60
) -> "asyncpg.Connection[asyncpg.Record]":
    return await asyncpg.connect(
        settings.url.get_secret_value(), timeout=settings.connect_timeout, command_timeout=command_timeout
    )


async def _compared(connection: "asyncpg.Connection[asyncpg.Record]") -> Comparison:
    exists = await connection.fetchval("select to_regclass('schema_migrations') is not null")
    # As JSON, for the column is missing where no `migrate` of this version has run.
    rows = (
        await connection.fetch(
            "select name, checksum, coalesce((to_jsonb(applied)->>'expands_only')::boolean, false) as expands_only"
            " from schema_migrations as applied order by name"
        )
        if exists
        else []
    )
    applied: dict[str, str] = {row["name"]: row["checksum"] for row in rows}
    files = all_migrations()
    known = {migration.name for migration in files}
    ahead = [row for row in rows if row["name"] not in known]
    return Comparison(
        pending=[migration for migration in files if migration.name not in applied],
        ahead=[row["name"] for row in ahead],
        in_the_way=[row["name"] for row in ahead if not row["expands_only"]],
        changed=[each.name for each in files if applied.get(each.name, each.checksum) != each.checksum],
    )
