"""The row that decides an order, and the order that it stands for."""

import dataclasses
import datetime
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import asyncpg

from domain.erasure import Erasure
from domain.lifecycle import TRANSITIONS, sources_of
from domain.orders import etag_of
from domain.times import set_time, time_of
from orderflow.events.v1.order_event_pb2 import OrderEventType
from orderflow.orders.v1.order_pb2 import Money, Order, PaymentStatus
from storage import erasures

if TYPE_CHECKING:
    from storage.database import Connection

COLUMNS: Final = (
    "orders.order_id, content, status, payment_status, revision, failure_reason, update_time, shipment, refunded_minor"
)
"""What `order_of` needs."""

_FIND: Final = f"select {COLUMNS}, caller from orders where order_id = $1"  # noqa: S608 - a constant
# As strong as an update of a row, and no stronger: a row that refers to the order can be inserted meanwhile.
_LOCKED: Final = " for no key update"
_CHANGE: Final = (
    "update orders set status = $3, payment_status = $4, revision = revision + 1, failure_reason = $5,"  # noqa: S608
    " shipment = $6, refunded_minor = $7, update_time = greatest(update_time, $8) where order_id = $1 and revision = $2"
    f" returning {COLUMNS}"
)
_MOVE_ALL: Final = (
    # All rows are locked, whether they move or not, for the select has them all; and none moves before it is locked,
    # for what moves is one of them.
    "with locked as (select order_id, caller from orders where order_id = any($1::uuid[])"  # noqa: S608
    " order by order_id for no key update),"  # one lock order everywhere
    " moved as (update orders set status = target, payment_status = paid, revision = revision + 1,"
    " failure_reason = reason, update_time = greatest(update_time, $6)"
    " from unnest($1::uuid[], $2::smallint[], $3::smallint[], $4::smallint[], $5::text[])"
    " as way (order_id, source, target, paid, reason) join locked using (order_id)"
    " where orders.order_id = locked.order_id and status = source"
    f" returning {COLUMNS})"
    " select caller, moved.* from locked left join moved on moved.order_id = locked.order_id"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Move:
    """What an event makes of an order."""

    event: OrderEventType
    payment_status: PaymentStatus
    failure_reason: str = ""


def order_of(row: asyncpg.Record) -> Order:
    """Returns the order as the row has it."""
    order = Order.FromString(row["content"])
    order.status = row["status"]
    order.payment_status = row["payment_status"]
    order.revision = row["revision"]
    order.etag = etag_of(order.order_id, order.revision)
    order.failure_reason = row["failure_reason"]
    set_time(order.update_time, row["update_time"])
    if row["shipment"] is not None:
        order.shipment.MergeFromString(row["shipment"])
    if row["refunded_minor"]:
        order.refunded.CopyFrom(Money(currency_code=order.total.currency_code, amount_minor=row["refunded_minor"]))
    return order


async def insert_all(connection: "Connection", orders: Sequence[Order], *, callers: Sequence[str]) -> set[str]:
    """Inserts new orders at revision 1, each once. Returns the ids of those that had no row yet."""
    rows = await connection.fetch(
        "insert into orders (order_id, caller, content, status, payment_status, revision, expire_time, update_time)"
        " select order_id, caller, content, status, payment_status, revision, expire_time, update_time"
        " from unnest($1::uuid[], $2::text[], $3::bytea[], $4::smallint[], $5::smallint[], $6::bigint[],"
        " $7::timestamptz[], $8::timestamptz[])"
        " as new (order_id, caller, content, status, payment_status, revision, expire_time, update_time)"
        " order by order_id"  # one lock order everywhere
        " on conflict (order_id) do nothing returning order_id",
        [order.order_id for order in orders],
        callers,
        [order.SerializeToString() for order in orders],
        [order.status for order in orders],
        [order.payment_status for order in orders],
        [order.revision for order in orders],
        [time_of(order.expire_time) for order in orders],
        [time_of(order.update_time) for order in orders],
    )
    return {str(row["order_id"]) for row in rows}


async def delete_all(connection: "Connection", order_ids: Collection[str]) -> None:
    """Deletes the rows of orders."""
    await connection.execute("delete from orders where order_id = any($1::uuid[])", list(order_ids))


async def as_placed(connection: "Connection", order_ids: Collection[str]) -> dict[str, Order]:
    """Returns the orders as they were at revision 1, by their ids: those that have a row."""
    rows = await connection.fetch(
        "select order_id, content from orders where order_id = any($1::uuid[])", list(order_ids)
    )
    return {str(row["order_id"]): Order.FromString(row["content"]) for row in rows}


async def clear_all(connection: "Connection", found: Mapping[str, Erasure], order_ids: Collection[str]) -> int:
    """Clears the contact data of those of the orders that an erasure covers, by user. Returns how many had any."""
    rows = await connection.fetch(
        "select order_id, content from orders where order_id = any($1::uuid[])"
        " order by order_id for no key update",  # one lock order everywhere
        list(order_ids),
    )
    cleared = []
    for row in rows:
        order = Order.FromString(row["content"])
        if erasures.clear(found, [order]):
            cleared.append((row["order_id"], order.SerializeToString()))
    if cleared:
        await connection.executemany("update orders set content = $2 where order_id = $1", cleared)
    return len(cleared)


async def find(connection: "Connection", order_id: str, *, lock: bool = False) -> Order | None:
    """Returns the order, its row locked until the transaction ends if asked; None if there is none."""
    row = await connection.fetchrow(_FIND + _LOCKED if lock else _FIND, order_id)
    return order_of(row) if row else None


async def find_owned(connection: "Connection", order_id: str) -> tuple[Order, str] | None:
    """Returns the order, its row locked until the transaction ends, and who placed it; None if there is none."""
    row = await connection.fetchrow(_FIND + _LOCKED, order_id)
    return (order_of(row), row["caller"]) if row else None


async def change(connection: "Connection", order: Order, *, now: datetime.datetime) -> Order:
    """Writes what was changed of an order that was found with its row locked: statuses, reason, shipment, refunded.

    Returns the order after it, one revision on.
    """
    row = await connection.fetchrow(
        _CHANGE,
        order.order_id,
        order.revision,
        order.status,
        order.payment_status,
        order.failure_reason,
        order.shipment.SerializeToString() if order.HasField("shipment") else None,
        order.refunded.amount_minor,
        now,
    )
    assert row is not None, "the row was locked"
    return order_of(row)


class Moved(NamedTuple):
    """An order after its move, and who placed it."""

    order: Order
    owner: str


async def move_all(connection: "Connection", moves: Mapping[str, Move], *, now: datetime.datetime) -> dict[str, Moved]:
    """Moves orders, by their ids, by compare-and-set: only those whose event the state table allows where they stand.

    The rows of all of them are locked until the transaction ends. Returns those that were moved.
    """
    # One row for each state that an order may be moved from: it is in one of them, or it is not moved.
    ways = [
        (order_id, source, TRANSITIONS[source, move.event], move.payment_status, move.failure_reason)
        for order_id, move in moves.items()
        for source in sources_of(move.event)
    ]
    rows = await connection.fetch(_MOVE_ALL, *zip(*ways, strict=True), now)
    return {str(row["order_id"]): Moved(order_of(row), row["caller"]) for row in rows if row["order_id"] is not None}
