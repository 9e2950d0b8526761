"""Erases a user: records the erasure, then clears what stands in the database (semantics 35).

What is on the topics stays there until they forget it. Whoever reads it there, or has it in memory, meets the erasure
before storing any of it: see storage/erasures.py.
"""

import asyncio
import dataclasses
import itertools
from collections.abc import Iterable, Sequence, Set
from typing import TYPE_CHECKING, Final

from domain import erasure
from domain.erasure import Erasure
from domain.records import Coordinates
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_pb2 import Order
from storage import erased_letters, erasures, order_rows
from storage.database import Database

if TYPE_CHECKING:
    import asyncpg

    from storage.database import Connection

_BATCH: Final = 200
_CLOCKS_SECONDS: Final = 60
"""By how much the clocks of two servers may differ: an order that is placed so soon after counts as before."""

_WRITERS_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.05
_SCAN_SECONDS: Final = 3600.0

_RECORD: Final = (
    "insert into erasures (user_hash, before_time)"  # noqa: S608 - constants
    f" select {erasures.hash_of('$1::text')}, now() + make_interval(secs => $2) from user_hash_keys"
    " on conflict (user_hash) do update set before_time = excluded.before_time, erase_time = now()"
    " returning encode(user_hash, 'hex') as user_hash, before_time"
)
# The row of an order that the projector has not read yet is found by its bytes.
_ORDERS: Final = (
    "select order_id, snapshot as content, true as is_theirs from order_views where user_id = $1"
    " union all"
    " select order_id, content, false from orders where position(convert_to($1, 'UTF8') in content) > 0"
    " and not exists (select from order_views where order_views.order_id = orders.order_id)"
)


class WritersOpenError(Exception):
    """A transaction that had begun before the erasure has not ended: it may yet store what is to be cleared."""


@dataclasses.dataclass(frozen=True)
class _Subject:
    """Whom an erasure is about."""

    user_id: str
    erasure: Erasure
    order_ids: Sequence[str]
    contacts: Set[str]

    @property
    def found(self) -> dict[str, Erasure]:
        return {self.user_id: self.erasure}


class Eraser:
    """Erases users. Every method raises DependencyDown."""

    def __init__(self, database: Database, *, dead_letter_topic: str) -> None:
        """Uses the database's pool. `dead_letter_topic` is what dead letters stand on."""
        self._database = database
        self._dead_letter_topic = dead_letter_topic

    async def orders_of(self, user_id: str) -> int:
        """Returns how many orders of the user there are."""
        return len((await self._orders(user_id))[0])

    async def erase(self, user_id: str) -> dict[str, int]:
        """Erases the user's contact data. Returns how many rows had any, by table. Safe to repeat.

        Raises:
            WritersOpenError: the erasure holds for all that comes, but not all that is there is cleared: repeat it.
        """
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_RECORD, user_id, float(_CLOCKS_SECONDS))
        assert row is not None
        await self._wait_for_writers()
        order_ids, contacts = await self._orders(user_id)
        subject = _Subject(user_id, erasures.erasure_of(row["user_hash"], row), order_ids, contacts)
        # By the views the orders are found, and by both what is in bytes that cannot be read: so they come last.
        return {
            "dead_letters": await self._clear_dead_letters(subject),
            "projection_failures": await self._clear_failures(subject),
            "outcomes": await self._clear_outcomes(subject),
            "order_events": await self._clear_history(subject),
            "orders": await self._clear_orders(subject),
            "order_views": await self._clear_views(subject),
        }

    async def _wait_for_writers(self) -> None:
        async with self._database.connection() as connection:
            # Later than every transaction that may have looked for the erasure before it was there.
            horizon: str = await connection.fetchval("select pg_current_xact_id()::text")
        try:
            async with asyncio.timeout(_WRITERS_SECONDS):
                while not await self._has_ended(horizon):  # noqa: ASYNC110 - nothing tells when it has
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise WritersOpenError(
                f"a transaction that had begun before is still open after {_WRITERS_SECONDS:g} s (pg_stat_activity"
                " has it). The erasure is recorded, and not all is cleared: run the command again"
            ) from None

    async def _has_ended(self, horizon: str) -> bool:
        async with self._database.connection() as connection:
            return bool(
                await connection.fetchval("select pg_snapshot_xmin(pg_current_snapshot()) >= $1::text::xid8", horizon)
            )

    async def _orders(self, user_id: str) -> tuple[list[str], frozenset[str]]:
        """Returns the ids of the user's orders, and all contacts that they have."""
        async with self._database.transaction() as connection:
            await _unhurried(connection)
            rows = await connection.fetch(_ORDERS, user_id, timeout=_SCAN_SECONDS)
        orders = [(row, Order.FromString(row["content"])) for row in rows]
        theirs = [
            (str(row["order_id"]), order) for row, order in orders if row["is_theirs"] or order.user_id == user_id
        ]
        contacts = frozenset(itertools.chain.from_iterable(erasure.contacts_of(order) for _, order in theirs))
        return sorted({order_id for order_id, _ in theirs}), contacts

    async def _clear_dead_letters(self, subject: _Subject) -> int:
        count, after = 0, (-1, -1)
        while True:
            async with self._database.transaction() as connection:
                rows = await connection.fetch(
                    "select partition, record_offset, dead_letter from dead_letters"
                    " where (partition, record_offset) > ($1, $2) order by partition, record_offset limit $3"
                    " for no key update",
                    *after,
                    _BATCH,
                )
                if not rows:
                    return count
                after = rows[-1]["partition"], rows[-1]["record_offset"]
                cleared, gone = _cleared(rows, subject, topic=self._dead_letter_topic)
                await connection.executemany(
                    "update dead_letters set dead_letter = $3 where partition = $1 and record_offset = $2",
                    [(at.partition, at.offset, letter) for at, letter in cleared],
                )
                await erased_letters.record(connection, gone, dead_letters=gone)
                count += len(cleared)

    async def _clear_failures(self, subject: _Subject) -> int:
        count, after = 0, ("", -1, -1)
        while True:
            async with self._database.transaction() as connection:
                rows = await connection.fetch(
                    "select topic, partition, record_offset, dead_letter from projection_failures"
                    " where (topic, partition, record_offset) > ($1, $2, $3)"
                    " order by topic, partition, record_offset limit $4 for no key update",
                    *after,
                    _BATCH,
                )
                if not rows:
                    return count
                after = rows[-1]["topic"], rows[-1]["partition"], rows[-1]["record_offset"]
                cleared, gone = _cleared(rows, subject)
                await connection.executemany(
                    "update projection_failures set dead_letter = $4"
                    " where topic = $1 and partition = $2 and record_offset = $3",
                    [(at.topic, at.partition, at.offset, letter) for at, letter in cleared],
                )
                await erased_letters.record(connection, gone, dead_letters=())
                count += len(cleared)

    async def _clear_outcomes(self, subject: _Subject) -> int:
        """Clears outcomes that an earlier version stored with contact data."""
        async with self._database.transaction() as connection:
            await _unhurried(connection)
            rows = await connection.fetch(
                "select group_name, event_id, events from outcomes where holds_contact and exists"
                " (select from unnest(events) as event where position(convert_to($1, 'UTF8') in event) > 0)",
                subject.user_id,
                timeout=_SCAN_SECONDS,
            )
            found = []
            for row in rows:
                events = [OrderEvent.FromString(event) for event in row["events"]]
                if any(event.order.user_id == subject.user_id for event in events):
                    bare = [erasure.impersonal(event).SerializeToString() for event in events]
                    found.append((row["group_name"], row["event_id"], bare))
            await connection.executemany(
                "update outcomes set events = $3, holds_contact = false where group_name = $1 and event_id = $2",
                found,
                timeout=_SCAN_SECONDS,
            )
        return len(found)

    async def _clear_history(self, subject: _Subject) -> int:
        count = 0
        for order_ids in _batches(subject.order_ids):
            async with self._database.transaction() as connection:
                count += await erasures.clear_history(connection, subject.found, order_ids)
        return count

    async def _clear_views(self, subject: _Subject) -> int:
        count = 0
        for order_ids in _batches(subject.order_ids):
            async with self._database.transaction() as connection:
                rows = await connection.fetch(
                    "select order_id, snapshot from order_views where order_id = any($1::uuid[])"
                    " order by order_id for no key update",  # one lock order everywhere
                    order_ids,
                )
                views = [Order.FromString(row["snapshot"]) for row in rows]
                cleared = erasures.clear(subject.found, views)
                await connection.executemany(
                    "update order_views set user_id = $2, snapshot = $3 where order_id = $1",
                    [(view.order_id, view.user_id, view.SerializeToString()) for view in cleared],
                )
                count += len(cleared)
        return count

    async def _clear_orders(self, subject: _Subject) -> int:
        count = 0
        for order_ids in _batches(subject.order_ids):
            async with self._database.transaction() as connection:
                count += await order_rows.clear_all(connection, subject.found, order_ids)
        return count


async def _unhurried(connection: "Connection") -> None:
    """Lets the transaction read a whole table."""
    await connection.execute("set local statement_timeout = 0")


def _cleared(
    rows: Iterable["asyncpg.Record"], subject: _Subject, *, topic: str = ""
) -> tuple[list[tuple[Coordinates, bytes]], list[Coordinates]]:
    """Returns the letters of rows that had something to clear, as they are after it, and which of them are blank."""
    cleared, gone = [], []
    for row in rows:
        letter = DeadLetter.FromString(row["dead_letter"])
        if erased_letters.cleared(letter, subject.found, contacts=subject.contacts, order_ids=subject.order_ids):
            at = Coordinates(topic or row["topic"], row["partition"], row["record_offset"])
            cleared.append((at, letter.SerializeToString()))
            if not letter.HasField("value"):
                gone.append(at)
    return cleared, gone


def _batches(order_ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (order_ids[at : at + _BATCH] for at in range(0, len(order_ids), _BATCH))
