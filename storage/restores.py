"""Restores of the database that lost commits, and what is in doubt since (semantics 24)."""

import dataclasses
import datetime
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from domain.orders import charge_key
from domain.reconciliation import FoundCharge
from orderflow.orders.v1.order_pb2 import Order
from storage.database import Database

if TYPE_CHECKING:
    from storage.database import Connection

IS_IN_DOUBT: Final = "exists (select from restores where orders_before > {created})"
"""Whether the money of an order is in doubt that was created at `created`: more may have moved than is booked."""

_ASK: Final = (
    f"select {IS_IN_DOUBT.format(created='$1')} as is_in_doubt,"  # noqa: S608 - a constant
    " exists (select from found_charges where idempotency_key = $2 and has_money) as is_charged"
)
_CLOCKS: Final = datetime.timedelta(hours=1)
"""Far more than clocks differ: an order's time of creation is a server's, and a look-up too many does no harm."""


@dataclasses.dataclass(frozen=True)
class Doubt:
    """What a restore has left uncertain about an order's money. `is_charged`: the gateway had a charge of it."""

    is_charged: bool


async def doubt(connection: "Connection", order: Order) -> Doubt | None:
    """Returns what is uncertain about the order's money. None: nothing, what is booked is all."""
    row = await connection.fetchrow(_ASK, order.create_time.ToDatetime(datetime.UTC), charge_key(order.order_id))
    assert row is not None
    return Doubt(row["is_charged"]) if row["is_in_doubt"] else None


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

    async def record(self, found: Iterable[FoundCharge]) -> None:
        """Records that the database was restored just now, and which charges the gateway has.

        From now on the gateway is asked first about the money of all orders that were created until now.
        """
        async with self._database.transaction() as connection:
            await connection.executemany(
                "insert into found_charges (idempotency_key, gateway_intent, has_money) values ($1, $2, $3)"
                " on conflict (idempotency_key) do update"
                " set gateway_intent = excluded.gateway_intent, has_money = excluded.has_money",
                [(each.idempotency_key, each.gateway_intent, each.has_money) for each in found],
            )
            await connection.execute("insert into restores (orders_before) values (now() + $1)", _CLOCKS)
