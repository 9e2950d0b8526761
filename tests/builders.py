"""Orders, events and records for the tests, valid unless told otherwise."""

import datetime
import uuid
from collections.abc import Sequence
from typing import Any

from aiokafka import ConsumerRecord

from domain import events
from domain.commands import FOR_OPERATORS
from domain.identifiers import command_event_id, request_fingerprint
from domain.orders import new_order
from domain.records import Coordinates, Delivery
from messaging.envelope import Header
from orderflow.events.v1.order_event_pb2 import (
    CommandTerms,
    EventMetadata,
    NotificationSentDetails,
    OrderCreatedDetails,
    OrderEvent,
    OrderEventType,
)
from orderflow.orders.v1.order_pb2 import LineItem, Money, NotificationChannel, Order, OrderStatus, PaymentStatus
from orderflow.orders.v1.order_service_pb2 import CreateOrderRequest

NOW = datetime.datetime(2026, 3, 1, 12, 0, tzinfo=datetime.UTC)
CALLER = "shop"


def an_id() -> str:
    return str(uuid.uuid4())


def a_group() -> str:
    return f"group-{uuid.uuid4().hex[:12]}"


def a_sku() -> str:
    return f"SKU-{uuid.uuid4().hex[:12]}"


def an_item(sku: str = "SKU-1", quantity: int = 2, amount_minor: int = 1999, currency_code: str = "EUR") -> LineItem:
    return LineItem(
        sku=sku, quantity=quantity, unit_price=Money(currency_code=currency_code, amount_minor=amount_minor)
    )


def a_request(**fields: Any) -> CreateOrderRequest:
    defaults: dict[str, Any] = {
        "user_id": "user-1",
        "email": "carla.customer@example.com",
        "items": [an_item()],
        "payment_method": "pm_card_visa",
    }
    return CreateOrderRequest(**(defaults | fields))


def an_order(*, order_id: str | None = None, now: datetime.datetime = NOW, **fields: Any) -> Order:
    """Returns a new order; `fields` are those of the request."""
    return new_order(
        a_request(**fields), order_id=order_id or an_id(), now=now, time_to_pay=datetime.timedelta(hours=1)
    )


def order_created(
    order: Order | None = None, *, caller: str = CALLER, request_id: str = "", **fields: Any
) -> OrderEvent:
    """Returns the ORDER_CREATED as the server makes it."""
    request = a_request(**fields)
    order = order or an_order(**fields)
    details = OrderCreatedDetails(
        caller=caller, request_id=request_id, request_fingerprint=request_fingerprint(request)
    )
    return events.order_created(order, details=details, correlation_id=f"correlation-{order.order_id}")


def order_event(
    event_type: OrderEventType = OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING,
    order: Order | None = None,
    *,
    revision: int = 2,
    now: datetime.datetime = NOW,
    **fields: Any,
) -> OrderEvent:
    """Returns an event about an order that stands at `revision`, without details unless they are given."""
    about = Order()
    about.CopyFrom(order or an_order())
    about.revision = revision
    if event_type == OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING:
        about.status = OrderStatus.ORDER_STATUS_PROCESSING
        about.payment_status = PaymentStatus.PAYMENT_STATUS_PENDING
    event = OrderEvent(
        event_id=an_id(),
        type=event_type,
        order=about,
        revision=revision,
        metadata=EventMetadata(correlation_id="correlation", source="test", attempt=1, caller=CALLER),
        **fields,
    )
    event.occur_time.FromDatetime(now)
    return event


def a_delivery(
    event: OrderEvent | None = None,
    *,
    group: str = "test",
    topic: str = "orders",
    partition: int = 0,
    offset: int = 0,
    **fields: Any,
) -> Delivery:
    return Delivery(event or order_created(), group, Coordinates(topic, partition, offset), **fields)


def emitted_for(delivery: Delivery, *, provider_message_id: str = "") -> OrderEvent:
    """Returns what small handlers answer: a NOTIFICATION_SENT caused by the delivery."""
    details = NotificationSentDetails(
        channel=NotificationChannel.NOTIFICATION_CHANNEL_EMAIL,
        notified_type=delivery.event.type,
        provider_message_id=provider_message_id,
    )
    return events.notification_sent(delivery, details, now=NOW)


def a_record(
    value: bytes | None = b"value",
    *,
    key: bytes | None = b"key",
    topic: str = "orders",
    partition: int = 1,
    offset: int = 7,
    timestamp: int = 1_700_000_000_123,
    headers: Sequence[Header] = (),
) -> "ConsumerRecord[bytes | None, bytes | None]":
    return ConsumerRecord(
        topic=topic,
        partition=partition,
        offset=offset,
        timestamp=timestamp,
        timestamp_type=0,
        key=key,
        value=value,
        checksum=None,
        serialized_key_size=-1,
        serialized_value_size=-1,
        headers=tuple(headers),
    )


_COMMANDS = {
    "cancel": (OrderEventType.ORDER_EVENT_TYPE_ORDER_CANCEL_REQUESTED, "order_cancel_requested"),
    "ship": (OrderEventType.ORDER_EVENT_TYPE_ORDER_SHIP_REQUESTED, "order_ship_requested"),
    "complete": (OrderEventType.ORDER_EVENT_TYPE_ORDER_COMPLETE_REQUESTED, "order_complete_requested"),
    "expire": (OrderEventType.ORDER_EVENT_TYPE_ORDER_EXPIRY_REQUESTED, "order_expiry_requested"),
    "refund": (OrderEventType.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED, "order_refund_requested"),
}
_DETAILS: dict[str, dict[str, Any]] = {
    "cancel": {"reason": "CUSTOMER_REQUEST"},
    "ship": {"carrier": "Parcel Service", "tracking_code": "TRACK-1"},
}


def a_command(
    name: str,
    order_id: str,
    *,
    caller: str | None = None,
    scopes: Sequence[str] | None = None,
    request_id: str = "",
    etag: str = "",
    event_id: str = "",
    now: datetime.datetime = NOW,
    **details: Any,
) -> OrderEvent:
    """Returns a command: cancel, ship, complete, expire or refund. Who gives it may, unless told otherwise."""
    command_type, field = _COMMANDS[name]
    if caller is None:
        caller = "" if name == "expire" else CALLER
    if scopes is None:
        scopes = ["orders:operate"] if caller and command_type in FOR_OPERATORS else []
    event = events.command(
        command_type,
        order_id,
        event_id=event_id or command_event_id(caller, command_type, order_id, request_id),
        caller=caller,
        terms=CommandTerms(scopes=scopes, request_id=request_id, etag=etag, request_fingerprint=b"fingerprint"),
        correlation_id=f"correlation-{order_id}",
        source="server",
        now=now,
    )
    getattr(event, field).SetInParent()
    for key, value in (_DETAILS.get(name, {}) | details).items():
        if isinstance(value, Money):
            getattr(getattr(event, field), key).CopyFrom(value)
        else:
            setattr(getattr(event, field), key, value)
    return event
