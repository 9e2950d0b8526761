"""How things stand: orders that are open, charges that nobody knows of, dead letters that wait for somebody."""

import dataclasses
import datetime
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from orderflow.operations.v1.dead_letter_service_pb2 import DeadLetterState
from orderflow.orders.v1.order_pb2 import OrderStatus
from storage.database import Database

if TYPE_CHECKING:
    import asyncpg

CREATED: Final = "created"
PROCESSING: Final = "processing"
REFUNDING: Final = "refunding"
STATES: Final = (CREATED, PROCESSING, REFUNDING)
OTHER: Final = "other"

MOST: Final = 20_000
"""Of a state so many are looked at, the oldest: a look costs no more however much piles up."""
_MOST_CLASSES: Final = 50
_CLASS: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")

# The oldest are taken first and filtered then: a projector that is far behind shows many as CREATED that moved on long
# ago. Each is looked up by its key, which a subquery that returns a value makes sure of: `not exists` may become a join
# with the whole table. An order whose record was discarded waits for nothing.
_CREATED: Final = (
    "select count(*) as open, count(*) filter (where create_time <= $1) as overdue"  # noqa: S608 - constants
    " from (select order_id, create_time from order_views"
    f" where status = {OrderStatus.ORDER_STATUS_CREATED} order by create_time, order_id limit {MOST}) as listed"
    " where (select true from orders where orders.order_id = listed.order_id) is null"
    " and (select true from dead_letters join dead_letter_resolutions as resolved using (partition, record_offset)"
    f" where dead_letters.order_id = listed.order_id and resolved.state = {DeadLetterState.DEAD_LETTER_STATE_DISCARDED}"
    " limit 1) is null"
)
# The status stands in the text and not in a parameter: only so PostgreSQL knows that the partial index has all of them.
_PROCESSING: Final = (
    "select count(*) as open, count(*) filter (where update_time <= $1 or expire_time <= $2) as overdue,"  # noqa: S608
    " min(sent_time) as sent_since from (select update_time, expire_time, (select first_send_time from payments"
    " where payments.order_id = orders.order_id and state in ('intended', 'unknown')) as sent_time from orders"
    f" where status = {OrderStatus.ORDER_STATUS_PROCESSING} order by expire_time, order_id limit {MOST}) as processing"
)
_REFUNDING: Final = (
    "select count(distinct order_id) as open, count(distinct order_id) filter"  # noqa: S608 - constants
    " (where first_send_time <= $2 or first_send_time is null and update_time <= $1) as overdue"
    " from (select order_id, first_send_time, update_time from refunds where state = 'intended'"
    f" order by first_send_time limit {MOST}) as refunding"
)
# The first row is that of all together.
_UNRESOLVED: Final = (
    "select group_name, error_class, count(*) as letters, min(recorded_time) as since from dead_letters"  # noqa: S608
    " where not exists (select from dead_letter_resolutions as resolved where"
    " resolved.partition = dead_letters.partition and resolved.record_offset = dead_letters.record_offset)"
    " group by grouping sets ((), (group_name, error_class))"
    f" order by grouping(group_name, error_class) desc, letters desc, 1, 2 limit {_MOST_CLASSES} + 1"
)


@dataclasses.dataclass(frozen=True)
class Patience:
    """After how long an order is overdue.

    Attributes:
        waiting: CREATED or PROCESSING since, or with a refund that is not out at the gateway.
        unpaid: PROCESSING past its expire_time.
        refunding: with a refund that was sent and that nobody knows of.
    """

    waiting: datetime.timedelta
    unpaid: datetime.timedelta
    refunding: datetime.timedelta


@dataclasses.dataclass(frozen=True)
class Standing:
    """How things stood at one moment.

    Attributes:
        open: Orders by state, each of STATES; at most MOST of each.
        overdue: Those of them that have been in it for longer than they may.
        unknown_since: When the oldest charge was sent of which nobody knows what it came to; None: there is none.
        unresolved: Open dead letters by group and error class, the rest as OTHER.
        unresolved_since: When the oldest of them was recorded; None: there is none.
    """

    open: Mapping[str, int]
    overdue: Mapping[str, int]
    unknown_since: datetime.datetime | None
    unresolved: Mapping[tuple[str, str], int]
    unresolved_since: datetime.datetime | None


class StandingRecords:
    """Reads; changes nothing and locks nothing."""

    def __init__(self, database: Database, *, patience: Patience) -> None:
        """Uses the database's pool."""
        self._database = database
        self._patience = patience

    async def read(self, now: datetime.datetime) -> Standing:
        """Returns how things stand.

        Raises:
            DependencyDown: PostgreSQL is away, or too busy for such a question.
        """
        waiting = now - self._patience.waiting
        async with self._database.connection() as connection:
            created = await connection.fetchrow(_CREATED, waiting)
            processing = await connection.fetchrow(_PROCESSING, waiting, now - self._patience.unpaid)
            refunding = await connection.fetchrow(_REFUNDING, waiting, now - self._patience.refunding)
            everything, *classes = await connection.fetch(_UNRESOLVED)
            groups = await connection.fetch("select distinct group_name from consumer_groups")
        assert created is not None
        assert processing is not None
        assert refunding is not None
        states = {CREATED: created, PROCESSING: processing, REFUNDING: refunding}
        return Standing(
            open={state: row["open"] for state, row in states.items()},
            overdue={state: row["overdue"] for state, row in states.items()},
            unknown_since=processing["sent_since"],
            unresolved=_bounded(classes, everything["letters"], known={row["group_name"] for row in groups}),
            unresolved_since=everything["since"],
        )


def _bounded(classes: Iterable["asyncpg.Record"], total: int, *, known: set[str]) -> dict[tuple[str, str], int]:
    """Returns how many there are of each class; whoever writes to dlq names groups and classes as he likes."""
    counted: Counter[tuple[str, str]] = Counter()
    for row in classes:
        group = row["group_name"] if row["group_name"] in known else OTHER
        counted[group, row["error_class"] if _CLASS.fullmatch(row["error_class"]) else OTHER] += row["letters"]
    if rest := total - counted.total():
        counted[OTHER, OTHER] += rest
    return dict(counted)
