"""What the checker knows of the system, written down anew from the contract: topics, groups, states."""

import uuid
from typing import Final

from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.events.v1.order_event_pb2 import OrderEventType as Type
from orderflow.orders.v1.order_pb2 import NotificationChannel
from orderflow.orders.v1.order_pb2 import OrderStatus as Status

READS: Final = {
    "order-processor": ("orders",),
    "payment-processor": ("orders",),
    "notification-email": ("orders", "payments"),
    "notification-sms": ("orders", "payments"),
}
"""The groups that retry and write dead letters, and the topics that they read besides their own retry topics."""

PROJECTED: Final = ("orders", "payments", "notifications", "dlq")
"""What the projector reads."""

CHANNELS: Final = {
    "email": NotificationChannel.NOTIFICATION_CHANNEL_EMAIL,
    "sms": NotificationChannel.NOTIFICATION_CHANNEL_SMS,
}

MOVES: Final[dict[Type, dict[Status | None, Status]]] = {
    Type.ORDER_EVENT_TYPE_ORDER_CREATED: {None: Status.ORDER_STATUS_CREATED},
    Type.ORDER_EVENT_TYPE_ORDER_PROCESSING: {Status.ORDER_STATUS_CREATED: Status.ORDER_STATUS_PROCESSING},
    Type.ORDER_EVENT_TYPE_ORDER_REJECTED: {Status.ORDER_STATUS_CREATED: Status.ORDER_STATUS_REJECTED},
    Type.ORDER_EVENT_TYPE_ORDER_PAID: {Status.ORDER_STATUS_PROCESSING: Status.ORDER_STATUS_PAID},
    Type.ORDER_EVENT_TYPE_PAYMENT_FAILED: {Status.ORDER_STATUS_PROCESSING: Status.ORDER_STATUS_PAYMENT_FAILED},
    Type.ORDER_EVENT_TYPE_ORDER_SHIPPED: {Status.ORDER_STATUS_PAID: Status.ORDER_STATUS_SHIPPED},
    Type.ORDER_EVENT_TYPE_ORDER_COMPLETED: {Status.ORDER_STATUS_SHIPPED: Status.ORDER_STATUS_COMPLETED},
    Type.ORDER_EVENT_TYPE_ORDER_CANCELLED: {
        Status.ORDER_STATUS_PROCESSING: Status.ORDER_STATUS_CANCELLED,
        Status.ORDER_STATUS_PAID: Status.ORDER_STATUS_CANCELLED,
    },
    Type.ORDER_EVENT_TYPE_ORDER_EXPIRED: {Status.ORDER_STATUS_PROCESSING: Status.ORDER_STATUS_EXPIRED},
    Type.ORDER_EVENT_TYPE_PAYMENT_REFUNDED: {
        Status.ORDER_STATUS_PAID: Status.ORDER_STATUS_REFUNDED,
        Status.ORDER_STATUS_SHIPPED: Status.ORDER_STATUS_REFUNDED,
        Status.ORDER_STATUS_COMPLETED: Status.ORDER_STATUS_REFUNDED,
        Status.ORDER_STATUS_CANCELLED: Status.ORDER_STATUS_CANCELLED,
        Status.ORDER_STATUS_EXPIRED: Status.ORDER_STATUS_EXPIRED,
    },
}
"""Lifecycle events: from which state each may lead to which."""

COMMANDS: Final[dict[Type, Type]] = {
    Type.ORDER_EVENT_TYPE_ORDER_CANCEL_REQUESTED: Type.ORDER_EVENT_TYPE_ORDER_CANCELLED,
    Type.ORDER_EVENT_TYPE_ORDER_SHIP_REQUESTED: Type.ORDER_EVENT_TYPE_ORDER_SHIPPED,
    Type.ORDER_EVENT_TYPE_ORDER_COMPLETE_REQUESTED: Type.ORDER_EVENT_TYPE_ORDER_COMPLETED,
    Type.ORDER_EVENT_TYPE_ORDER_EXPIRY_REQUESTED: Type.ORDER_EVENT_TYPE_ORDER_EXPIRED,
    Type.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED: Type.ORDER_EVENT_TYPE_PAYMENT_REFUNDED,
}
"""Commands: the lifecycle event that each asks for."""

METHODS: Final = {
    "CancelOrder": Type.ORDER_EVENT_TYPE_ORDER_CANCEL_REQUESTED,
    "ShipOrder": Type.ORDER_EVENT_TYPE_ORDER_SHIP_REQUESTED,
    "CompleteOrder": Type.ORDER_EVENT_TYPE_ORDER_COMPLETE_REQUESTED,
    "RefundOrder": Type.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED,
}
"""What a client calls, and the command that it gives."""

SWEPT: Final = frozenset({Type.ORDER_EVENT_TYPE_ORDER_EXPIRY_REQUESTED, Type.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED})
"""The commands that the system gives by itself."""

REPORTED: Final = Type.ORDER_EVENT_TYPE_PAYMENT_REPORTED
"""The gateway reported on a payment: nothing of ours led to it, and a repeated delivery writes it again."""

HANDLES: Final = {
    "order-processor": frozenset(
        {Type.ORDER_EVENT_TYPE_ORDER_CREATED, *COMMANDS} - {Type.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED}
    ),
    "payment-processor": frozenset(
        {
            Type.ORDER_EVENT_TYPE_ORDER_PROCESSING,
            Type.ORDER_EVENT_TYPE_ORDER_CANCELLED,
            Type.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED,
            REPORTED,
        }
    ),
    "notification-email": frozenset(MOVES),
    "notification-sms": frozenset(MOVES),
}
"""The events that a group decides on; it skips the others."""

PAYMENT: Final = frozenset({Type.ORDER_EVENT_TYPE_ORDER_PAID, Type.ORDER_EVENT_TYPE_PAYMENT_FAILED})

OPEN: Final = frozenset({Status.ORDER_STATUS_CREATED, Status.ORDER_STATUS_PROCESSING})

PAID: Final = frozenset({Status.ORDER_STATUS_PAID, Status.ORDER_STATUS_SHIPPED, Status.ORDER_STATUS_COMPLETED})

SOLD: Final = PAID | {Status.ORDER_STATUS_REFUNDED}
"""Money that is given back brings no goods back; a cancellation does."""

CALLED_OFF: Final = frozenset({Type.ORDER_EVENT_TYPE_ORDER_CANCELLED, Type.ORDER_EVENT_TYPE_ORDER_EXPIRED})

_PAYMENTS: Final = PAYMENT | {Type.ORDER_EVENT_TYPE_PAYMENT_REFUNDED}
_NOTIFICATIONS: Final = frozenset({Type.ORDER_EVENT_TYPE_NOTIFICATION_SENT, Type.ORDER_EVENT_TYPE_NOTIFICATION_FAILED})


def leads_to(event: OrderEvent, stands: Status | None) -> Status | None:
    """Returns the state that an event leads to from another, None if it must not happen there."""
    leads = MOVES[event.type].get(stands)
    is_part = event.type == Type.ORDER_EVENT_TYPE_PAYMENT_REFUNDED and not event.payment_refunded.whole
    return stands if leads is not None and is_part else leads


def may_ask(command: OrderEvent, stands: Status) -> bool:
    """Tells whether an order that stands there does what a command asks of it."""
    called_off = (Status.ORDER_STATUS_CANCELLED, Status.ORDER_STATUS_EXPIRED)
    if command.type == Type.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED and stands in called_off:
        return not command.metadata.caller  # its money goes back without being asked for
    return stands in MOVES[COMMANDS[command.type]]


def topic_of(event_type: int) -> str:
    """Returns the topic that a type of event belongs on."""
    if event_type in _PAYMENTS:
        return "payments"
    return "notifications" if event_type in _NOTIFICATIONS else "orders"


def is_uuid(text: str) -> bool:
    """Tells whether the text is a UUID as the contract writes it: lower case, with dashes."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def name(event_type: int) -> str:
    """Returns the type's name without its prefix."""
    known = event_type in Type.values()
    return Type.Name(Type.ValueType(event_type)).removeprefix("ORDER_EVENT_TYPE_") if known else str(event_type)


def status_name(status: int) -> str:
    """Returns the status's name without its prefix."""
    known = status in Status.values()
    return Status.Name(Status.ValueType(status)).removeprefix("ORDER_STATUS_") if known else str(status)
