"""Which request_ids became which orders: what makes CreateOrder safe to repeat tells a repeat at once with it."""

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING

from domain.orders import etag_of
from orderflow.orders.v1.order_pb2 import Order
from storage import order_rows
from storage.database import Database

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import asyncpg

    from telemetry.tracing import Span


@dataclasses.dataclass(frozen=True)
class KnownRequest:
    """A request_id that was used before, and the order that it became, as its row has it.

    Of an order that was purged there are but id, status and revision.
    """

    order: Order
    fingerprint: bytes
    is_purged: bool = False


class KnownRequests:
    """Reads; changes nothing."""

    def __init__(self, database: Database) -> None:
        """Uses the database's pool."""
        self._database = database

    def span(self) -> "AbstractContextManager[Span]":
        """Shows what the body does as a query, in the current span if there is one."""
        return self._database.span("query")

    async def find(self, requests: Collection[tuple[str, str]]) -> dict[tuple[str, str], KnownRequest]:
        """Returns those that were used before, of requests by caller and request_id.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "select order_requests.caller as asked_by, request_id, fingerprint,"  # noqa: S608
                f" order_requests.order_id as known_id, purged_status, purged_revision, {order_rows.COLUMNS}"
                " from unnest($1::text[], $2::text[]) as asked (caller, request_id)"
                " join order_requests using (caller, request_id)"
                " left join orders on orders.order_id = order_requests.order_id"
                " left join (select order_id as purged_id, status as purged_status, revision as purged_revision"
                " from order_tombstones) as purged on purged_id = order_requests.order_id"
                " where content is not null or purged_status is not null",
                [caller for caller, _ in requests],
                [request_id for _, request_id in requests],
            )
        return {(row["asked_by"], row["request_id"]): _known(row) for row in rows}


def _known(row: "asyncpg.Record") -> KnownRequest:
    if row["content"] is not None:
        return KnownRequest(order_rows.order_of(row), row["fingerprint"])
    order_id, revision = str(row["known_id"]), row["purged_revision"]
    order = Order(order_id=order_id, status=row["purged_status"], revision=revision, etag=etag_of(order_id, revision))
    return KnownRequest(order, row["fingerprint"], is_purged=True)
