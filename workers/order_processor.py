"""Checks new orders and reserves their stock, and decides on commands: cancel, ship, complete, expire."""

from collections.abc import Sequence
from typing import Protocol

import fault_points
from domain import commands
from domain.failures import Permanent
from domain.money import total_of
from domain.records import Delivery
from domain.validation import violations_of
from messaging import topics
from messaging.worker import WorkerSpec
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import ORDER_STATUS_CREATED

SPEC = WorkerSpec(
    group="order-processor",
    reads=(topics.ORDERS,),
    handles=frozenset(
        {
            OrderEventType.ORDER_EVENT_TYPE_ORDER_CREATED,
            OrderEventType.ORDER_EVENT_TYPE_ORDER_CANCEL_REQUESTED,
            OrderEventType.ORDER_EVENT_TYPE_ORDER_SHIP_REQUESTED,
            OrderEventType.ORDER_EVENT_TYPE_ORDER_COMPLETE_REQUESTED,
            OrderEventType.ORDER_EVENT_TYPE_ORDER_EXPIRY_REQUESTED,
        }
    ),
)


class OrderDecisions(Protocol):
    """What the order processor decides with."""

    async def accept(self, delivery: Delivery) -> list[OrderEvent]:
        """Decides a valid ORDER_CREATED and returns the events to emit."""
        ...


class OrderCommands(Protocol):
    """What it decides commands with."""

    async def decide(self, delivery: Delivery) -> list[OrderEvent]:
        """Decides a valid command and returns the events to emit."""
        ...


async def handle(
    delivery: Delivery, *, decisions: OrderDecisions, order_commands: OrderCommands
) -> Sequence[OrderEvent]:
    """Handles an ORDER_CREATED or a command.

    Raises:
        Permanent: `INVALID_ORDER`, `INVALID_COMMAND`: the server never makes such a one.
        Transient: a command whose order has no row so far.
        DependencyDown: PostgreSQL is away.
    """
    if delivery.event.type in commands.LEADS_TO:
        refuse_invalid_command(delivery.event)
        emitted = await order_commands.decide(delivery)
    else:
        refuse_invalid(delivery.event)
        emitted = await decisions.accept(delivery)
    fault_points.reached("W2")
    return emitted


def refuse_invalid_command(event: OrderEvent) -> None:
    """Kafka is a border: what comes from it is checked like any input.

    Raises:
        Permanent: `INVALID_COMMAND`.
    """
    if violations := commands.violations_of_command(event):
        raise Permanent("INVALID_COMMAND", f"{violations[0].field} {violations[0].description}")


def refuse_invalid(event: OrderEvent) -> None:
    """Kafka is a border: what comes from it is checked like any input.

    Raises:
        Permanent: `INVALID_ORDER`.
    """
    order = event.order
    if event.WhichOneof("details") != "order_created" or not event.order_created.caller:
        raise Permanent("INVALID_ORDER", "the details of ORDER_CREATED are missing")
    if event.revision != 1 or order.revision != 1 or order.status != ORDER_STATUS_CREATED:
        raise Permanent("INVALID_ORDER", "a new order is CREATED at revision 1")
    if violations := violations_of(order):
        raise Permanent("INVALID_ORDER", f"{violations[0].field} {violations[0].description}")
    if order.total != total_of(order.items):
        raise Permanent("INVALID_ORDER", "total is not the sum of the lines")
    for field in ("create_time", "update_time", "expire_time"):
        # A year that PostgreSQL and Python cannot hold would fail later, where it is nobody's fault.
        if not 0 < getattr(order, field).seconds < 253402300800:
            raise Permanent("INVALID_ORDER", f"{field} is not a time between 1970 and 9999")
