"""What the checker knows of the system, written down anew from the contract: topics, groups, states."""

import uuid
from typing import Final

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
    },
}
"""Lifecycle events: from which state each may lead to which."""

HANDLES: Final = {
    "order-processor": frozenset({Type.ORDER_EVENT_TYPE_ORDER_CREATED}),
    "payment-processor": frozenset({Type.ORDER_EVENT_TYPE_ORDER_PROCESSING}),
    "notification-email": frozenset(MOVES),
    "notification-sms": frozenset(MOVES),
}
"""The events that a group decides on; it skips the others."""

PAYMENT: Final = frozenset({Type.ORDER_EVENT_TYPE_ORDER_PAID, Type.ORDER_EVENT_TYPE_PAYMENT_FAILED})

OPEN: Final = frozenset({Status.ORDER_STATUS_CREATED, Status.ORDER_STATUS_PROCESSING})

PAID: Final = frozenset({Status.ORDER_STATUS_PAID, Status.ORDER_STATUS_SHIPPED, Status.ORDER_STATUS_COMPLETED})

_PAYMENTS: Final = PAYMENT | {Type.ORDER_EVENT_TYPE_PAYMENT_REFUNDED}
_NOTIFICATIONS: Final = frozenset({Type.ORDER_EVENT_TYPE_NOTIFICATION_SENT, Type.ORDER_EVENT_TYPE_NOTIFICATION_FAILED})


def leads_to(event_type: Type, stands: Status | None) -> Status | None:
    """Returns the state that an event leads to from another, None if it must not happen there."""
    return MOVES[event_type].get(stands)


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
