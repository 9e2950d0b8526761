"""Which orders somebody should ask something of: those not paid in time, and those whose money is to be given back."""

import datetime
from typing import Final

from orderflow.orders.v1.order_pb2 import OrderStatus
from storage.database import Database

# The status stands in the text and not in a parameter: only so PostgreSQL knows that the partial index has all of them.
_UNPAID: Final = (
    "select order_id, expire_time from orders"  # noqa: S608 - a constant
    f" where status = {OrderStatus.ORDER_STATUS_PROCESSING} and expire_time <= $1"
    " and (expire_time, order_id) > ($2, $3::uuid)"
    # With a charge open it would be refused, every time; whether one is, is decided under the order's lock.
    " and not exists (select from payments where payments.order_id = orders.order_id and first_send_time is not null)"
    " order by expire_time, order_id limit $4"
)
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_NO_ID: Final = "00000000-0000-0000-0000-000000000000"
_PAGE: Final = 500


class DueOrders:
    """Reads; changes nothing. Every method raises DependencyDown."""

    def __init__(self, database: Database) -> None:
        """Uses the database's pool."""
        self._database = database

    async def unpaid(self, now: datetime.datetime) -> list[str]:
        """Returns the orders that wait for payment past their expire_time, with no charge open."""
        found: list[str] = []
        after = _EPOCH, _NO_ID
        while True:
            async with self._database.connection() as connection:
                rows = await connection.fetch(_UNPAID, now, *after, _PAGE)
            found += [str(row["order_id"]) for row in rows]
            if len(rows) < _PAGE:
                return found
            after = rows[-1]["expire_time"], str(rows[-1]["order_id"])

    async def refunds(self) -> list[str]:
        """Returns the orders of which money was captured that nobody gives back."""
        async with self._database.connection() as connection:
            rows = await connection.fetch("select order_id from payments where refund_due order by order_id")
        return [str(row["order_id"]) for row in rows]
