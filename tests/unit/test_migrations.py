"""Migrations of live tables: nothing that reads a whole table runs while it locks others out."""

import contextlib
import re
from collections.abc import AsyncIterator

import asyncpg
import pytest

from storage import migrate
from storage.migrate import Migration

BEFORE = "0006"
"""Older files made their tables when these were empty."""


def live_migrations() -> list[Migration]:
    return [each for each in migrate.all_migrations() if each.name >= BEFORE]


def code_of(sql: str) -> str:
    return re.sub(r"--.*", "", sql)


@pytest.mark.parametrize("migration", live_migrations(), ids=lambda each: each.name)
def test_no_file_reads_a_live_table_in_its_transaction(migration: Migration) -> None:
    if migration.statements is not None:
        return
    made = set(re.findall(r"create table (\w+)", migration.sql))
    for statement in code_of(migration.sql).split(";"):
        for table in re.findall(r"create (?:unique )?index \w+ on (\w+)", statement):
            assert table in made, f"an index of {table} is built while nobody can write to it"
        altered = re.match(r"\s*alter table (\w+)", statement)
        if altered and altered[1] not in made:
            checks = len(re.findall(r"\b(?:check|references)\b", statement))
            assert checks == statement.count("not valid"), f"all of {altered[1]} is checked under a lock"
            assert "set not null" not in statement
        assert not re.match(r"\s*(update|delete)\b", statement), "rows of a live table are written under a lock"


@pytest.mark.parametrize("migration", live_migrations(), ids=lambda each: each.name)
def test_what_runs_statement_by_statement_may_be_run_again(migration: Migration) -> None:
    for statement in migration.statements or ():
        sql = " ".join(code_of(statement).split())
        made = re.fullmatch(r"create (?:unique )?index concurrently (\w+) on .*", sql)
        if made:
            assert f"drop index concurrently if exists {made[1]};" in migration.sql, "one that broke off is in the way"
        else:
            assert re.fullmatch(r"drop index concurrently if exists \w+|alter table \w+ validate constraint \w+", sql)


def test_a_file_says_in_its_first_line_how_it_runs() -> None:
    first = "-- Statement by statement, in no transaction: because.\n"
    assert Migration("1", "select 1;\n\nselect 2;\n").statements is None
    assert Migration("2", f"{first}-- Why.\nselect 1,\n  2;\n\nselect 3;\n").statements == [
        f"{first}-- Why.\nselect 1,\n  2",
        "select 3",
    ]


class Busy:
    """A connection whose statements meet the transactions of others, so often."""

    def __init__(self, failures: list[Exception]) -> None:
        self.failures = failures
        self.ran: list[str] = []

    async def execute(self, sql: str, *_: object) -> str:
        self.ran.append(sql)
        if sql == "alter table a" and self.failures:
            raise self.failures.pop()
        return ""

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        yield


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "_LOCK_PAUSE_SECONDS", 0.0)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("error", [asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError])
async def test_a_file_that_meets_running_transactions_is_tried_again(error: type[Exception]) -> None:
    busy = Busy([error("told to")] * 9)
    await migrate._applied(busy, Migration("1", "alter table a"))  # type: ignore[arg-type]
    assert busy.ran.count("alter table a") == 10
    assert busy.ran[-1].startswith("insert into schema_migrations")


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(("error", "tries"), [(asyncpg.DeadlockDetectedError, 10), (asyncpg.UndefinedTableError, 1)])
async def test_what_fails_for_good_is_told(error: type[Exception], tries: int) -> None:
    busy = Busy([error("told to")] * 10)
    with pytest.raises(error):
        await migrate._applied(busy, Migration("1", "alter table a"))  # type: ignore[arg-type]
    assert busy.ran.count("alter table a") == tries
