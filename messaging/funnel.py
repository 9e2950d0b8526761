"""What a record that Kafka has acknowledged counts as: the end of its span, an event, a step of its order, money."""

from typing import Final

from domain.lifecycle import LIFECYCLE, SETTLED
from domain.money import is_currency
from messaging import envelope
from messaging.envelope import OutgoingRecord
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import Money, OrderStatus
from telemetry import metrics

_STATUSES: Final = {number: name.removeprefix("ORDER_STATUS_") for name, number in OrderStatus.items()}
_FIRST_SETTLED: Final = 3
"""The highest revision at which an order is settled for the first time."""


def acknowledged(record: OutgoingRecord) -> None:
    """Ends the record's span, and counts it and what it carries."""
    record.span.end()
    metrics.of(metrics.SENT, "kafka", "send", record.topic.name).inc()
    if record.event is not None:
        _count(record.event)


def _count(event: OrderEvent) -> None:
    metrics.of(metrics.ORDER_EVENTS, envelope.type_name(event.type)).inc()
    if event.type not in LIFECYCLE:
        return
    status = _STATUSES.get(event.order.status, "UNSPECIFIED")
    if event.type == OrderEventType.ORDER_EVENT_TYPE_PAYMENT_REFUNDED:
        refunded = event.payment_refunded.amount
        metrics.of(metrics.REFUNDED, _currency(refunded)).inc(refunded.amount_minor)
        if event.order.status != OrderStatus.ORDER_STATUS_REFUNDED:
            return  # in part, or of a cancelled order: it stays what it was
    metrics.of(metrics.ORDERS, status).inc()
    metrics.of(metrics.AMOUNTS, status, _currency(event.order.total)).inc(event.order.total.amount_minor)
    if event.order.status in SETTLED and event.revision <= _FIRST_SETTLED:
        seconds = event.occur_time.ToNanoseconds() - event.order.create_time.ToNanoseconds()
        metrics.of(metrics.SETTLING, status).observe(max(seconds, 0) / 1e9)


def _currency(money: Money) -> str:
    # Orders have one of the list; whatever stands in a record must not make a label.
    return money.currency_code if is_currency(money.currency_code) else "other"
