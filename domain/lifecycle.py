"""The state table: which event may happen to an order in which state, and where it leads."""

import dataclasses
from typing import Final

from orderflow.events.v1.order_event_pb2 import OrderEventType as Event
from orderflow.orders.v1.order_pb2 import OrderStatus as Status

E = Event
S = Status

TRANSITIONS: Final[dict[tuple[Status, Event], Status]] = {
    (S.ORDER_STATUS_UNSPECIFIED, E.ORDER_EVENT_TYPE_ORDER_CREATED): S.ORDER_STATUS_CREATED,
    (S.ORDER_STATUS_CREATED, E.ORDER_EVENT_TYPE_ORDER_PROCESSING): S.ORDER_STATUS_PROCESSING,
    (S.ORDER_STATUS_CREATED, E.ORDER_EVENT_TYPE_ORDER_REJECTED): S.ORDER_STATUS_REJECTED,
    (S.ORDER_STATUS_PROCESSING, E.ORDER_EVENT_TYPE_ORDER_PAID): S.ORDER_STATUS_PAID,
    (S.ORDER_STATUS_PROCESSING, E.ORDER_EVENT_TYPE_PAYMENT_FAILED): S.ORDER_STATUS_PAYMENT_FAILED,
    (S.ORDER_STATUS_PROCESSING, E.ORDER_EVENT_TYPE_ORDER_CANCELLED): S.ORDER_STATUS_CANCELLED,
    (S.ORDER_STATUS_PROCESSING, E.ORDER_EVENT_TYPE_ORDER_EXPIRED): S.ORDER_STATUS_EXPIRED,
    (S.ORDER_STATUS_PAID, E.ORDER_EVENT_TYPE_ORDER_CANCELLED): S.ORDER_STATUS_CANCELLED,
    (S.ORDER_STATUS_PAID, E.ORDER_EVENT_TYPE_ORDER_SHIPPED): S.ORDER_STATUS_SHIPPED,
    # These are whole refunds; a partial one changes the payment status only.
    (S.ORDER_STATUS_PAID, E.ORDER_EVENT_TYPE_PAYMENT_REFUNDED): S.ORDER_STATUS_REFUNDED,
    (S.ORDER_STATUS_SHIPPED, E.ORDER_EVENT_TYPE_ORDER_COMPLETED): S.ORDER_STATUS_COMPLETED,
    (S.ORDER_STATUS_SHIPPED, E.ORDER_EVENT_TYPE_PAYMENT_REFUNDED): S.ORDER_STATUS_REFUNDED,
    (S.ORDER_STATUS_COMPLETED, E.ORDER_EVENT_TYPE_PAYMENT_REFUNDED): S.ORDER_STATUS_REFUNDED,
    # A cancelled paid order stays CANCELLED; its payment status tells of the refund. So does an expired one that was
    # charged all the same.
    (S.ORDER_STATUS_CANCELLED, E.ORDER_EVENT_TYPE_PAYMENT_REFUNDED): S.ORDER_STATUS_CANCELLED,
    (S.ORDER_STATUS_EXPIRED, E.ORDER_EVENT_TYPE_PAYMENT_REFUNDED): S.ORDER_STATUS_EXPIRED,
}

SETTLED: Final = frozenset(
    status
    for status in Status.values()
    if status not in (S.ORDER_STATUS_UNSPECIFIED, S.ORDER_STATUS_CREATED, S.ORDER_STATUS_PROCESSING)
)
"""Every status but CREATED and PROCESSING: the money and the stock of the order are decided."""

CALLED_OFF: Final = frozenset((S.ORDER_STATUS_CANCELLED, S.ORDER_STATUS_EXPIRED))
"""Nothing may be kept of what was charged for such an order, and nobody has to ask for it to be given back."""

LIFECYCLE: Final = frozenset(event for _, event in TRANSITIONS)
"""The events that carry a revision. All others are commands or notifications."""


@dataclasses.dataclass(frozen=True)
class Applied:
    """The event moves the order to `status`."""

    status: Status


@dataclasses.dataclass(frozen=True)
class AlreadyApplied:
    """The order already stands where the event leads."""


class IllegalTransitionError(Exception):
    """The event cannot happen to an order in this state."""

    def __init__(self, status: Status, event: Event) -> None:
        super().__init__(f"{Event.Name(event)} cannot happen to an order that is {Status.Name(status)}")
        self.status = status
        self.event = event


def apply(status: Status, event: Event) -> Applied | AlreadyApplied:
    """Returns what `event` does to an order in `status`.

    Raises:
        IllegalTransitionError: the pair is not in the table.
    """
    target = TRANSITIONS.get((status, event))
    if target is not None:
        return Applied(target)
    if any(led_by == event and leads_to == status for (_, led_by), leads_to in TRANSITIONS.items()):
        return AlreadyApplied()
    raise IllegalTransitionError(status, event)


def sources_of(event: Event) -> list[Status]:
    """Returns the states in which `event` may happen: the condition of the compare-and-set that decides it."""
    return [status for (status, happening) in TRANSITIONS if happening == event]
