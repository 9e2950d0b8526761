"""What records that Kafka has acknowledged count as: the end of a span, an event, a step of an order, money."""

from collections.abc import Iterable
from typing import Final

from domain.lifecycle import LIFECYCLE, SETTLED
from domain.money import is_currency
from messaging import envelope
from messaging.envelope import OutgoingRecord
from orderflow.events.v1.order_event_pb2 import ORDER_EVENT_TYPE_PAYMENT_REFUNDED, OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import ORDER_STATUS_REFUNDED, OrderStatus
from telemetry import metrics

_STATUSES: Final = {number: name.removeprefix("ORDER_STATUS_") for name, number in OrderStatus.items()}
_FIRST_SETTLED: Final = 3
"""The highest revision at which an order is settled for the first time."""


def acknowledged(records: Iterable[OutgoingRecord]) -> None:
    """Ends the records' spans, and counts them and what they carry."""
    alike: dict[tuple[str, OrderEventType | None, OrderStatus | None, str], tuple[int, int]] = {}
    for record in records:
        record.span.end()
        event_type, status, currency, amount = None, None, "", 0
        if (event := record.event) is not None:
            event_type = event.type
            if event_type in LIFECYCLE and _is_a_step(event):
                order = event.order
                total = order.total
                status, currency, amount = order.status, total.currency_code, total.amount_minor
        key = record.topic.name, event_type, status, currency
        count, sum_ = alike.get(key, (0, 0))
        alike[key] = count + 1, sum_ + amount
    for (topic, event_type, status, currency), (count, sum_) in alike.items():
        metrics.of(metrics.SENT, "kafka", "send", topic).inc(count)
        if event_type is not None:
            metrics.of(metrics.ORDER_EVENTS, envelope.type_name(event_type)).inc(count)
        if status is not None:
            name = _name(status)
            metrics.of(metrics.ORDERS, name).inc(count)
            metrics.of(metrics.AMOUNTS, name, _currency(currency)).inc(sum_)


def _is_a_step(event: OrderEvent) -> bool:
    """Tells whether its order came to another status. Counts what single events tell: refunds, time until settled."""
    if event.type == ORDER_EVENT_TYPE_PAYMENT_REFUNDED:
        refunded = event.payment_refunded.amount
        metrics.of(metrics.REFUNDED, _currency(refunded.currency_code)).inc(refunded.amount_minor)
        # In part, or of a cancelled order: it stays what it was.
        return event.order.status == ORDER_STATUS_REFUNDED
    if event.order.status in SETTLED and event.revision <= _FIRST_SETTLED:
        seconds = (event.occur_time.ToNanoseconds() - event.order.create_time.ToNanoseconds()) / 1e9
        metrics.of(metrics.SETTLING, _name(event.order.status)).observe(max(seconds, 0.0))
    return True


def _name(status: OrderStatus) -> str:
    return _STATUSES.get(status, "UNSPECIFIED")


def _currency(code: str) -> str:
    # Orders have one of the list; whatever stands in a record must not make a label.
    return code if is_currency(code) else "other"
