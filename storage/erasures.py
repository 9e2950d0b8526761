"""Erased users, as everybody who stores or sends something of an order has to know them (semantics 35).

Invariant: who writes contact data reads the erasures after the first write of its transaction, and before it commits.
An erasure is committed first, and what stands in the database is cleared once every transaction that had written
anything by then has ended (storage/eraser.py): so each either has seen the erasure, or is seen.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import asyncpg

from domain import erasure
from domain.erasure import Erasure
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_pb2 import Order

if TYPE_CHECKING:
    from storage.database import Connection


def hash_of(user_id: str) -> str:
    """Returns the SQL of a user id's keyed hash, of a query that has user_hash_keys in it.

    Two keyed SHA-256, one inside the other, as HMAC does it, with keys of their own instead of pads.
    """
    return f"sha256(outer_key || sha256(inner_key || convert_to({user_id}, 'UTF8')))"


def found_of(user_ids: str) -> str:
    """Returns the SQL that finds the erasures of an array of user ids. Each must be in it once."""
    # Without any erasure, the ordinary case, no hash is made.
    return (
        "select user_id, encode(user_hash, 'hex') as user_hash, before_time"  # noqa: S608 - constants
        f" from unnest({user_ids}) as asked (user_id) cross join user_hash_keys"
        f" join erasures on user_hash = {hash_of('user_id')} where exists (select from erasures)"
    )


_FIND: Final = found_of("$1::text[]")


def distinct(user_ids: Iterable[str]) -> list[str]:
    """Returns the ids that may be asked for, each once."""
    # What only a forger writes, and no text of PostgreSQL can be, is nobody's who could have been erased.
    return [user_id for user_id in dict.fromkeys(user_ids) if user_id and "\x00" not in user_id]


def erasure_of(user_hash: str, row: asyncpg.Record) -> Erasure:
    """Returns the erasure that a row of `erasures` is; `user_hash` is in hexadecimal."""
    return Erasure(erasure.pseudonym_of(user_hash), row["before_time"])


async def find(connection: "Connection", user_ids: Iterable[str]) -> dict[str, Erasure]:
    """Returns the erasures of those of the users that were erased."""
    asked = distinct(user_ids)
    if not asked:
        return {}
    rows = await connection.fetch(_FIND, asked)
    return {row["user_id"]: erasure_of(row["user_hash"], row) for row in rows}


async def apply(connection: "Connection", orders: Sequence[Order]) -> list[Order]:
    """Clears the contact data of those of the orders that an erasure covers. Returns those that had any."""
    found = await find(connection, (order.user_id for order in orders))
    return clear(found, orders)


def clear(found: Mapping[str, Erasure], orders: Iterable[Order]) -> list[Order]:
    """Clears the contact data of those of the orders that an erasure covers, by user. Returns those that had any."""
    cleared = []
    for order in orders:
        erased = found.get(order.user_id)
        if erased is not None and erased.covers(order) and erased.clear(order):
            cleared.append(order)
    return cleared


def covered(found: Mapping[str, Erasure], order: Order) -> bool:
    """Whether one of the erasures, by user, covers the order."""
    erased = found.get(order.user_id)
    return erased is not None and erased.covers(order)


async def clear_history(connection: "Connection", found: Mapping[str, Erasure], order_ids: Sequence[str]) -> int:
    """Clears the events of orders that are projected already. Returns how many had anything to clear."""
    rows = await connection.fetch(
        "select order_id, event_id, event from order_events where order_id = any($1::uuid[])"
        " order by order_id, event_id for no key update",  # one lock order everywhere
        order_ids,
    )
    cleared = []
    for row in rows:
        event = OrderEvent.FromString(row["event"])
        if clear(found, [event.order]):
            cleared.append((row["order_id"], row["event_id"], event.SerializeToString()))
    if cleared:
        await connection.executemany(
            "update order_events set event = $3 where order_id = $1 and event_id = $2", cleared
        )
    return len(cleared)
