"""`orderflow stock`, against a real server."""

import dataclasses
import json
import re
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from devstack import free_ports
from settings import DatabaseSettings
from storage.database import Database
from storage.stock import Stock, StockLevel
from tests import engines
from tests.builders import a_sku
from tests.e2e import programs
from tests.security import ingress


@dataclasses.dataclass(frozen=True)
class Result:
    exit_code: int
    stdout: str
    stderr: str


Run = Callable[..., Coroutine[Any, Any, Result]]


async def run_command(*arguments: str) -> Result:
    code, out, err = await programs.run(sys.executable, "-m", "cli", "stock", *arguments)
    return Result(code, out.decode(), err)


@pytest.fixture
async def run(database_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Run]:
    """Runs `orderflow stock ...` beside a server. It has no address of the database."""
    async with ingress.serving(database_settings) as address:
        monkeypatch.setenv("ORDERFLOW_TARGET", address)
        monkeypatch.delenv("ORDERFLOW_DATABASE_URL", raising=False)
        yield run_command


async def test_set_adjust_and_show(run: Run, database: Database) -> None:
    sku = a_sku()
    result = await run("set", sku, "100", "--price", "EUR:1999", "--reason", "counted", "-o", "json")
    expected = {"sku": sku, "available": 100, "held": 0, "sold": 0, "prices": {"EUR": 1999}}
    assert (result.exit_code, json.loads(result.stdout), result.stderr) == (0, [expected], "")
    assert (await run("adjust", sku, "-40", "--reason", "broken")).exit_code == 0
    assert (await run("adjust", sku, "5")).exit_code == 0
    assert await Stock(database).levels(sku) == [StockLevel(sku, 65, 0, 0, {"EUR": 1999})]
    result = await run("show", sku)
    header, row = result.stdout.splitlines()
    assert header.split() == ["SKU", "AVAILABLE", "HELD", "SOLD", "PRICES"]
    assert row.split()[:4] == [sku, "65", "0", "0"]
    kept = await engines.fetch(
        database, "select kind, reason from stock_changes where sku = $1 order by change_id", sku
    )
    assert [tuple(each.values()) for each in kept] == [
        ("set_price", "counted"),
        ("set_stock", "counted"),
        ("adjust_stock", "broken"),
        ("adjust_stock", ""),
    ], "the price first: nothing is sold without it"


async def test_prices(run: Run, database: Database) -> None:
    sku = a_sku()
    assert (await run("price", "set", sku, "EUR:100")).exit_code == 0
    assert (await run("price", "set", sku, "JPY:5")).exit_code == 0
    assert (await run("price", "remove", sku, "EUR")).exit_code == 0
    assert await Stock(database).levels(sku) == [StockLevel(sku, 0, 0, 0, {"JPY": 5})]


async def test_a_request_id_makes_it_safe_to_repeat(run: Run, database: Database) -> None:
    sku = a_sku()
    await run("set", sku, "10")
    for _ in range(2):
        assert (await run("adjust", sku, "-1", "--request-id", sku)).exit_code == 0
    assert (await Stock(database).levels(sku))[0].available == 9


async def test_list(run: Run) -> None:
    skus = {a_sku() for _ in range(3)}
    for sku in skus:
        await run("set", sku, "1")
    result = await run("list", "--limit", "100000", "-o", "jsonl")
    listed = [json.loads(line)["sku"] for line in result.stdout.splitlines()]
    assert skus <= set(listed)
    assert len(json.loads((await run("list", "--limit", "2", "-o", "json")).stdout)) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["show", "nobody-set-it"], 64 + 5, "NOT_FOUND"),
        (["show", "not a sku"], 64 + 3, "INVALID_ARGUMENT"),
        (["adjust", "nobody-set-it", "1"], 64 + 5, "NOT_FOUND"),
        (["set", "SKU-1", "-1"], 2, ""),
        (["set", "SKU-1", "1", "--price", "1999"], 2, "CURRENCY:AMOUNT_MINOR"),
        (["price", "set", "SKU-1", "EUR"], 2, "CURRENCY:AMOUNT_MINOR"),
    ],
)
async def test_errors(run: Run, arguments: list[str], code: int, told: str) -> None:
    result = await run(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert told in result.stderr
    assert "--request-id" not in result.stderr, "nothing was changed: there is nothing to repeat"


async def test_too_few_units_change_nothing(run: Run, database: Database) -> None:
    sku = a_sku()
    await run("set", sku, "1")
    result = await run("adjust", sku, "-2")
    assert (result.exit_code, result.stdout) == (64 + 9, "")
    assert (await Stock(database).levels(sku))[0].available == 1


async def test_without_an_answer_it_says_how_to_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("ORDERFLOW_TARGET", f"127.0.0.1:{port}")
    result = await run_command("adjust", "SKU-1", "1")
    assert result.exit_code == 64 + 14
    assert re.search(r"Repeat it with --request-id [0-9a-f-]{36}\n", result.stderr)
