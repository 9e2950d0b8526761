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
_UNSETTLED: Final = (
    "select order_id from orders join payments using (order_id)"  # noqa: S608 - a constant
    f" where status in ({OrderStatus.ORDER_STATUS_CANCELLED}, {OrderStatus.ORDER_STATUS_EXPIRED})"
    " and orders.update_time between $1 and $2 and payments.update_time <= $2"
    " and (state in ('intended', 'unknown') or state = 'captured' and amount_minor > coalesce((select"
    " sum(refunds.amount_minor) from refunds where refunds.order_id = payments.order_id and refunds.state <> 'refused'"
    "), 0)) order by orders.update_time limit $3"
)
_SENT: Final = (
    "select order_id from refunds where state = 'intended' and first_send_time < $1 order by first_send_time limit $2"
)
_MOST: Final = 2_000
"""At a time, the oldest: what is asked for is decided before as much again is asked for."""
_LONGEST: Final = datetime.timedelta(days=30)
"""Orders that were called off longer ago are not looked at any more: a look must not cost more with every year."""


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

    async def unanswered(self, *, sent_before: datetime.datetime) -> list[str]:
        """Returns orders with a refund that was sent before a time, and nobody knows what became of it."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_SENT, sent_before, _MOST)
        return [str(row["order_id"]) for row in rows]

    async def unsettled(self, *, quiet_since: datetime.datetime) -> list[str]:
        """Returns orders that were called off, and whose money should have been settled by now and is not.

        Since the time given nobody has closed their charge or intended to give back what was captured.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(_UNSETTLED, quiet_since - _LONGEST, quiet_since, _MOST)
        return [str(row["order_id"]) for row in rows]
