"""The row that decides an order, and the order that it stands for."""

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import asyncpg

from domain.lifecycle import TRANSITIONS, sources_of
from domain.orders import etag_of
from orderflow.events.v1.order_event_pb2 import OrderEventType
from orderflow.orders.v1.order_pb2 import Order, OrderStatus, PaymentStatus

if TYPE_CHECKING:
    from storage.database import Connection

_FIND: Final = (
    "select order_id, content, status, payment_status, revision, failure_reason, update_time"
    " from orders where order_id = $1"
)
_MOVE: Final = (
    "update orders set status = $3, payment_status = $4, revision = revision + 1, failure_reason = $5,"
    " update_time = greatest(update_time, $6) where order_id = $1 and status = any($2)"
    " returning order_id, content, status, payment_status, revision, failure_reason, update_time"
)


def order_of(row: asyncpg.Record) -> Order:
    """Returns the order as the row has it."""
    order = Order.FromString(row["content"])
    order.status = row["status"]
    order.payment_status = row["payment_status"]
    order.revision = row["revision"]
    order.etag = etag_of(order.order_id, order.revision)
    order.failure_reason = row["failure_reason"]
    order.update_time.FromDatetime(row["update_time"])
    return order


async def insert(connection: "Connection", order: Order, *, caller: str) -> bool:
    """Inserts a new order at revision 1. False: it has a row already."""
    return bool(
        await connection.fetchval(
            "insert into orders"
            " (order_id, caller, content, status, payment_status, revision, expire_time, update_time)"
            " values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict (order_id) do nothing returning true",
            order.order_id,
            caller,
            order.SerializeToString(),
            order.status,
            order.payment_status,
            order.revision,
            order.expire_time.ToDatetime(datetime.UTC),
            order.update_time.ToDatetime(datetime.UTC),
        )
    )


async def find(connection: "Connection", order_id: str, *, lock: bool = False) -> Order | None:
    """Returns the order, its row locked until the transaction ends if asked; None if there is none."""
    row = await connection.fetchrow(_FIND + " for update" if lock else _FIND, order_id)
    return order_of(row) if row else None


async def move(
    connection: "Connection",
    order_id: str,
    event: OrderEventType,
    *,
    payment_status: PaymentStatus,
    now: datetime.datetime,
    failure_reason: str = "",
) -> Order | None:
    """Moves the order by compare-and-set: only if the state table allows `event` where it stands.

    Returns the order after the event, or None if nothing was moved.
    """
    sources: Sequence[OrderStatus] = sources_of(event)
    targets = {TRANSITIONS[source, event] for source in sources}
    assert len(targets) == 1, "the event leads to several states: tell which"
    row = await connection.fetchrow(
        _MOVE,
        order_id,
        list(sources),
        targets.pop(),
        payment_status,
        failure_reason,
        now,
    )
    return order_of(row) if row else None
