"""Reads for the API, from the read model."""

import dataclasses
import datetime
import uuid
from collections.abc import Collection
from typing import Final

import asyncpg

from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_pb2 import Order, OrderStatus, PaymentStatus
from storage import order_search
from storage.database import Database
from storage.order_search import Found

# UNKNOWN comes with the dead letter and has no revision (semantics 3). The letter may be projected before the order is,
# so the two meet here and not where either is written.
_PAYMENT_UNKNOWN: Final = (
    f"status = {OrderStatus.ORDER_STATUS_PROCESSING} and exists (select from dead_letters"
    " where dead_letters.order_id = order_views.order_id"
    " and group_name = 'payment-processor' and error_class = 'PAYMENT_UNKNOWN')"
)


@dataclasses.dataclass(frozen=True)
class OrderView:
    """An order as the read model has it, and who placed it.

    Of an order that was purged there are but id, status and revision.
    """

    order: Order
    caller: str
    is_purged: bool = False


@dataclasses.dataclass(frozen=True, order=True)
class ListPosition:
    """Where an order stands in a list: newest first, and by id among those of one moment."""

    create_time: datetime.datetime
    order_id: uuid.UUID


@dataclasses.dataclass(frozen=True)
class ListFilter:
    """Which orders a list has: those of the caller (None: of everybody), of the user (None: of all) and so on.

    `before` is exclusive, `created_from` is not.
    """

    caller: str | None
    user_id: str | None
    statuses: Collection[int]
    created_from: datetime.datetime
    before: ListPosition


class OrderViews:
    """Reads; changes nothing."""

    def __init__(self, database: Database) -> None:
        """Uses the database's pool."""
        self._database = database

    async def get(self, order_id: str) -> OrderView | None:
        """Returns the order, None if the read model does not have it (yet).

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        return (await self.get_many([order_id])).get(order_id)

    async def get_many(self, order_ids: Collection[str]) -> dict[str, OrderView]:
        """Returns those of the orders that the read model has (so far), or had until they were purged.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"select caller, snapshot, {_PAYMENT_UNKNOWN} as payment_unknown,"  # noqa: S608 - a constant
                " null::uuid as purged_id, null::smallint as status, null::bigint as revision"
                " from order_views where order_id = any($1::uuid[])"
                " union all"
                " select caller, null, false, order_id, status, revision"
                " from order_tombstones where order_id = any($1::uuid[])",
                order_ids,
            )
        views = [_view(row) if row["purged_id"] is None else _tombstone(row) for row in rows]
        return {view.order.order_id: view for view in views}

    async def page(self, which: ListFilter, *, size: int) -> list[tuple[ListPosition, OrderView]]:
        """Returns the first `size` orders of a list, and where each stands.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        values: list[object] = [
            list(which.statuses),
            which.created_from,
            which.before.create_time,
            which.before.order_id,
            size,
        ]
        owners = ""
        for column, value in (("caller", which.caller), ("user_id", which.user_id)):
            if value is not None:
                values.append(value)
                owners += f" and {column} = ${len(values)}"
        # One run along an index for each status, and the snapshots of what is on the page only.
        sql = (
            "with listed as materialized ("  # noqa: S608 - names of columns and numbers of parameters
            " select of_status.create_time, of_status.order_id from unnest($1::smallint[]) as wanted (status)"
            " cross join lateral (select create_time, order_id from order_views"
            f" where order_views.status = wanted.status{owners}"
            " and create_time >= $2 and (create_time, order_id) < ($3, $4::uuid)"
            " order by create_time desc, order_id desc limit $5) as of_status"
            " order by create_time desc, order_id desc limit $5)"
            f" select order_views.create_time, order_id, caller, snapshot, {_PAYMENT_UNKNOWN} as payment_unknown"
            " from listed join order_views using (order_id) order by listed.create_time desc, order_id desc"
        )
        async with self._database.transaction() as connection:
            # Where few orders are expected PostgreSQL reads and sorts all that match, and there may be 200,000: it
            # expects few of a user who has many, with a plan that was made for all users.
            await connection.execute("set local enable_bitmapscan = off; set local enable_seqscan = off")
            rows = await connection.fetch(sql, *values)
        return [(ListPosition(row["create_time"], row["order_id"]), _view(row)) for row in rows]

    async def find(self, text: str, *, owner: str | None, most: int) -> list[Found]:
        """Returns the orders that an identifier has to do with, newest first; those of `owner`, None: of everybody.

        Orders that were purged included.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.connection() as connection:
            return await order_search.find(connection, text, owner=owner, most=most)

    async def revision(self, order_id: str) -> int:
        """Returns the revision that the read model has, 0 for none.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.connection() as connection:
            return int(await connection.fetchval("select revision from order_views where order_id = $1", order_id) or 0)

    async def history(self, order_id: str) -> list[OrderEvent]:
        """Returns the order's events so far, in the order of their times.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "select event from order_events where order_id = $1 order by occur_time, revision", order_id
            )
        return [OrderEvent.FromString(row["event"]) for row in rows]


def _view(row: asyncpg.Record) -> OrderView:
    order = Order.FromString(row["snapshot"])
    if row["payment_unknown"]:
        order.payment_status = PaymentStatus.PAYMENT_STATUS_UNKNOWN
    return OrderView(order, row["caller"])


def _tombstone(row: asyncpg.Record) -> OrderView:
    order = Order(order_id=str(row["purged_id"]), status=row["status"], revision=row["revision"])
    return OrderView(order, row["caller"], is_purged=True)
