"""What is ordered: requests, and the ORDER_CREATED records that the server would make of them."""

import datetime
import uuid
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

from aiokafka import AIOKafkaProducer

from domain import events
from domain.identifiers import request_fingerprint
from domain.orders import etag_of, new_order
from messaging import clients, envelope
from messaging.envelope import OutgoingRecord
from orderflow.events.v1.order_event_pb2 import OrderCreatedDetails, OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import LineItem, Money, Order
from orderflow.orders.v1.order_service_pb2 import CreateOrderRequest
from settings import KafkaSettings

CALLER: Final = "local"
"""Whose the orders are: that of everybody who calls on loopback without credentials."""

SKUS: Final = ("BENCH-ALL", *(f"BENCH-{number}" for number in range(100)))
"""What is in stock."""
BASKETS: Final = tuple((SKUS[0], sku) for sku in SKUS[1:])
"""What orders are for, in turns: one unit of the SKU that all want, and two of one that few want."""
UNITS: Final = 10**12
EVENTS_TOLD: Final = 3
"""Of each order that is paid or declined: ORDER_CREATED, ORDER_PROCESSING and what came of the charge."""
_TIME_TO_PAY: Final = datetime.timedelta(hours=24)


def request(number: int, *, request_id: str = "", baskets: Sequence[Sequence[str]] = BASKETS) -> CreateOrderRequest:
    """Returns an order of one of a hundred users, in turns: one unit of a basket's first SKU, two of its second."""
    basket = baskets[number % len(baskets)]
    return CreateOrderRequest(
        request_id=request_id,
        user_id=f"user-{number % 100}",
        email=f"user-{number % 100}@example.com",
        payment_method="pm_card_visa",
        items=[_item(*each) for each in zip(basket, (1, 2), (500, 1999), strict=False)],
    )


def _item(sku: str, quantity: int, amount_minor: int) -> LineItem:
    return LineItem(sku=sku, quantity=quantity, unit_price=Money(currency_code="EUR", amount_minor=amount_minor))


def requests(count: int, *, first: int = 0) -> Iterator[CreateOrderRequest]:
    """Yields so many orders, each with a request_id of its own."""
    for number in range(first, first + count):
        yield request(number, request_id=f"bench-{number:012}")


def is_declined(order_id: str) -> bool:
    """Whether the simulated gateway declines the order: one in fifty."""
    return zlib.crc32(order_id.encode()) % 50 == 0


def ends_as(order_id: str) -> OrderEventType:
    """Returns the event that the order has to end with."""
    if is_declined(order_id):
        return OrderEventType.ORDER_EVENT_TYPE_PAYMENT_FAILED
    return OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID


class Placed:
    """ORDER_CREATED as the server makes it, without request_id. Only what differs is made anew for each."""

    def __init__(self, *, baskets: Sequence[Sequence[str]] = BASKETS) -> None:
        now = datetime.datetime.now(datetime.UTC)
        self._templates: list[OrderEvent] = []
        for number in range(100):
            wanted = request(number, baskets=baskets)
            order = new_order(wanted, order_id=str(uuid.uuid4()), now=now, time_to_pay=_TIME_TO_PAY)
            details = OrderCreatedDetails(caller=CALLER, request_fingerprint=request_fingerprint(wanted))
            self._templates.append(events.order_created(order, details=details, correlation_id=order.order_id))

    def order(self, number: int) -> Order:
        """Returns another order."""
        order = Order()
        order.CopyFrom(self._templates[number % len(self._templates)].order)
        order.order_id = str(uuid.uuid4())
        order.etag = etag_of(order.order_id, 1)
        return order

    def record(self, number: int) -> OutgoingRecord:
        """Returns the record of another order."""
        template = self._templates[number % len(self._templates)]
        order = self.order(number)
        return envelope.encode(
            events.order_created(order, details=template.order_created, correlation_id=order.order_id)
        )


async def preload(kafka: KafkaSettings, count: int, *, baskets: Sequence[Sequence[str]] = BASKETS) -> set[str]:
    """Puts so many orders on the topic and returns their ids."""
    placed, ids = Placed(baskets=baskets), set[str]()
    producer = clients.idempotent_producer(kafka, client_id="bench")
    await producer.start()
    try:
        for begin in range(0, count, _AT_ONCE):
            records = [placed.record(number) for number in range(begin, min(begin + _AT_ONCE, count))]
            ids.update(record.key.decode() for record in records if record.key is not None)
            await send(producer, records)
    finally:
        await producer.stop()
    return ids


_AT_ONCE: Final = 1_000


async def send(producer: AIOKafkaProducer, records: Sequence[OutgoingRecord], *, topic: str | None = None) -> None:
    """Sends records and waits until Kafka has acknowledged them all; to another topic if given."""
    acknowledged = [
        await producer.send(topic or each.topic.name, key=each.key, value=each.value, headers=each.headers)
        for each in records
    ]
    for each in acknowledged:
        await each
