"""Finds orders by any identifier that has to do with them: each kind by an index of its own."""

import dataclasses
import re
import uuid
from typing import TYPE_CHECKING, Final

from orderflow.orders.v1.order_service_pb2 import IdentifierKind

if TYPE_CHECKING:
    from storage.database import Connection

_TRACE: Final = re.compile(r"[0-9a-f]{32}")
_DEAD_LETTER: Final = re.compile(r"dlq/([0-9]{1,9})-([0-9]{1,18})")
_MOST_OF_TRACE: Final = 5_000
"""Events of one trace that are looked at: whoever calls chooses how many of its calls share one."""

# $1 the text, $2 the same as a UUID, $3 as a trace id, $4 and $5 a dead letter's partition and offset; null where it is
# none. $6 is whose orders, null for everybody's; $7 how many. The planner leaves out what a null rules out.
_FIND: Final = (
    "with found as ("  # noqa: S608 - constants
    f" select $2::uuid as order_id, {IdentifierKind.IDENTIFIER_KIND_ORDER} as kind"
    f" union all select order_id, {IdentifierKind.IDENTIFIER_KIND_REQUEST} from order_requests"
    " where request_id = $1 and ($6::text is null or caller = $6)"
    f" union all select order_id, {IdentifierKind.IDENTIFIER_KIND_EVENT} from order_events where event_id = $2"
    f" union all select order_id, {IdentifierKind.IDENTIFIER_KIND_EVENT} from dead_letters"
    " where partition = $4 and record_offset = $5"
    f" union all select order_id, {IdentifierKind.IDENTIFIER_KIND_TRACE} from (select distinct order_id from ("
    f"  select order_id from order_events where trace_id = $3 limit {_MOST_OF_TRACE}) as of_trace) as orders_of_trace"
    f" union all select order_id, {IdentifierKind.IDENTIFIER_KIND_GATEWAY} from ("
    "  select order_id from payment_entries where kind in ('capture', 'refund') and gateway_reference = $1"
    "  union all select order_id from order_events where declined_reference = $1"
    "  union all select order_id from payments where idempotency_key = $1"
    "  union all select order_id from refunds where idempotency_key = $1) as of_gateway"
    ") select order_id, min(kind) as kind from found"
    " left join order_views using (order_id) left join order_tombstones using (order_id)"
    " where coalesce(order_views.caller, order_tombstones.caller) = coalesce($6, order_views.caller,"
    " order_tombstones.caller)"
    " group by order_id, create_time order by create_time desc nulls last, order_id limit $7"
)


@dataclasses.dataclass(frozen=True)
class Found:
    """An order, and what the identifier is to it. It may be several things: then the nearest."""

    order_id: str
    kind: IdentifierKind


async def find(connection: "Connection", text: str, *, owner: str | None, most: int) -> list[Found]:
    """Returns at most so many orders that an identifier has to do with, newest first. None of others than `owner`."""
    async with connection.transaction():
        # A plan for all texts would be made for those that are everywhere.
        await connection.execute("set local plan_cache_mode = force_custom_plan")
        rows = await connection.fetch(_FIND, *asked(text), owner, most)
    return [Found(str(row["order_id"]), row["kind"]) for row in rows]


def asked(text: str) -> tuple[object, ...]:
    """Returns the first parameters of `_FIND`: what the text may be."""
    lower = text.lower()
    letter = _DEAD_LETTER.fullmatch(lower)
    partition, offset = (int(letter[1]), int(letter[2])) if letter else (None, None)
    return text, _uuid(lower), uuid.UUID(lower) if _TRACE.fullmatch(lower) else None, partition, offset


def _uuid(text: str) -> uuid.UUID | None:
    """Returns the UUID that the text is, with hyphens: without them it is a trace id."""
    try:
        found = uuid.UUID(text)
    except ValueError:
        return None
    return found if str(found) == text else None
