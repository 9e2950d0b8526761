"""What commands came to: written by whoever decides them, read by the servers whose callers wait."""

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING

from domain import erasure
from domain.commands import CommandRefused
from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_pb2 import Order
from storage import order_rows
from storage.database import Database

if TYPE_CHECKING:
    import asyncpg

    from storage.database import Connection


@dataclasses.dataclass(frozen=True)
class CommandAnswer:
    """What a command came to: the order after it, or a refusal. `fingerprint` is of the request that was decided."""

    fingerprint: bytes
    result: Order | CommandRefused


async def store(connection: "Connection", command: Delivery, refusal: CommandRefused | None) -> None:
    """Stores the answer, in the transaction that stores the outcome. None: it was done, or had been done before."""
    await connection.execute(
        "insert into command_answers (event_id, group_name, fingerprint, refusal, refused_status)"
        " values ($1, $2, $3, $4, $5) on conflict do nothing",  # its outcome is in the way too, and rolls this back
        command.event.event_id,
        command.group,
        command.event.command.request_fingerprint,
        refusal.reason if refusal else "",
        refusal.status if refusal else 0,
    )


class CommandAnswers:
    """Reads; changes nothing. Every method raises DependencyDown."""

    def __init__(self, database: Database) -> None:
        """Uses the database's pool."""
        self._database = database

    async def owner(self, order_id: str) -> str | None:
        """Returns who placed the order, None if it has no row (yet)."""
        async with self._database.connection() as connection:
            caller: str | None = await connection.fetchval("select caller from orders where order_id = $1", order_id)
            return caller

    async def find(self, asked: Collection[tuple[str, str]]) -> dict[tuple[str, str], CommandAnswer]:
        """Returns the answers that are there to commands, which are given as event_id and order id.

        The order is as it stood after the command; where that had been done before, as it stands by now.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"select event_id, fingerprint, refusal, refused_status, events, {order_rows.COLUMNS}"  # noqa: S608
                " from unnest($1::uuid[], $2::uuid[]) as asked (event_id, asked_order)"
                " join command_answers using (event_id) join outcomes using (group_name, event_id)"
                " left join orders on orders.order_id = asked_order",
                [event_id for event_id, _ in asked],
                [order_id for _, order_id in asked],
            )
        orders = dict(asked)
        return {
            (event_id, orders[event_id]): CommandAnswer(row["fingerprint"], _result(row))
            for event_id, row in ((str(row["event_id"]), row) for row in rows)
        }


def _result(row: "asyncpg.Record") -> Order | CommandRefused:
    if row["refusal"]:
        return CommandRefused(row["refusal"], row["refused_status"])
    if row["events"]:
        order = OrderEvent.FromString(row["events"][-1]).order
        if row["content"] is not None:
            erasure.restore(order, Order.FromString(row["content"]))
        return order
    return order_rows.order_of(row)
