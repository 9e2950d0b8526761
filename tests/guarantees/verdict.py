"""Decides which records a group has to refuse. Written from the contract, with generated protobuf code alone.

It shares no code with the product, so that a fault of the product's own checks shows.
"""

import dataclasses
import datetime
import re
import uuid
from collections.abc import Sequence
from typing import Final, Literal

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import NotificationChannel, Order, OrderStatus, PaymentStatus

Header = tuple[str, bytes | None]
Judgement = Literal["must", "may", "must not"]

T: Final = OrderEventType
_PAYMENTS: Final = {T.ORDER_EVENT_TYPE_ORDER_PAID, T.ORDER_EVENT_TYPE_PAYMENT_FAILED}
_PAYMENTS_TOPIC: Final = _PAYMENTS | {T.ORDER_EVENT_TYPE_PAYMENT_REFUNDED}
_NOTIFICATIONS_TOPIC: Final = {T.ORDER_EVENT_TYPE_NOTIFICATION_SENT, T.ORDER_EVENT_TYPE_NOTIFICATION_FAILED}
_YEAR_10000: Final = 253_402_300_800
_MOST_MINOR: Final = 10**15
_MOST_INT32: Final = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a record stands."""

    topic: str
    partition: int
    offset: int


@dataclasses.dataclass(frozen=True)
class Record:
    """What was written. `timestamp` None leaves it to the producer."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...] = ()
    timestamp: int | None = None
    kind: str = ""


def origin(record: Record, at: Place, retry_topics: Sequence[str]) -> Place:
    """Returns where a group takes the record to come from: on a retry topic, where its headers say."""
    if record.topic not in retry_topics:
        return at
    told = {name: value for name, value in record.headers if value}
    try:
        if not re.fullmatch(rb"[A-Za-z0-9._-]{1,249}", told["retry_origin_topic"]):
            return at
        claimed = Place(
            told["retry_origin_topic"].decode(),
            _number(told["retry_origin_partition"], _MOST_INT32),
            _number(told["retry_origin_offset"]),
        )
        _number(told["retry_origin_timestamp"])
        for name, most in (("attempts", _MOST_INT32), ("tier", _MOST_INT32), ("replay", _MOST_INT32 - 1)):
            _number(told[f"retry_{name}"], most)
        if "retry_first_failure_time" in told:
            text = told["retry_first_failure_time"].decode()
            datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
    except (KeyError, ValueError, OverflowError):
        return at
    return claimed


def _number(text: bytes, most: int = 10**18) -> int:
    if not re.fullmatch(rb"[0-9]{1,18}", text) or int(text) > most:
        raise ValueError(text)
    return int(text)


def unreadable(record: Record, topic: str) -> str | None:
    """Returns why nobody who reads the record, which comes from `topic`, can take it for an event; None if they can."""
    if not record.value:
        return "no value"
    try:
        event = OrderEvent.FromString(record.value)
    except DecodeError:
        return "no OrderEvent"
    order = event.order
    if not _is_id(event.event_id) or not _is_id(order.order_id):
        return "an id is no UUID as the contract writes it"
    if record.key != order.order_id.encode():
        return "the key is not the order's id"
    if event.type not in T.values() or event.type == T.ORDER_EVENT_TYPE_UNSPECIFIED:
        return "the type is not known"
    home = "notifications" if event.type in _NOTIFICATIONS_TOPIC else "orders"
    if topic != ("payments" if event.type in _PAYMENTS_TOPIC else home):
        return "the type belongs on another topic"
    if not all(map(_is_time, (event.occur_time, order.create_time, order.update_time, order.expire_time))):
        return "a time is on no calendar"
    if event.revision < 0 or order.revision < 0:
        return "a revision below 0"
    if order.status not in OrderStatus.values() or order.payment_status not in PaymentStatus.values():
        return "the status is not known"
    stored = (order.user_id, order.failure_reason, event.metadata.caller, *(item.sku for item in order.items))
    if any("\0" in text for text in (*stored, event.order_created.caller, event.order_created.request_id)):
        return "a NUL, which PostgreSQL cannot hold"
    return None


def judge(record: Record, topic: str, group: str, known: set[str], real: set[bytes]) -> Judgement:
    """Returns whether the group has to dead-letter the record, which comes from `topic`.

    `known` are the ids of the orders that were placed, `real` the values that the system itself wrote. What can be
    read and is not real is odd: whether a group can do its work with it is the group's to say.
    """
    if unreadable(record, topic):
        return "must"
    assert record.value is not None
    event = OrderEvent.FromString(record.value)
    if group == "order-processor" and event.type == T.ORDER_EVENT_TYPE_ORDER_CREATED and no_new_order(event):
        return "must"
    if (
        group == "payment-processor"
        and event.type == T.ORDER_EVENT_TYPE_ORDER_PROCESSING
        and event.order.order_id not in known
    ):
        return "must"  # nobody ever placed it
    return "must not" if record.value in real else "may"


def no_new_order(event: OrderEvent) -> str | None:
    """Returns why an ORDER_CREATED tells of no order that the server would take; None if it does."""
    order = event.order
    if event.WhichOneof("details") != "order_created" or not event.order_created.caller:
        return "no details"
    if (event.revision, order.revision, order.status) != (1, 1, OrderStatus.ORDER_STATUS_CREATED):
        return "not new"
    if not all(0 < time.seconds < _YEAR_10000 for time in (order.create_time, order.update_time, order.expire_time)):
        return "a time is missing"
    if not (_is_line(order.user_id, 128) and order.user_id and _is_line(order.payment_method, 128)):
        return "who, or how to pay"
    if not order.payment_method or not _is_line(order.external_reference, 128):
        return "how to pay, or the reference"
    if not order.email and not order.phone:
        return "nobody to tell"
    if order.email and not re.fullmatch(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]+", order.email):
        return "e-mail"
    if order.phone and not re.fullmatch(r"\+[1-9][0-9]{6,14}", order.phone):
        return "phone"
    if order.language and not re.fullmatch(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,3}", order.language):
        return "language"
    channels = set(NotificationChannel.values()) - {0}
    if len(set(order.muted_channels)) < len(order.muted_channels) or not set(order.muted_channels) <= channels:
        return "channels"
    return _no_items(order)


def _no_items(order: Order) -> str | None:
    if not 1 <= len(order.items) <= 100 or len({item.sku for item in order.items}) < len(order.items):
        return "lines"
    for item in order.items:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", item.sku) or not 1 <= item.quantity <= 10_000:
            return "SKU or quantity"
        if not item.HasField("unit_price") or not 0 <= item.unit_price.amount_minor <= _MOST_MINOR:
            return "price"
        if not re.fullmatch("[A-Z]{3}", item.unit_price.currency_code):
            return "currency"
        if item.unit_price.currency_code != order.items[0].unit_price.currency_code:
            return "two currencies"
    total = sum(item.quantity * item.unit_price.amount_minor for item in order.items)
    if not 1 <= total <= _MOST_MINOR or order.total.amount_minor != total:
        return "total"
    return None if order.total.currency_code == order.items[0].unit_price.currency_code else "currency of the total"


def _is_line(text: str, most: int) -> bool:
    return len(text) <= most and all(ord(each) >= 32 and not 127 <= ord(each) < 160 for each in text)


def _is_time(time: Timestamp) -> bool:
    return 0 <= time.seconds < _YEAR_10000 and 0 <= time.nanos < 10**9


def _is_id(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
