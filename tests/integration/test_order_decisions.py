"""The order processor's decisions: stock is held whole or not at all, and never sold twice."""

import asyncio
import random
from collections.abc import Sequence

import pytest

from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import LineItem, OrderStatus, PaymentStatus
from settings import DatabaseSettings
from storage import order_rows
from storage.database import Database
from storage.order_decisions import OrderDecisions
from storage.stock import Stock, StockLevel
from tests import engines
from tests.builders import NOW, a_delivery, a_group, a_sku, an_id, an_item, an_order, order_created

GROUP = "order-processor"


@pytest.fixture
def decisions(database: Database) -> OrderDecisions:
    return OrderDecisions(database, now=lambda: NOW)


@pytest.fixture
def stock(database: Database) -> Stock:
    return Stock(database)


async def level(stock: Stock, sku: str) -> StockLevel:
    (found,) = await stock.levels(sku)
    return found


def created(items: Sequence[LineItem], *, offset: int = 0, request_id: str = "", caller: str = "shop") -> Delivery:
    event = order_created(an_order(items=items), request_id=request_id, caller=caller, items=items)
    return a_delivery(event, group=GROUP, offset=offset)


def reason_of(events: list[OrderEvent]) -> tuple[str, list[str]]:
    (event,) = events
    assert event.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_REJECTED
    assert event.order.status == OrderStatus.ORDER_STATUS_REJECTED
    assert event.order.payment_status == PaymentStatus.PAYMENT_STATUS_NONE
    assert event.order.failure_reason == event.order_rejected.reason
    assert event.revision == event.order.revision == 2
    return event.order_rejected.reason, list(event.order_rejected.skus)


async def test_an_order_is_accepted_and_its_stock_held(decisions: OrderDecisions, stock: Stock) -> None:
    first, second = a_sku(), a_sku()
    await stock.set_available(first, 5)
    await stock.set_available(second, 2)
    delivery = created([an_item(second, 2), an_item(first, 3)])
    (event,) = await decisions.accept(delivery)
    assert event.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING
    assert event.order.status == OrderStatus.ORDER_STATUS_PROCESSING
    assert event.order.payment_status == PaymentStatus.PAYMENT_STATUS_PENDING
    assert event.revision == event.order.revision == 2
    assert event.order.etag != delivery.event.order.etag
    assert event.order.items == delivery.event.order.items
    assert await level(stock, first) == StockLevel(first, 2, 3, 0, {})
    assert await level(stock, second) == StockLevel(second, 0, 2, 0, {})


async def test_a_replay_holds_no_more_and_emits_the_same(decisions: OrderDecisions, stock: Stock) -> None:
    sku = a_sku()
    await stock.set_available(sku, 5)
    delivery = created([an_item(sku, 2)])
    first = await decisions.accept(delivery)
    assert await decisions.accept(delivery) == first
    assert await decisions.accept(a_delivery(delivery.event, group=GROUP, offset=99)) == [], "a copy"
    assert (await level(stock, sku)).held == 2


async def test_all_is_held_or_nothing(decisions: OrderDecisions, stock: Stock) -> None:
    enough, short, shorter = sorted(a_sku() for _ in range(3))
    for sku, available in ((enough, 5), (short, 1), (shorter, 0)):
        await stock.set_available(sku, available)
    refused = await decisions.accept(created([an_item(shorter, 1), an_item(enough, 1), an_item(short, 2)]))
    assert reason_of(refused) == ("OUT_OF_STOCK", [short, shorter])
    for sku, available in ((enough, 5), (short, 1), (shorter, 0)):
        assert await level(stock, sku) == StockLevel(sku, available, 0, 0, {})


async def test_an_unknown_sku_goes_before_a_short_one(decisions: OrderDecisions, stock: Stock) -> None:
    short, unknown = a_sku(), a_sku()
    await stock.set_available(short, 0)
    assert reason_of(await decisions.accept(created([an_item(short), an_item(unknown)]))) == ("UNKNOWN_SKU", [unknown])


async def test_a_price_list_is_obeyed_where_there_is_one(decisions: OrderDecisions, stock: Stock) -> None:
    listed, unlisted = a_sku(), a_sku()
    for sku in (listed, unlisted):
        await stock.set_available(sku, 10)
    await stock.set_price(listed, "EUR", 500)
    items = [an_item(unlisted, 1, 123), an_item(listed, 1, 499)]
    assert reason_of(await decisions.accept(created(items))) == ("PRICE_MISMATCH", [listed])
    assert (await level(stock, listed)).held == 0
    for right in (an_item(listed, 1, 500), an_item(listed, 1, 1, "USD")):
        (event,) = await decisions.accept(created([right]))
        assert event.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING


async def test_a_request_id_lets_one_payload_through(decisions: OrderDecisions, stock: Stock) -> None:
    sku, caller = a_sku(), a_group()
    await stock.set_available(sku, 100)
    first, other = (created([an_item(sku, n)], request_id="req-1", caller=caller) for n in (1, 2))
    (accepted,) = await decisions.accept(first)
    assert accepted.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING
    assert reason_of(await decisions.accept(other)) == ("REQUEST_ID_REUSED", [])
    (elsewhere,) = await decisions.accept(created([an_item(sku, 2)], request_id="req-1", caller=a_group()))
    assert elsewhere.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING
    assert (await level(stock, sku)).held == 3


async def test_of_many_payloads_at_once_one_gets_the_request_id(decisions: OrderDecisions, stock: Stock) -> None:
    sku, caller = a_sku(), a_group()
    await stock.set_available(sku, 100)
    rivals = [created([an_item(sku, n)], request_id="req-1", caller=caller) for n in range(1, 9)]
    answers = [event for (event,) in await asyncio.gather(*map(decisions.accept, rivals))]
    processing = [each for each in answers if each.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING]
    assert len(processing) == 1
    assert {each.order_rejected.reason for each in answers if each not in processing} == {"REQUEST_ID_REUSED"}
    assert (await level(stock, sku)).held == processing[0].order.items[0].quantity


async def test_an_order_that_has_a_row_under_another_event_is_left_alone(
    decisions: OrderDecisions, stock: Stock, database: Database
) -> None:
    sku = a_sku()
    await stock.set_available(sku, 10)
    delivery = created([an_item(sku, 1)])
    await decisions.accept(delivery)
    forged = order_created(delivery.event.order)
    forged.event_id = an_id()
    for _ in range(2):
        assert await decisions.accept(a_delivery(forged, group=GROUP, offset=1)) == []
    assert (await level(stock, sku)).held == 1
    async with database.connection() as connection:
        row = await order_rows.find(connection, delivery.event.order.order_id)
    assert row is not None
    assert row.revision == 2


async def test_200_orders_at_once_share_50_units(database_settings: DatabaseSettings, stock: Stock) -> None:
    sku = a_sku()
    await stock.set_available(sku, 50)
    url = database_settings.url.get_secret_value()
    settings = engines.database_settings(url, pool_size=20, connect_timeout=30, command_timeout=30)
    async with engines.opened(settings) as database:
        decisions = OrderDecisions(database, now=lambda: NOW)
        deliveries = [created([an_item(sku, 1)], offset=n) for n in range(200)]
        answers = await asyncio.gather(*map(decisions.accept, deliveries))
    processing = [event for (event,) in answers if event.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING]
    refused = [event for (event,) in answers if event not in processing]
    assert len(processing) == 50
    assert {event.order_rejected.reason for event in refused} == {"OUT_OF_STOCK"}
    assert await level(stock, sku) == StockLevel(sku, 0, 50, 0, {})


async def test_orders_of_the_same_skus_in_any_order_do_not_block_each_other(
    database_settings: DatabaseSettings, stock: Stock
) -> None:
    skus = [a_sku() for _ in range(8)]
    for sku in skus:
        await stock.set_available(sku, 1000)
    url = database_settings.url.get_secret_value()
    settings = engines.database_settings(url, pool_size=20, connect_timeout=30, command_timeout=30)
    dice = random.Random(1)
    async with engines.opened(settings) as database:
        decisions = OrderDecisions(database, now=lambda: NOW)
        orders = [created([an_item(sku, 1) for sku in dice.sample(skus, 6)]) for _ in range(100)]
        answers = await asyncio.gather(*map(decisions.accept, orders))  # a deadlock would be a DependencyDown
    assert {event.type for (event,) in answers} == {OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING}
    assert sum([(await level(stock, sku)).held for sku in skus]) == 600
