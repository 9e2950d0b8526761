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


UNMARKED = "0013"
"""Older files say nothing of what the version before makes of them: there was none."""

_NOT_ONLY = "-- Not for the version before:"


def narrows(migration: Migration) -> list[str]:
    """Returns the statements after which code that does not know the file might fail, or break what others rest on."""
    made = set(re.findall(r"create table (?:if not exists )?(\w+)", code_of(migration.sql)))
    built = set(re.findall(r"create (?:unique )?index concurrently (\w+)", code_of(migration.sql)))
    found = []
    for statement in code_of(migration.sql).split(";"):
        sql = " ".join(statement.lower().split())
        if sql and not _only_expands(sql, made, built):
            found.append(sql)
    return found


def _only_expands(sql: str, made: set[str], built: set[str]) -> bool:
    # Rows of a live table that a new one refers to could not be deleted any more.
    refers = re.findall(r"references (\w+)(?: ?\([^)]*\))?( on delete (?:cascade|set null))?", sql)
    if any(table not in made and not lets_go for table, lets_go in refers):
        return False
    if match := re.match(r"create (unique )?index (?:concurrently )?\w+ on (\w+)", sql):
        return not match[1] or match[2] in made
    if match := re.match(r"drop index concurrently if exists (\w+)$", sql):
        return match[1] in built  # one that broke off
    if match := re.match(r"(?:insert into|alter table) (\w+)", sql):
        if match[1] in made:
            return True
        actions = re.split(r", (?=(?:add|alter|drop|rename|validate)\b)", sql.removeprefix(f"alter table {match[1]} "))
        return sql.startswith("alter") and all(
            re.match(r"add column \w+ ", action)
            and "unique" not in action
            and ("not null" not in action or "default" in action)
            for action in actions
        )
    return sql.startswith("create table ")


@pytest.mark.parametrize(
    "sql",
    [
        "create table new (n int not null unique); insert into new values (1); create unique index i on new (n)",
        "create table new (id uuid references orders on delete cascade)",
        "alter table orders add column a int, add column b boolean not null default false check (not b)",
        "drop index concurrently if exists i;\ncreate index concurrently i on orders (caller)",
    ],
)
def test_what_only_expands(sql: str) -> None:
    assert narrows(Migration("1", sql)) == []


@pytest.mark.parametrize(
    "sql",
    [
        "drop table stock",
        "alter table orders drop column content",
        "alter table orders rename column content to bytes",
        "alter table orders alter column content type text",
        "alter table orders add column a int, alter column content drop not null",
        "alter table orders add column a int not null",
        "alter table orders add column a int unique",
        "alter table orders add constraint c check (revision > 0) not valid",
        "create unique index i on orders (caller)",
        "create table new (id uuid references orders)",
        "drop index concurrently if exists orders_unpaid",
        "create trigger t before insert on orders for each row execute function f()",
        "update orders set revision = 1",
        "insert into stock values ('a', 1)",
    ],
)
def test_what_does_not_only_expand(sql: str) -> None:
    assert narrows(Migration("1", sql)) != []


@pytest.mark.parametrize("migration", migrate.all_migrations(), ids=lambda each: each.name)
def test_a_file_says_what_the_version_before_makes_of_it(migration: Migration) -> None:
    if migration.expands_only:
        assert narrows(migration) == []
    elif migration.name >= UNMARKED:
        assert _NOT_ONLY in migration.sql, "docs/upgrades.md: every file says whether it only expands"


def test_a_line_says_that_a_file_only_expands() -> None:
    statements = "-- Statement by statement, in no transaction: because.\n-- Expands only: an index.\nselect 1;\n"
    assert Migration("1", statements).expands_only
    assert Migration("2", "-- A table.\n-- Expands only: nobody knew it.\ncreate table a ();").expands_only
    assert not Migration("3", "-- A table. -- Expands only: no\nselect '-- Expands only:';").expands_only


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
