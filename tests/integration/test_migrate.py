"""Migrations: once each, one process at a time, and never on top of something else."""

import asyncio
import shutil
from pathlib import Path

import asyncpg
import pytest

from devstack import PostgresServer
from settings import DatabaseSettings
from storage import migrate
from tests import engines


@pytest.fixture
async def empty(postgres: PostgresServer) -> DatabaseSettings:
    return await engines.new_database(postgres)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The migrations, in a folder that the test may change."""
    copied = tmp_path / "migrations"
    shutil.copytree(migrate._FOLDER, copied)
    monkeypatch.setattr(migrate, "_FOLDER", copied)
    return copied


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.sql"))


def names(migrations: list[migrate.Migration]) -> list[str]:
    return [migration.name for migration in migrations]


async def tables(settings: DatabaseSettings) -> set[str]:
    async with engines.opened(settings) as database:
        rows = await engines.fetch(database, "select tablename from pg_tables where schemaname = 'public'")
    return {str(row["tablename"]) for row in rows}


async def test_all_files_are_applied_once(empty: DatabaseSettings) -> None:
    files = names(migrate.all_migrations())
    assert files == sorted(files)
    assert names(await migrate.pending(empty)) == files
    assert names(await migrate.migrate(empty)) == files
    assert await migrate.pending(empty) == []
    assert await migrate.migrate(empty) == []
    assert {"orders", "outcomes", "payments", "order_views", "projection_positions"} <= await tables(empty)


async def test_two_at_once_apply_each_file_once(empty: DatabaseSettings) -> None:
    applied = await asyncio.gather(*(migrate.migrate(empty) for _ in range(4)))
    assert sorted(name for each in applied for name in names(each)) == names(migrate.all_migrations())


async def test_a_file_that_was_changed_after_it_was_applied_is_refused(empty: DatabaseSettings, folder: Path) -> None:
    await migrate.migrate(empty)
    changed = files_of(folder)[0]
    changed.write_text(changed.read_text() + "\n-- a comment\n")
    for refuses in (migrate.pending, migrate.migrate):
        with pytest.raises(migrate.MigrationError, match=f"{changed.name} was changed"):
            await refuses(empty)


async def ahead_by(settings: DatabaseSettings, folder: Path, sql: str) -> None:
    """Migrates with a newer version, and leaves the files as the version before has them."""
    newer = folder / "9998_newer.sql"
    newer.write_text(sql)
    assert names(await migrate.migrate(settings))[-1] == newer.name
    newer.unlink()


async def test_a_database_that_is_ahead_is_refused(empty: DatabaseSettings, folder: Path) -> None:
    await ahead_by(empty, folder, "-- Not for the version before: a test.\nalter table stock drop column available;")
    for refuses in (migrate.pending, migrate.migrate, migrate.require_this_version):
        with pytest.raises(migrate.MigrationError, match=r"does not know: 9998_newer\.sql"):
            await refuses(empty)


async def test_a_database_that_is_ahead_by_what_only_expands_is_as_good_as_its_own(
    empty: DatabaseSettings, folder: Path
) -> None:
    await ahead_by(empty, folder, "-- Expands only: nobody knew it.\ncreate table newer (n int);")
    assert await migrate.pending(empty) == []
    assert await migrate.migrate(empty) == []
    assert (await migrate.compare(empty)).ahead == ["9998_newer.sql"]
    # Who goes through every table has to know them all.
    with pytest.raises(migrate.MigrationError, match=r"ahead of this version \(9998_newer.sql\)"):
        await migrate.require_this_version(empty)


async def test_one_that_narrows_among_those_that_expand_is_named(empty: DatabaseSettings, folder: Path) -> None:
    await ahead_by(empty, folder, "-- Expands only: nobody knew it.\ncreate table newer (n int);")
    narrows = folder / "9999_narrows.sql"
    narrows.write_text("drop table stock_changes;")
    await migrate.migrate(empty)
    narrows.unlink()
    with pytest.raises(migrate.MigrationError, match=r"does not know: 9999_narrows\.sql"):
        await migrate.pending(empty)


async def test_a_database_that_was_migrated_before_files_said_so_is_read_and_brought_up(
    empty: DatabaseSettings, folder: Path
) -> None:
    await migrate.migrate(empty)
    async with engines.opened(empty) as database:
        await engines.fetch(database, "alter table schema_migrations drop column expands_only")
    assert await migrate.pending(empty) == []
    removed = files_of(folder)[-1]
    text = removed.read_text()
    removed.unlink()
    with pytest.raises(migrate.MigrationError, match=removed.name):
        await migrate.pending(empty)
    removed.write_text(text)
    await ahead_by(empty, folder, "-- Expands only: nobody knew it.\ncreate table newer (n int);")
    assert await migrate.pending(empty) == []


async def test_a_new_file_is_pending_and_a_broken_one_leaves_nothing(empty: DatabaseSettings, folder: Path) -> None:
    await migrate.migrate(empty)
    (folder / "9998_good.sql").write_text("create table good (n int);")
    (folder / "9999_broken.sql").write_text("create table half (n int); select nonsense;")
    with pytest.raises(asyncpg.UndefinedColumnError):
        await migrate.migrate(empty)
    assert names(await migrate.pending(empty)) == ["9999_broken.sql"]
    found = await tables(empty)
    assert "good" in found
    assert "half" not in found


async def test_an_index_that_broke_off_is_built_anew(empty: DatabaseSettings, folder: Path) -> None:
    """Built concurrently and failed, it stays, is used by nobody and is kept up to date by everybody."""
    await migrate.migrate(empty)
    (folder / "9998_table.sql").write_text("create table twice (n int); insert into twice values (1), (1);")
    (folder / "9999_index.sql").write_text(
        "-- Statement by statement, in no transaction: a test.\n"
        "drop index concurrently if exists once;\n"
        "create unique index concurrently once on twice (n);\n"
    )
    with pytest.raises(asyncpg.UniqueViolationError):
        await migrate.migrate(empty)
    async with engines.opened(empty) as database:
        valid = "select indisvalid from pg_index where indexrelid = 'once'::regclass"
        assert await engines.fetch(database, valid) == [{"indisvalid": False}]
        await engines.fetch(database, "delete from twice")
        assert names(await migrate.migrate(empty)) == ["9999_index.sql"]
        assert await engines.fetch(database, valid) == [{"indisvalid": True}]


async def test_orders_go_on_while_their_indexes_are_built(empty: DatabaseSettings, folder: Path) -> None:
    """A transaction that has written to orders before waits for nobody, and another begins and ends meanwhile."""
    live = [path for path in files_of(folder) if path.name >= "0007"]
    kept = {path: path.read_text() for path in live}
    for path in live:
        path.unlink()
    await migrate.migrate(empty)
    for path, text in kept.items():
        path.write_text(text)
    insert = (
        "insert into orders (order_id, caller, content, status, payment_status, revision, expire_time, update_time)"
        " values (gen_random_uuid(), 'shop', '', 2, 1, 1, now(), now())"
    )
    async with engines.opened(empty) as database, database.transaction() as old:
        await old.execute(insert)
        migrating = asyncio.create_task(migrate.migrate(empty))
        try:
            async with asyncio.timeout(engines.DEADLINE):
                while not await engines.fetch(
                    database, "select 1 from pg_stat_activity where query like '%create index concurrently%'"
                    " and wait_event_type = 'Lock' and pid <> pg_backend_pid()"
                ):  # fmt: skip
                    assert not migrating.done()
            await engines.fetch(database, insert)
            assert not migrating.done()
        finally:
            migrating.cancel()
            await asyncio.wait([migrating])
