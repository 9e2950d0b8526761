"""Which orders somebody should ask something of: those not paid in time, and those whose money is to be given back."""

import datetime
from typing import Final

from orderflow.orders.v1.order_pb2 import OrderStatus
from storage.database import Database

# The status stands in the text and not in a parameter: only so PostgreSQL knows that the partial index has all of them.
_UNPAID: Final = (
    "select order_id, expire_time from orders"  # noqa: S608 - a constant
    f" where status = {OrderStatus.ORDER_STATUS_PROCESSING} and expire_time <= $1"
    # With a charge open it would be refused, every time; whether one is, is decided under the order's lock.
    " and not exists (select from payments where payments.order_id = orders.order_id and first_send_time is not null)"
    " order by expire_time, order_id limit $2"
)
_MOST: Final = 2_000
"""At a time, the oldest: what is asked for is decided before as much again is asked for."""


class DueOrders:
    """Reads; changes nothing. Every method raises DependencyDown."""

    def __init__(self, database: Database) -> None:
        """Uses the database's pool."""
        self._database = database

    async def unpaid(self, now: datetime.datetime) -> list[str]:
        """Returns orders that wait for payment past their expire_time, with no charge open."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_UNPAID, now, _MOST)
        return [str(row["order_id"]) for row in rows]

    async def refunds(self) -> list[str]:
        """Returns orders of which money was captured that nobody gives back."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "select order_id from payments where refund_due order by update_time limit $1", _MOST
            )
        return [str(row["order_id"]) for row in rows]
