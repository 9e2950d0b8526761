"""Which request_ids became which orders: what makes CreateOrder safe to repeat tells a repeat at once with it."""

import dataclasses
from collections.abc import Sequence

from orderflow.orders.v1.order_pb2 import Order
from storage import order_rows
from storage.database import Database


@dataclasses.dataclass(frozen=True)
class KnownRequest:
    """A request_id that was used before, and the order that it became, as its row has it."""

    order: Order
    fingerprint: bytes


class KnownRequests:
    """Reads; changes nothing."""

    def __init__(self, database: Database) -> None:
        """Uses the database's pool."""
        self._database = database

    async def find(self, caller: str, request_ids: Sequence[str]) -> dict[str, KnownRequest]:
        """Returns those of the caller's request_ids that were used before.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"select request_id, fingerprint, {order_rows.COLUMNS}"  # noqa: S608 - a constant
                " from order_requests join orders using (order_id)"
                " where order_requests.caller = $1 and request_id = any($2::text[])",
                caller,
                request_ids,
            )
        return {row["request_id"]: KnownRequest(order_rows.order_of(row), row["fingerprint"]) for row in rows}
