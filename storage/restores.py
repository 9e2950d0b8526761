"""Restores of the database that lost commits, and what is in doubt since (semantics 24)."""

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from orderflow.orders.v1.order_pb2 import Order
from storage.database import Database

if TYPE_CHECKING:
    from storage.database import Connection

DOUBT: Final = "(select max(restore_id) from restores where orders_before > {created})"
"""The restore since which the money of an order is in doubt that was created at `created`; null: it is not."""

_IN_DOUBT: Final = "select " + DOUBT.format(created="$1")
_CLOCKS: Final = datetime.timedelta(hours=1)
"""Far more than clocks differ: an order's time of creation is a server's, and a look-up too many does no harm."""


async def doubt(connection: "Connection", order: Order) -> int | None:
    """Returns the restore since which the money of the order is in doubt. None: what is booked of it is all."""
    found: int | None = await connection.fetchval(_IN_DOUBT, order.create_time.ToDatetime(datetime.UTC))
    return found


class Restores:
    """What an operator records and reads after a restore. Every method raises DependencyDown."""

    def __init__(self, database: Database) -> None:
        """Uses the database's pool."""
        self._database = database

    async def restored_to(self) -> datetime.datetime | None:
        """Returns when the last change was made that is there; None if there is none. Reads all orders."""
        async with self._database.connection() as connection:
            found: datetime.datetime | None = await connection.fetchval("select max(update_time) from orders")
        return found

    async def handled(self) -> dict[tuple[str, str, int], int]:
        """Returns the last record that has an outcome, by group, topic and partition. Reads all outcomes."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "select group_name, topic, partition, max(record_offset) as last from outcomes group by 1, 2, 3"
            )
        return {(row["group_name"], row["topic"], row["partition"]): row["last"] for row in rows}

    async def record(self, intents: Mapping[str, str]) -> None:
        """Records that the database was restored just now, and which intents the gateway has made, by key.

        From now on the gateway is asked first about the money of all orders that were created until now.
        """
        async with self._database.transaction() as connection:
            await connection.executemany(
                "insert into found_intents (idempotency_key, gateway_intent) values ($1, $2)"
                " on conflict (idempotency_key) do update set gateway_intent = excluded.gateway_intent",
                list(intents.items()),
            )
            await connection.execute("insert into restores (orders_before) values (now() + $1)", _CLOCKS)
