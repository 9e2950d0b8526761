"""Orders that are decided together are decided as if each had come alone (semantics 2, 9, 12 and 13)."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence

import asyncpg
import pytest
import structlog

from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import LineItem, OrderStatus
from settings import DatabaseSettings
from storage.database import Database
from storage.order_decisions import OrderDecisions
from storage.stock import Stock, StockLevel
from tests import engines
from tests.builders import NOW, a_delivery, a_group, a_sku, an_id, an_item, an_order, order_created

GROUP = "order-processor"
PROCESSING = OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING


@pytest.fixture
def decisions(database: Database) -> OrderDecisions:
    return OrderDecisions(database, now=lambda: NOW)


@pytest.fixture
def stock(database: Database) -> Stock:
    return Stock(database)


@contextlib.asynccontextmanager
async def two_processes(settings: DatabaseSettings) -> AsyncIterator[list[OrderDecisions]]:
    async with engines.opened(settings) as first, engines.opened(settings) as second:
        yield [OrderDecisions(each, now=lambda: NOW) for each in (first, second)]


def created(items: Sequence[LineItem], *, offset: int = 0, request_id: str = "", caller: str = "shop") -> Delivery:
    event = order_created(an_order(items=items), request_id=request_id, caller=caller, items=items)
    return a_delivery(event, group=GROUP, offset=offset)


async def accept_all(decisions: OrderDecisions, *deliveries: Delivery) -> list[list[OrderEvent]]:
    return await asyncio.gather(*map(decisions.accept, deliveries))


def told(events: list[OrderEvent]) -> str:
    """What became of the order: PROCESSING, or why not; empty if there is nothing to emit."""
    if not events:
        return ""
    (event,) = events
    return "PROCESSING" if event.type == PROCESSING else event.order_rejected.reason


async def level(stock: Stock, sku: str) -> StockLevel:
    (found,) = await stock.levels(sku)
    return found


async def test_a_hot_sku_is_updated_once_for_all(own_database: Database) -> None:
    sku, stock = a_sku(), Stock(own_database)
    await stock.set_available(sku, 60)
    async with own_database.connection() as connection:
        await connection.execute(
            "create table updates (sku text);"
            " create function note() returns trigger language plpgsql as"
            " $$ begin insert into updates values (new.sku); return null; end $$;"
            " create trigger note after update on stock for each row execute function note();"
        )
    decisions = OrderDecisions(own_database, now=lambda: NOW)
    answers = await accept_all(decisions, *(created([an_item(sku, 1)], offset=n) for n in range(100)))
    assert [told(each) for each in answers] == ["PROCESSING"] * 60 + ["OUT_OF_STOCK"] * 40
    assert await engines.fetch(own_database, "select * from updates") == [{"sku": sku}]
    assert await level(stock, sku) == StockLevel(sku, 0, 60, 0, {})


async def test_stock_goes_by_order_of_arrival_to_those_whom_it_serves_whole(
    decisions: OrderDecisions, stock: Stock
) -> None:
    plenty, scarce, unknown = a_sku(), a_sku(), a_sku()
    await stock.set_available(plenty, 100)
    await stock.set_available(scarce, 5)
    orders = (
        [an_item(scarce, 3), an_item(plenty, 1)],
        [an_item(plenty, 1), an_item(scarce, 3)],  # two are left
        [an_item(scarce, 1), an_item(unknown, 1)],
        [an_item(scarce, 2), an_item(plenty, 1)],
        [an_item(scarce, 1)],
        [an_item(plenty, 1)],
    )
    answers = await accept_all(decisions, *map(created, orders))
    assert [told(each) for each in answers] == [
        "PROCESSING", "OUT_OF_STOCK", "UNKNOWN_SKU", "PROCESSING", "OUT_OF_STOCK", "PROCESSING",
    ]  # fmt: skip
    assert list(answers[1][0].order_rejected.skus) == [scarce]
    assert await level(stock, scarce) == StockLevel(scarce, 0, 5, 0, {})
    assert await level(stock, plenty) == StockLevel(plenty, 97, 3, 0, {})


async def test_each_order_has_its_own_row_and_event(
    decisions: OrderDecisions, stock: Stock, database: Database
) -> None:
    enough, none, caller = a_sku(), a_sku(), a_group()
    await stock.set_available(enough, 10)
    await stock.set_available(none, 0)
    both = [created([an_item(sku, 1)], caller=caller, offset=n) for n, sku in enumerate((enough, none))]
    answers = await accept_all(decisions, *both)
    for delivery, (event,) in zip(both, answers, strict=True):
        assert event.order.order_id == delivery.event.order.order_id
        assert event.order.items == delivery.event.order.items
        assert event.metadata.causation_id == delivery.event.event_id
        assert event.revision == event.order.revision == 2
    rows = await engines.fetch(
        database, "select order_id::text, status, revision, failure_reason from orders where caller = $1", caller
    )
    assert {row["order_id"]: (row["status"], row["revision"], row["failure_reason"]) for row in rows} == {
        both[0].event.order.order_id: (OrderStatus.ORDER_STATUS_PROCESSING, 2, ""),
        both[1].event.order.order_id: (OrderStatus.ORDER_STATUS_REJECTED, 2, "OUT_OF_STOCK"),
    }


async def test_replays_and_copies_beside_new_orders(decisions: OrderDecisions, stock: Stock) -> None:
    sku = a_sku()
    await stock.set_available(sku, 3)
    done, refused = created([an_item(sku, 1)], offset=1), created([an_item(sku, 9)], offset=2)
    before = await accept_all(decisions, done, refused)
    new = created([an_item(sku, 1)], offset=3)
    copy = a_delivery(done.event, group=GROUP, offset=4)
    replayed, repeated, accepted, copied = await accept_all(decisions, done, refused, new, copy)
    assert [replayed, repeated] == before
    assert (told(accepted), copied) == ("PROCESSING", [])
    assert await level(stock, sku) == StockLevel(sku, 1, 2, 0, {})


async def test_the_same_event_several_times_at_once(decisions: OrderDecisions, stock: Stock) -> None:
    sku = a_sku()
    await stock.set_available(sku, 10)
    first = created([an_item(sku, 1)], request_id="req-1", caller=a_group(), offset=1)
    again = a_delivery(first.event, group=GROUP, offset=1, attempt=2)
    copy = a_delivery(first.event, group=GROUP, offset=2)
    elsewhere = a_delivery(first.event, group=GROUP, partition=1, offset=1)
    answers = await accept_all(decisions, first, copy, again, elsewhere, first)
    assert [told(each) for each in answers] == ["PROCESSING", "", "PROCESSING", "", "PROCESSING"]
    assert answers[2] == answers[4] == answers[0]
    assert (await level(stock, sku)).held == 1
    assert await accept_all(decisions, copy, first) == [[], answers[0]], "as it was stored"


async def test_an_order_under_two_events_at_once(decisions: OrderDecisions, stock: Stock, database: Database) -> None:
    sku = a_sku()
    await stock.set_available(sku, 10)
    first = created([an_item(sku, 1)])
    event = order_created(first.event.order)
    event.event_id = an_id()
    forged = a_delivery(event, group=GROUP, offset=1)
    answers = await accept_all(decisions, first, forged)
    assert [told(each) for each in answers] == ["PROCESSING", ""]
    assert (await level(stock, sku)).held == 1
    stored = await engines.fetch(database, "select events from outcomes where event_id = $1", event.event_id)
    assert stored == [{"events": []}], "nothing is an outcome, too"


async def test_of_payloads_in_one_gathering_the_first_gets_the_request_id(
    decisions: OrderDecisions, stock: Stock
) -> None:
    sku, caller, other = a_sku(), a_group(), a_group()
    await stock.set_available(sku, 100)
    rivals = [created([an_item(sku, n)], request_id="req-1", caller=caller, offset=n) for n in (1, 2, 3)]
    first_again = a_delivery(rivals[0].event, group=GROUP, offset=9)
    elsewhere = created([an_item(sku, 2)], request_id="req-1", caller=other, offset=10)
    anonymous = [created([an_item(sku, 1)], caller=caller, offset=n) for n in (11, 12)]
    answers = await accept_all(decisions, *rivals, first_again, elsewhere, *anonymous)
    assert [told(each) for each in answers] == [
        "PROCESSING", "REQUEST_ID_REUSED", "REQUEST_ID_REUSED", "", "PROCESSING", "PROCESSING", "PROCESSING",
    ]  # fmt: skip
    assert (await level(stock, sku)).held == 1 + 2 + 1 + 1
    late = created([an_item(sku, 4)], request_id="req-1", caller=caller, offset=13)
    assert [told(each) for each in await accept_all(decisions, late, anonymous[0])] == [
        "REQUEST_ID_REUSED",
        "PROCESSING",
    ]


async def test_a_request_id_is_claimed_by_an_order_that_is_refused_for_something_else(
    decisions: OrderDecisions, stock: Stock
) -> None:
    sku, caller = a_sku(), a_group()
    await stock.set_available(sku, 1)
    orders = [created([an_item(sku, n)], request_id="req-1", caller=caller) for n in (2, 1)]
    answers = await accept_all(decisions, *orders)
    assert [told(each) for each in answers] == ["OUT_OF_STOCK", "REQUEST_ID_REUSED"]
    assert (await level(stock, sku)).held == 0


async def test_prices_are_those_of_each_orders_currency(decisions: OrderDecisions, stock: Stock) -> None:
    sku, unlisted = a_sku(), a_sku()
    for each in (sku, unlisted):
        await stock.set_available(each, 10)
    await stock.set_price(sku, "EUR", 500)
    await stock.set_price(sku, "USD", 600)
    orders = (
        [an_item(sku, 1, 500)],
        [an_item(sku, 1, 600)],
        [an_item(sku, 1, 600, "USD"), an_item(unlisted, 1, 1, "USD")],
        [an_item(sku, 1, 1, "JPY")],
        [an_item(unlisted, 1, 7)],
    )
    answers = await accept_all(decisions, *map(created, orders))
    assert [told(each) for each in answers] == [
        "PROCESSING", "PRICE_MISMATCH", "PROCESSING", "PROCESSING", "PROCESSING",
    ]  # fmt: skip
    assert (await level(stock, sku)).held == 3


async def test_a_bad_order_harms_no_other(decisions: OrderDecisions, stock: Stock, database: Database) -> None:
    sku = a_sku()
    await stock.set_available(sku, 100)
    orders = [created([an_item(sku, 1)], offset=n) for n in range(9)]
    bad = orders[4] = created([an_item(sku, 1)], caller="sh\x00op")  # PostgreSQL has no text for it
    answers = await asyncio.gather(*map(decisions.accept, orders), return_exceptions=True)
    assert isinstance(answers[4], asyncpg.PostgresError | asyncpg.DataError), answers[4]
    assert [told(each) for each in answers if isinstance(each, list)] == ["PROCESSING"] * 8
    assert (await level(stock, sku)).held == 8
    for table, column, value in (
        ("outcomes", "event_id", bad.event.event_id),
        ("orders", "order_id", bad.event.order.order_id),
    ):
        assert not await engines.fetch(database, f"select from {table} where {column} = $1", value)


async def test_each_order_logs_as_itself(decisions: OrderDecisions, stock: Stock) -> None:
    sku = a_sku()
    await stock.set_available(sku, 10)
    orders = [created([an_item(sku, 1)], offset=n) for n in range(3)]
    await accept_all(decisions, *orders)

    async def accept(delivery: Delivery) -> None:
        with structlog.contextvars.bound_contextvars(order_id=delivery.event.order.order_id):
            await decisions.accept(delivery)

    merge = structlog.contextvars.merge_contextvars
    with structlog.testing.capture_logs(processors=[merge]) as captured:
        await asyncio.gather(*map(accept, orders))
    assert sorted((each["event"], each["order_id"]) for each in captured) == sorted(
        ("order.replayed", each.event.order.order_id) for each in orders
    )


async def test_two_processes_decide_the_same_records_at_once(
    database: Database, database_settings: DatabaseSettings, stock: Stock
) -> None:
    """A process that lost its partition decides on, and the next owner meets it in the middle."""
    sku, caller = a_sku(), a_group()
    await stock.set_available(sku, 3)
    orders = [created([an_item(sku, 1)], request_id=f"r-{n}", caller=caller, offset=n) for n in range(5)]
    async with two_processes(database_settings) as (first, second):
        async with database.transaction() as connection:
            await connection.execute("select from stock where sku = $1 for update", sku)
            one = asyncio.create_task(accept_all(first, *orders))
            await engines.until_waiting(database, 1)
            other = asyncio.create_task(accept_all(second, *reversed(orders)))
            await engines.until_waiting(database, 2)
        answers, mirrored = await asyncio.gather(one, other)
    assert [told(each) for each in answers] == ["PROCESSING"] * 3 + ["OUT_OF_STOCK"] * 2
    assert mirrored[::-1] == answers
    assert await level(stock, sku) == StockLevel(sku, 0, 3, 0, {})


async def test_a_copy_that_another_process_decides_meanwhile_emits_nothing(
    database: Database, database_settings: DatabaseSettings, stock: Stock
) -> None:
    sku = a_sku()
    await stock.set_available(sku, 10)
    record, beside = (created([an_item(sku, 1)], offset=n) for n in (1, 2))
    copy = a_delivery(record.event, group=GROUP, partition=2, offset=7)
    async with two_processes(database_settings) as (first, second):
        async with database.transaction() as connection:
            await connection.execute("select from stock where sku = $1 for update", sku)
            one = asyncio.create_task(accept_all(first, record))
            await engines.until_waiting(database, 1)
            other = asyncio.create_task(accept_all(second, beside, copy))
            await engines.until_waiting(database, 2)
        (answer,), (new, copied) = await asyncio.gather(one, other)
    assert (told(answer), told(new), copied) == ("PROCESSING", "PROCESSING", [])
    assert (await level(stock, sku)).held == 2


@pytest.mark.parametrize("seed", range(3))
async def test_two_processes_gather_at_once_and_block_each_other_never_for_good(
    database_settings: DatabaseSettings, stock: Stock, seed: int
) -> None:
    """SKUs, request_ids and records overlap, each process has them in an order of its own."""
    dice = random.Random(seed)
    skus, caller = [a_sku() for _ in range(8)], a_group()
    for sku in skus:
        await stock.set_available(sku, 150)
    orders = [
        created(
            [an_item(sku, 1) for sku in dice.sample(skus, 4)],
            request_id=f"r-{n // 2}" if n % 3 else "",
            caller=caller,
            offset=n,
        )
        for n in range(400)
    ]
    mixed = dice.sample(orders, len(orders))

    async def accept_in_waves(decisions: OrderDecisions, deliveries: Sequence[Delivery]) -> list[list[OrderEvent]]:
        answers = []
        for n in range(0, len(deliveries), 40):
            answers += await accept_all(decisions, *deliveries[n : n + 40])
        return answers

    async with two_processes(database_settings) as (first, second):
        # A deadlock would be a DependencyDown.
        one, other = await asyncio.gather(accept_in_waves(first, orders), accept_in_waves(second, mixed))
    by_id = {id(each): answer for each, answer in zip(mixed, other, strict=True)}
    assert [by_id[id(each)] for each in orders] == one
    accepted = [events[0].order for events in one if told(events) == "PROCESSING"]
    assert {told(events) for events in one} == {"PROCESSING", "OUT_OF_STOCK", "REQUEST_ID_REUSED"}
    claimed = [each.event.order_created.request_id for each in orders if each.event.order_created.request_id]
    assert sum(told(events) == "REQUEST_ID_REUSED" for events in one) == len(claimed) - len(set(claimed))
    for sku in skus:
        held = sum(item.quantity for order in accepted for item in order.items if item.sku == sku)
        assert await level(stock, sku) == StockLevel(sku, 150 - held, held, 0, {})
