"""What of the orders that come in must not be stored, or not as it comes: purged ones and those of erased users."""

import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Final

from domain.erasure import Erasure
from orderflow.orders.v1.order_pb2 import Order
from storage import erasures

if TYPE_CHECKING:
    from storage.database import Connection


@dataclasses.dataclass(frozen=True)
class Forgotten:
    """The ids of orders that were purged, and the erasures by user id."""

    purged: Set[str]
    erased: Mapping[str, Erasure]


# Without any erasure, the ordinary case, no hash is made.
_LOOK: Final = (
    "select order_id::text, null::text as user_id, null::text as user_hash, null::timestamptz as before_time"  # noqa: S608
    " from order_tombstones where order_id = any($1::uuid[])"
    " union all"
    " select null, user_id, encode(user_hash, 'hex'), before_time"
    " from unnest($2::text[]) as asked (user_id) cross join user_hash_keys"
    f" join erasures on user_hash = {erasures.hash_of('user_id')} where exists (select from erasures)"
)


async def look(connection: "Connection", orders: Sequence[Order]) -> Forgotten:
    """Returns what holds for the orders. Call it after the first write of the transaction (storage/erasures.py).

    So it sees a purge of an order, too, that was under way when a row of that order was inserted again.
    """
    if not orders:
        return Forgotten(frozenset(), {})
    user_ids = [user_id for user_id in dict.fromkeys(order.user_id for order in orders) if user_id]
    rows = await connection.fetch(_LOOK, list(dict.fromkeys(order.order_id for order in orders)), user_ids)
    return Forgotten(
        purged={row["order_id"] for row in rows if row["order_id"] is not None},
        erased={
            row["user_id"]: erasures.erasure_of(row["user_hash"], row) for row in rows if row["user_id"] is not None
        },
    )


async def is_purged(connection: "Connection", order_id: str) -> bool:
    """Whether the order, which has no row, had one once."""
    return bool(await connection.fetchval("select true from order_tombstones where order_id = $1", order_id))
