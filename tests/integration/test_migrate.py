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


async def test_a_database_that_is_ahead_is_refused(empty: DatabaseSettings, folder: Path) -> None:
    await migrate.migrate(empty)
    files_of(folder)[-1].unlink()
    with pytest.raises(migrate.MigrationError, match="does not know"):
        await migrate.migrate(empty)


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
