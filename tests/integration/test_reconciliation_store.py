"""What a reconciler reads of PostgreSQL and keeps there."""

import datetime
import re
import uuid

import pytest

from domain.reconciliation import Account, Case, Difference, Entry, Kind, Movement
from orderflow.orders.v1.order_pb2 import Money, OrderStatus
from storage import ledger as ledger_module
from storage.database import Database
from storage.ledger import Ledger
from storage.reconciliation_cases import ReconciliationCases
from tests import engines
from tests.builders import NOW, an_id
from tests.deploy.alerts import ROOT
from tests.lives import TOTAL, Life

SECOND = datetime.timedelta(seconds=1)
DAY = datetime.timedelta(days=1)


async def touched(database: Database, since: datetime.datetime, until: datetime.datetime) -> list[list[str]]:
    return [page async for page in Ledger(database).touched(since, until)]


async def test_an_account_is_what_was_booked_and_the_order(own_database: Database) -> None:
    life = await Life(own_database).begin()
    await life.drain()
    life.now += SECOND
    asked = life.command("refund", amount=Money(currency_code="EUR", amount_minor=400))
    await life.drain()
    charged, given_back = life.gateway.executed
    stranger = an_id()
    accounts = await Ledger(own_database).accounts([life.order_id, stranger, "o-1", life.order_id.upper(), ""])
    assert accounts == {
        life.order_id: Account(
            charge_key=f"charge-{life.order_id}",
            refund_keys=(f"refund-{asked.event.event_id}",),
            entries=(
                Entry("capture", NOW, charged.reference, TOTAL, "EUR"),  # type: ignore[union-attr]
                Entry("refund", NOW + SECOND, given_back.reference, 400, "EUR"),  # type: ignore[union-attr]
            ),
            order=await life.row(),
        )
    }
    assert await Ledger(own_database).accounts(["o-1"]) == {}


async def test_an_order_that_nobody_was_charged_for_has_an_account_without_a_key(own_database: Database) -> None:
    life = await Life(own_database).begin()
    account = (await Ledger(own_database).accounts([life.order_id]))[life.order_id]
    assert account == Account(order=await life.row())
    assert account.order is not None
    assert account.order.status == OrderStatus.ORDER_STATUS_PROCESSING


async def test_a_window_has_what_was_booked_in_it_and_what_says_that_it_was_paid(own_database: Database) -> None:
    paid, unpaid, shipped = [await Life(own_database).begin() for _ in range(3)]
    await paid.drain()
    shipped.now -= DAY
    await shipped.drain()
    shipped.now = NOW
    shipped.command("ship")
    await shipped.drain()
    assert await unpaid.stands() == ("PROCESSING", "PENDING")
    assert await touched(own_database, NOW, NOW + SECOND) == [
        [paid.order_id],
        sorted([paid.order_id, shipped.order_id]),
    ]
    assert await touched(own_database, NOW - DAY, NOW) == [[shipped.order_id]]
    assert await touched(own_database, NOW + SECOND, NOW + DAY) == []


async def test_pages_part_no_moment_and_bring_each_once(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_PAGE", 3)
    lives = [await Life(own_database).begin() for _ in range(7)]
    for number, life in enumerate(lives):
        life.now += SECOND * (number // 5)
        await life.drain()
    pages = await touched(own_database, NOW, NOW + DAY)
    assert [len(page) for page in pages] == [3, 3, 1] * 2
    ids = [order_id for page in pages for order_id in page]
    assert sorted(ids[:7]) == sorted(ids[7:]) == sorted(life.order_id for life in lives)


async def test_indexes_serve_what_it_reads(own_database: Database) -> None:
    async with own_database.connection() as connection, connection.transaction():
        for way in ("seqscan", "bitmapscan"):
            await connection.execute(f"set local enable_{way} = off")
        for query, index in ((ledger_module._BOOKED, "by_time"), (ledger_module._SAID_PAID, "orders_said_paid")):
            first = ledger_module._FIRST[query]
            rows = await connection.fetch(f"explain {query}", NOW, NOW + DAY, NOW, first, 10)
            plan = "\n".join(row[0] for row in rows)
            assert index in plan, plan
            assert "Sort" not in plan, plan
        rows = await connection.fetch("explain select * from payment_entries where order_id = $1", uuid.uuid4())
        assert "payment_entries_of_order" in str(rows)


def a_case(order_id: str, *kinds: Kind) -> Case:
    movement = Movement("charge", NOW, f"ch-{order_id}", f"ch-{order_id}", order_id, TOTAL, "EUR")
    differences = tuple(Difference(kind, order_id, movement.reference, gateway=f"EUR:{TOTAL}") for kind in kinds)
    return Case(order_id, (movement, movement), differences)


async def test_cases_are_kept_until_long_after_they_are_resolved(own_database: Database) -> None:
    cases = ReconciliationCases(own_database)
    assert await cases.counts() == dict.fromkeys(Kind, 0)
    stray, twice = a_case("b", Kind.CHARGE_NOT_BOOKED), a_case("a", Kind.CHARGED_TWICE, Kind.ORDER_TOTAL_DIFFERS)
    await cases.save([stray, twice], now=NOW)
    assert await cases.of(["a", "b", "c"]) == {"a": twice, "b": stray}
    assert await cases.open(after="", most=9) == ["a", "b"]
    assert await cases.open(after="", most=1) == ["a"]
    assert await cases.open(after="a", most=9) == ["b"]
    counts = await cases.counts()
    assert {kind: count for kind, count in counts.items() if count} == {
        Kind.CHARGE_NOT_BOOKED: 1,
        Kind.CHARGED_TWICE: 1,
        Kind.ORDER_TOTAL_DIFFERS: 1,
    }

    mended = a_case("a")
    await cases.save([mended], now=NOW + SECOND)
    assert await cases.of(["a"]) == {"a": mended}, "its movements are not forgotten"
    assert await cases.open(after="", most=9) == ["b"]
    assert sum((await cases.counts()).values()) == 1
    await cases.save([a_case("b", Kind.CHARGED_TWICE)], now=NOW + SECOND)
    times = await engines.fetch(own_database, "select * from reconciliation_cases order by order_id")
    assert [(row["found_time"], row["resolved_time"]) for row in times] == [(NOW, NOW + SECOND), (NOW, None)]

    await cases.save([twice], now=NOW + DAY)
    [again] = await engines.fetch(own_database, "select * from reconciliation_cases where order_id = 'a'")
    assert (again["found_time"], again["resolved_time"]) == (NOW + DAY, None)

    await cases.save([mended], now=NOW + DAY)
    await cases.advance(NOW + DAY * 30)
    assert set(await cases.of(["a", "b"])) == {"a", "b"}
    await cases.advance(NOW + DAY * 32)
    assert set(await cases.of(["a", "b"])) == {"b"}, "what is not resolved stays"


async def test_a_difference_that_was_settled_elsewhere_is_closed_by_the_documented_statement(
    own_database: Database,
) -> None:
    cases, order_id = ReconciliationCases(own_database), an_id()
    await cases.save([Case(order_id, (), (Difference(Kind.REFUND_NOT_BOOKED, order_id),))], now=NOW)
    assert await cases.open(after="", most=10) == [order_id]
    page = (ROOT / "docs/operations.md").read_text()
    (statement,) = re.findall(r"^    (update reconciliation_cases .*'ORDER';)$", page, re.MULTILINE)
    async with own_database.connection() as connection:
        await connection.execute(statement.replace("ORDER", order_id))
    assert await cases.open(after="", most=10) == []
    assert sum((await cases.counts()).values()) == 0


async def test_progress_never_goes_back(own_database: Database) -> None:
    cases = ReconciliationCases(own_database)
    assert await cases.reconciled_until() is None
    for until in (NOW, NOW + DAY, NOW):
        await cases.advance(until)
    assert await cases.reconciled_until() == NOW + DAY
