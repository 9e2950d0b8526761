"""How many statements the transactions of an order take: each is a round trip that both sides wait and work for."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from domain.records import Delivery
from orderflow.orders.v1.order_pb2 import NotificationChannel
from settings import DatabaseSettings
from storage.database import Database
from storage.notification_intents import NotificationIntents
from storage.order_decisions import OrderDecisions
from storage.outcomes import Settled
from storage.payment_decisions import PaymentDecisions
from storage.stock import Stock
from tests import engines
from tests.builders import NOW, a_delivery, a_group, a_sku, an_item, an_order, emitted_for, order_created


class Statements:
    """Notes what is sent to a database that has one connection."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._sent: list[str] = []

    async def listen(self) -> None:
        async with self.database.connection() as connection:
            connection.add_query_logger(lambda sent: self._sent.append(sent.query))

    def told(self) -> str:
        """The first word of each statement since the last call."""
        words = [query.split(maxsplit=1)[0].strip(";") for query in self._sent]
        self._sent.clear()
        return " ".join(words).lower()


@pytest.fixture
async def statements(database_settings: DatabaseSettings) -> AsyncIterator[Statements]:
    async with engines.opened(database_settings.model_copy(update={"pool_size": 1})) as database:
        statements = Statements(database)
        await statements.listen()
        yield statements


@pytest.fixture
async def sku(database: Database) -> str:
    sku = a_sku()
    await Stock(database).set_available(sku, 100)
    await Stock(database).set_price(sku, "EUR", 500)
    return sku


def created(sku: str, *, request_id: str = "") -> Delivery:
    items = [an_item(sku, 1, 500)]
    event = order_created(an_order(items=items), items=items, request_id=request_id, caller=a_group())
    return a_delivery(event, group="order-processor")


async def processing(statements: Statements, sku: str, count: int) -> list[Delivery]:
    """Places orders. Returns their ORDER_PROCESSING. After it asyncpg has looked up all types."""
    orders = OrderDecisions(statements.database, now=lambda: NOW)
    placed = await asyncio.gather(*(orders.accept(created(sku, request_id="req-1")) for _ in range(count)))
    statements.told()
    return [a_delivery(event, group="payment-processor", offset=offset) for offset, [event] in enumerate(placed)]


async def test_an_order_is_accepted(statements: Statements, sku: str) -> None:
    await processing(statements, sku, 1)
    orders = OrderDecisions(statements.database, now=lambda: NOW)
    delivery = created(sku, request_id="req-1")
    # The order, who is forgotten, the request, the stock that there is, what is held of it, the order, the outcome.
    assert await orders.accept(delivery)
    assert statements.told() == "begin insert select insert select with with insert commit"
    assert await orders.accept(created(sku))
    assert statements.told() == "begin insert select select with with insert commit"
    assert await orders.accept(delivery)
    assert statements.told() == "begin insert insert rollback select", "a replay, which meets its outcome"


async def test_a_charge_is_intended_and_booked(statements: Statements, sku: str) -> None:
    payments = PaymentDecisions(statements.database, now=lambda: NOW)
    one, other, declined = await processing(statements, sku, 3)
    await asyncio.gather(*map(payments.intend, (one, other, declined)))
    assert statements.told() == "select with", "what is due, and the intents"
    await payments.intend(one)
    assert statements.told() == "select with begin select select update commit", "what was intended, under its lock"
    # The orders' rows are locked and moved; the payment; the outcome; the stock.
    assert await payments.captured(one, gateway_reference=f"ch-{one.event.order.order_id}")
    assert statements.told() == "begin with with insert with commit"
    await asyncio.gather(
        payments.captured(other, gateway_reference=f"ch-{other.event.order.order_id}"),
        payments.declined(declined, reason="no_money", gateway_reference=f"ch-{declined.event.order.order_id}"),
    )
    assert statements.told() == "begin with with update insert with commit"


async def test_an_e_mail_is_told(statements: Statements, sku: str) -> None:
    intents = NotificationIntents(statements.database, NotificationChannel.NOTIFICATION_CHANNEL_EMAIL)
    orders = await processing(statements, sku, 4)
    first, *others = [a_delivery(each.event, group="notification-email") for each in orders]
    assert await intents.intend(first, message_id="<1>") is True
    await intents.decide(first, emitted_for(first))
    statements.told()
    assert await asyncio.gather(*(intents.intend(each, message_id="<1>") for each in others)) == [True] * 3
    assert statements.told() == "with insert", "what is known, and the intents"
    await asyncio.gather(*(intents.decide(each, emitted_for(each)) for each in others[:2]))
    assert statements.told() == "select insert", "who was erased, and the outcomes"
    await intents.decide(others[2], None)
    assert statements.told() == "insert", "nothing is told of anybody"
    assert await intents.intend(first, message_id="<1>") == Settled([emitted_for(first)])
    assert statements.told() == "with"
    await intents.decide(first, None)
    assert statements.told() == "insert select", "a replay, which meets its outcome"
