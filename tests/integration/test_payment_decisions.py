"""What the payment processor intends and books (semantics 15, 19, 20, 22 and 27)."""

import asyncio
import datetime

import pytest

from domain.failures import Transient
from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderEventType
from orderflow.orders.v1.order_pb2 import Money, Order, OrderStatus, PaymentStatus
from storage import order_rows
from storage import stock as stock_rows
from storage.database import Database
from storage.order_decisions import OrderDecisions
from storage.outcomes import Settled
from storage.payment_decisions import ChargeIntent, PaymentDecisions
from storage.stock import Stock, StockLevel
from tests import engines
from tests.builders import NOW, a_delivery, a_sku, an_item, an_order, order_created

E = OrderEventType
GROUP = "payment-processor"


class Bench:
    """An order that waits for its payment: three units at 5.00, of ten."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = NOW
        self.decisions = PaymentDecisions(database, now=lambda: self.now)
        self.sku = a_sku()

    async def begin(self) -> None:
        await Stock(self.database).set_available(self.sku, 10)
        created = order_created(an_order(items=[an_item(self.sku, 3, 500)]), items=[an_item(self.sku, 3, 500)])
        accepted = await OrderDecisions(self.database, now=lambda: NOW).accept(
            a_delivery(created, group="order-processor")
        )
        self.event = accepted[0]
        self.order_id = self.event.order.order_id
        self.delivery = self.at(offset=7)

    def at(self, *, offset: int) -> Delivery:
        return a_delivery(self.event, group=GROUP, offset=offset)

    async def row(self) -> Order:
        async with self.database.connection() as connection:
            order = await order_rows.find(connection, self.order_id)
        assert order is not None
        return order

    async def cancel(self) -> None:
        async with self.database.transaction() as connection:
            move = order_rows.Move(E.ORDER_EVENT_TYPE_ORDER_CANCELLED, PaymentStatus.PAYMENT_STATUS_NONE)
            moved = await order_rows.move_all(connection, {self.order_id: move}, now=self.now)
            await stock_rows.give_back(connection, moved[self.order_id].order.items)

    async def level(self) -> StockLevel:
        (level,) = await Stock(self.database).levels(self.sku)
        return level

    async def payment(self) -> dict[str, object]:
        (row,) = await engines.fetch(self.database, "select * from payments where order_id = $1", self.order_id)
        return row

    async def entries(self) -> list[tuple[object, ...]]:
        rows = await engines.fetch(
            self.database,
            "select kind, amount_minor, currency_code, gateway_reference from payment_entries where order_id = $1",
            self.order_id,
        )
        return [tuple(row.values()) for row in rows]

    async def intend(self) -> ChargeIntent:
        intent = await self.decisions.intend(self.delivery)
        assert isinstance(intent, ChargeIntent)
        return intent


@pytest.fixture
async def bench(database: Database) -> Bench:
    bench = Bench(database)
    await bench.begin()
    return bench


async def test_an_intent_is_of_the_row_and_remembers_its_first_send(bench: Bench) -> None:
    bench.event.order.total.amount_minor = 1
    intent = await bench.intend()
    assert intent.amount == Money(currency_code="EUR", amount_minor=1500)
    assert intent.payment_method == "pm_card_visa"
    assert intent.first_send_time is None, "nothing was sent before this"
    bench.now += datetime.timedelta(hours=5)
    again = await bench.intend()
    assert again.idempotency_key == intent.idempotency_key
    assert again.first_send_time == NOW
    assert (await bench.payment())["state"] == "intended"


async def test_what_was_not_sent_does_not_count_as_sent(bench: Bench) -> None:
    await bench.decisions.not_sent(await bench.intend())
    bench.now += datetime.timedelta(days=9)
    assert (await bench.intend()).first_send_time is None
    assert (await bench.intend()).first_send_time == bench.now


async def test_a_zombies_refused_send_does_not_erase_the_send_of_its_successor(bench: Bench) -> None:
    zombies = await bench.intend()
    await bench.decisions.not_sent(zombies)
    bench.now += datetime.timedelta(seconds=1)
    await bench.intend()
    await bench.decisions.not_sent(zombies)
    assert (await bench.intend()).first_send_time == bench.now


async def test_an_order_without_a_row_may_get_one(bench: Bench) -> None:
    with pytest.raises(Transient, match="ORDER_UNKNOWN"):
        await bench.decisions.intend(a_delivery(group=GROUP))


async def test_an_order_that_was_cancelled_is_not_charged(bench: Bench) -> None:
    await bench.cancel()
    assert await bench.decisions.intend(bench.delivery) == Settled([])
    assert await bench.decisions.intend(bench.delivery) == Settled([])
    assert await engines.fetch(bench.database, "select from payments where order_id = $1", bench.order_id) == []


async def test_an_intent_and_a_cancellation_at_once_come_one_after_the_other(bench: Bench) -> None:
    intended, _ = await asyncio.gather(bench.decisions.intend(bench.delivery), bench.cancel())
    rows = await engines.fetch(bench.database, "select from payments where order_id = $1", bench.order_id)
    assert len(rows) == (1 if isinstance(intended, ChargeIntent) else 0)
    assert await bench.decisions.intend(bench.delivery) == Settled([])


async def test_a_capture_pays_the_order_and_sells_its_stock(bench: Bench) -> None:
    await bench.intend()
    bench.now += datetime.timedelta(seconds=3)
    (event,) = await bench.decisions.captured(bench.delivery, gateway_reference="ch_1" + bench.order_id)
    assert event.type == E.ORDER_EVENT_TYPE_ORDER_PAID
    assert event.revision == event.order.revision == 3
    assert event.order.status == OrderStatus.ORDER_STATUS_PAID
    assert event.order.payment_status == PaymentStatus.PAYMENT_STATUS_CAPTURED
    assert event.order.update_time.ToDatetime(datetime.UTC) == bench.now
    assert event.order_paid.amount == event.order.total
    assert event.order_paid.gateway_reference == "ch_1" + bench.order_id
    assert event.metadata.causation_id == bench.event.event_id
    assert await bench.row() == event.order
    assert await bench.level() == StockLevel(bench.sku, 7, 0, 3, {})
    assert await bench.entries() == [("capture", 1500, "EUR", "ch_1" + bench.order_id)]
    assert (await bench.payment())["state"] == "captured"


async def test_settled_twice_is_settled_once(bench: Bench) -> None:
    await bench.intend()
    reference = "ch_" + bench.order_id
    paid = await bench.decisions.captured(bench.delivery, gateway_reference=reference)
    assert await bench.decisions.captured(bench.delivery, gateway_reference=reference) == paid
    assert await bench.decisions.declined(bench.delivery, reason="X", gateway_reference=reference) == paid
    assert await bench.decisions.intend(bench.delivery) == Settled(paid)
    assert await bench.decisions.intend(bench.at(offset=8)) == Settled([]), "a copy"
    assert await bench.decisions.captured(bench.at(offset=8), gateway_reference=reference) == []
    assert len(await bench.entries()) == 1
    assert await bench.level() == StockLevel(bench.sku, 7, 0, 3, {})


async def test_two_at_once_book_one_capture(bench: Bench) -> None:
    await bench.intend()
    answers = await asyncio.gather(
        *(bench.decisions.captured(bench.delivery, gateway_reference="ch_" + bench.order_id) for _ in range(5))
    )
    assert all(answer == answers[0] for answer in answers)
    assert len(answers[0]) == 1
    assert len(await bench.entries()) == 1
    assert await bench.level() == StockLevel(bench.sku, 7, 0, 3, {})


async def test_a_decline_gives_the_stock_back(bench: Bench) -> None:
    await bench.intend()
    (event,) = await bench.decisions.declined(bench.delivery, reason="EXPIRED_CARD", gateway_reference="ch_2")
    assert event.type == E.ORDER_EVENT_TYPE_PAYMENT_FAILED
    assert event.revision == 3
    assert event.order.status == OrderStatus.ORDER_STATUS_PAYMENT_FAILED
    assert event.order.payment_status == PaymentStatus.PAYMENT_STATUS_DECLINED
    assert event.order.failure_reason == event.payment_failed.reason == "EXPIRED_CARD"
    assert await bench.level() == StockLevel(bench.sku, 10, 0, 0, {})
    assert await bench.entries() == []
    assert (await bench.payment())["state"] == "declined"


async def test_a_capture_of_an_order_that_moved_is_booked_and_emits_nothing(bench: Bench) -> None:
    await bench.intend()
    await bench.cancel()
    assert await bench.decisions.captured(bench.delivery, gateway_reference="ch_" + bench.order_id) == []
    assert await bench.decisions.captured(bench.delivery, gateway_reference="ch_" + bench.order_id) == []
    row = await bench.row()
    assert (row.status, row.revision) == (OrderStatus.ORDER_STATUS_CANCELLED, 3)
    assert await bench.entries() == [("capture", 1500, "EUR", "ch_" + bench.order_id)]
    assert await bench.level() == StockLevel(bench.sku, 10, 0, 0, {}), "it was given back by the cancellation"


async def test_a_decline_of_an_order_that_moved_gives_nothing_back_twice(bench: Bench) -> None:
    await bench.intend()
    await bench.cancel()
    assert await bench.decisions.declined(bench.delivery, reason="X", gateway_reference="ch_3") == []
    assert await bench.level() == StockLevel(bench.sku, 10, 0, 0, {})


async def test_unknown_is_no_outcome_and_raises_no_revision(bench: Bench) -> None:
    intent = await bench.intend()
    await bench.decisions.unknown(bench.delivery)
    row = await bench.row()
    assert row.payment_status == PaymentStatus.PAYMENT_STATUS_UNKNOWN
    assert (row.status, row.revision) == (OrderStatus.ORDER_STATUS_PROCESSING, 2)
    assert (await bench.payment())["state"] == "unknown"
    await bench.decisions.not_sent(intent)
    assert (await bench.intend()).first_send_time == NOW, "it was sent, and stays so"
    (event,) = await bench.decisions.captured(bench.delivery, gateway_reference="ch_" + bench.order_id)
    assert event.revision == 3
    assert event.order.payment_status == PaymentStatus.PAYMENT_STATUS_CAPTURED


async def test_unknown_leaves_an_order_alone_that_moved(bench: Bench) -> None:
    await bench.intend()
    await bench.cancel()
    await bench.decisions.unknown(bench.delivery)
    assert (await bench.row()).payment_status == PaymentStatus.PAYMENT_STATUS_NONE
