"""Commands: what somebody asks of an order, what is a valid one, and when it is refused."""

import datetime
import re
from collections.abc import Iterator
from typing import Final

from domain import lifecycle
from domain.lifecycle import AlreadyApplied, Applied, IllegalTransitionError
from domain.money import MAX_AMOUNT_MINOR, is_currency
from domain.validation import Violation, request_id_violations, text_violations
from orderflow.events.v1.order_event_pb2 import (
    OrderCancelRequestedDetails,
    OrderEvent,
    OrderRefundRequestedDetails,
    OrderShipRequestedDetails,
)
from orderflow.events.v1.order_event_pb2 import OrderEventType as E
from orderflow.orders.v1.order_pb2 import Order, OrderStatus, PaymentStatus

LEADS_TO: Final = {
    E.ORDER_EVENT_TYPE_ORDER_CANCEL_REQUESTED: E.ORDER_EVENT_TYPE_ORDER_CANCELLED,
    E.ORDER_EVENT_TYPE_ORDER_SHIP_REQUESTED: E.ORDER_EVENT_TYPE_ORDER_SHIPPED,
    E.ORDER_EVENT_TYPE_ORDER_COMPLETE_REQUESTED: E.ORDER_EVENT_TYPE_ORDER_COMPLETED,
    E.ORDER_EVENT_TYPE_ORDER_EXPIRY_REQUESTED: E.ORDER_EVENT_TYPE_ORDER_EXPIRED,
    E.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED: E.ORDER_EVENT_TYPE_PAYMENT_REFUNDED,
}
"""Command -> the lifecycle event that it asks for."""

DEFAULT_CANCEL_REASON: Final = "CUSTOMER_REQUEST"
FOR_SYSTEM: Final = frozenset((E.ORDER_EVENT_TYPE_ORDER_EXPIRY_REQUESTED, E.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED))
"""Commands that the system gives by itself: it gives no other."""
FOR_OPERATORS: Final = frozenset(
    (
        E.ORDER_EVENT_TYPE_ORDER_SHIP_REQUESTED,
        E.ORDER_EVENT_TYPE_ORDER_COMPLETE_REQUESTED,
        E.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED,
    )
)
"""Commands that an order's owner alone may not give."""
OPERATOR_SCOPES: Final = frozenset(("orders:operate", "orders:admin"))
"""Who has one of them may ask something of everybody's orders."""

_DETAILS: Final = {
    E.ORDER_EVENT_TYPE_ORDER_CANCEL_REQUESTED: "order_cancel_requested",
    E.ORDER_EVENT_TYPE_ORDER_SHIP_REQUESTED: "order_ship_requested",
    E.ORDER_EVENT_TYPE_ORDER_COMPLETE_REQUESTED: "order_complete_requested",
    E.ORDER_EVENT_TYPE_ORDER_EXPIRY_REQUESTED: "order_expiry_requested",
    E.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED: "order_refund_requested",
}
_CHARGE_OPEN: Final = (PaymentStatus.PAYMENT_STATUS_PENDING, PaymentStatus.PAYMENT_STATUS_UNKNOWN)
_REASON: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_MOST_ETAG: Final = 64
_MOST_REPORT_ID: Final = 128


class CommandRefused(Exception):
    """The order does not do what was asked, and stays as it is.

    `reason` is UPPER_SNAKE: ORDER_NOT_FOUND, ETAG_MISMATCH, ILLEGAL_TRANSITION or one of its kind. `status` is where
    the order stands, UNSPECIFIED where that is not to be told.
    """

    def __init__(self, reason: str, status: OrderStatus = OrderStatus.ORDER_STATUS_UNSPECIFIED) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


def violations_of_command(event: OrderEvent) -> list[Violation]:
    """Returns everything that is wrong with a command; fields are named as in the requests of the API."""
    return list(_violations(event))


def violations_of_report(event: OrderEvent) -> list[Violation]:
    """Returns everything that is wrong with a PAYMENT_REPORTED, which asks for a look-up and is answered to nobody."""
    if event.WhichOneof("details") != "payment_reported" or not event.HasField("command"):
        return [Violation("details", "must be those of the report")]
    if not is_systems(event):
        return [Violation("caller", "must be empty: nobody reports but the system")]
    return list(text_violations("report_id", event.payment_reported.report_id, most=_MOST_REPORT_ID, required=True))


def check(event: OrderEvent, order: Order, *, owner: str) -> Applied | AlreadyApplied:
    """Returns what the command does to the order, which `owner` placed.

    Whether a refund that the system asks for is due is for who knows the order's payment to tell.

    Raises:
        CommandRefused: nothing; the reason says why.
    """
    if not _may_ask(event, owner):
        raise CommandRefused("ORDER_NOT_FOUND")
    if event.command.etag and event.command.etag != order.etag:
        raise CommandRefused("ETAG_MISMATCH", order.status)
    try:
        applied = lifecycle.apply(order.status, LEADS_TO[event.type])
    except IllegalTransitionError:
        raise _illegal(order) from None
    if isinstance(applied, AlreadyApplied) and not _says_the_same(event, order):
        raise _illegal(order)
    if _is_refund_of_called_off(event, order) and not is_systems(event):
        raise _illegal(order)  # what was captured is refunded without being asked for
    return applied


def carry_out(event: OrderEvent, order: Order, *, now: datetime.datetime) -> None:
    """Changes the order as a command of the order processor asks for, which `check` has let through."""
    match event.type:
        case E.ORDER_EVENT_TYPE_ORDER_CANCEL_REQUESTED:
            order.failure_reason = event.order_cancel_requested.reason
        case E.ORDER_EVENT_TYPE_ORDER_SHIP_REQUESTED:
            asked = event.order_ship_requested
            order.shipment.carrier, order.shipment.tracking_code = asked.carrier, asked.tracking_code
            order.shipment.ship_time.FromDatetime(now)
    order.status = lifecycle.TRANSITIONS[order.status, LEADS_TO[event.type]]
    if order.status in lifecycle.CALLED_OFF and order.payment_status in _CHARGE_OPEN:
        order.payment_status = PaymentStatus.PAYMENT_STATUS_NONE


def add_refund(order: Order, amount_minor: int) -> bool:
    """Adds a refund to what was given back of the order's total. Returns whether nothing is left of it."""
    order.refunded.currency_code = order.total.currency_code
    order.refunded.amount_minor += amount_minor
    whole = order.refunded.amount_minor >= order.total.amount_minor
    if whole:
        order.payment_status = PaymentStatus.PAYMENT_STATUS_REFUNDED
        order.status = lifecycle.TRANSITIONS[order.status, E.ORDER_EVENT_TYPE_PAYMENT_REFUNDED]
    else:
        order.payment_status = PaymentStatus.PAYMENT_STATUS_PARTIALLY_REFUNDED
    return whole


def is_systems(event: OrderEvent) -> bool:
    """Whether the command is the system's own: nobody waits for its answer."""
    return not event.metadata.caller


def _may_ask(event: OrderEvent, owner: str) -> bool:
    """Kafka is a border: what the server lets nobody ask is not done because it stands on the topic."""
    if is_systems(event):
        return event.type in FOR_SYSTEM
    if not OPERATOR_SCOPES.isdisjoint(event.command.scopes):
        return event.type != E.ORDER_EVENT_TYPE_ORDER_EXPIRY_REQUESTED
    return event.metadata.caller == owner and event.type not in FOR_OPERATORS | FOR_SYSTEM


def _says_the_same(event: OrderEvent, order: Order) -> bool:
    """Whether what has been applied is what is asked for."""
    if event.type == E.ORDER_EVENT_TYPE_ORDER_SHIP_REQUESTED:
        asked = event.order_ship_requested
        return (asked.carrier, asked.tracking_code) == (order.shipment.carrier, order.shipment.tracking_code)
    return event.type != E.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED  # one more refund is not the one before


def _is_refund_of_called_off(event: OrderEvent, order: Order) -> bool:
    return event.type == E.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED and order.status in lifecycle.CALLED_OFF


def _illegal(order: Order) -> CommandRefused:
    return CommandRefused("ILLEGAL_TRANSITION", order.status)


def _violations(event: OrderEvent) -> Iterator[Violation]:
    if event.WhichOneof("details") != _DETAILS[event.type] or not event.HasField("command"):
        yield Violation("details", "must be those of the command")
        return
    yield from request_id_violations(event.command.request_id)
    yield from text_violations("etag", event.command.etag, most=_MOST_ETAG)
    match event.type:
        case E.ORDER_EVENT_TYPE_ORDER_CANCEL_REQUESTED:
            yield from _cancel_violations(event.order_cancel_requested)
        case E.ORDER_EVENT_TYPE_ORDER_SHIP_REQUESTED:
            yield from _ship_violations(event.order_ship_requested)
        case E.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED:
            yield from _refund_violations(event.order_refund_requested)


def _cancel_violations(details: OrderCancelRequestedDetails) -> Iterator[Violation]:
    if not _REASON.fullmatch(details.reason):
        yield Violation("reason", "must be 1 to 64 of A-Z, 0-9 and '_', a letter first")


def _ship_violations(details: OrderShipRequestedDetails) -> Iterator[Violation]:
    yield from text_violations("carrier", details.carrier, most=64, required=True)
    yield from text_violations("tracking_code", details.tracking_code, most=128)


def _refund_violations(details: OrderRefundRequestedDetails) -> Iterator[Violation]:
    if details.HasField("amount"):
        if not is_currency(details.amount.currency_code):
            yield Violation("amount.currency_code", "must be an ISO 4217 code such as EUR")
        if not 1 <= details.amount.amount_minor <= MAX_AMOUNT_MINOR:
            yield Violation("amount.amount_minor", f"must be 1 to {MAX_AMOUNT_MINOR}")
    if details.reason and not _REASON.fullmatch(details.reason):
        yield Violation("reason", "must be at most 64 of A-Z, 0-9 and '_', a letter first")
