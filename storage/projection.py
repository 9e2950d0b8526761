"""The read model as the projector writes it: batches in one transaction with the positions that they lead to.

Nothing is brought back while the topics still have it: what comes of an order that was purged is left out, and the
contact data of erased users (semantics 34 and 35).
"""

import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from domain.letters import order_id_of
from domain.projection import PositionMoved, ProjectionBatch
from domain.records import Coordinates
from domain.times import time_of
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.events.v1.order_event_pb2 import OrderEvent
from storage import erased_letters, erasures, forgotten, order_notices
from storage.database import Database

if TYPE_CHECKING:
    from storage.database import Connection


_MOVE: Final = (
    "with asked as (select * from unnest($1::text[], $2::int[], $3::bigint[], $4::bigint[])"
    " as asked (topic, partition, begins, ends)),"
    " held as (select topic, partition, ends from projection_positions join asked using (topic, partition)"
    " where position = begins"
    " order by topic, partition for no key update of projection_positions)"  # one lock order everywhere
    " update projection_positions set position = held.ends from held"
    " where projection_positions.topic = held.topic and projection_positions.partition = held.partition"
)
_KEY: Final = 128  # characters of a text that is indexed: a forged header may be longer than an index takes
_YEAR_10000: Final = 253_402_300_800  # in seconds since 1970


class Projection:
    """Writes the read model and keeps the projector's positions."""

    def __init__(self, database: Database) -> None:
        """Uses the database's pool."""
        self._database = database

    async def position(self, topic: str, partition: int) -> int | None:
        """Returns where the next batch begins; None if the partition was never read.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.connection() as connection:
            position: int | None = await connection.fetchval(
                "select position from projection_positions where topic = $1 and partition = $2", topic, partition
            )
            return position

    async def positions(self) -> dict[tuple[str, int], int]:
        """Returns where the next batch of each partition begins that was read, by topic and number.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch("select topic, partition, position from projection_positions")
        return {(row["topic"], row["partition"]): row["position"] for row in rows}

    async def begin(self, topic: str, partition: int, position: int) -> None:
        """Records the first position of a partition that was never read.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.connection() as connection:
            await connection.execute(
                "insert into projection_positions (topic, partition, position) values ($1, $2, $3)"
                " on conflict do nothing",
                topic,
                partition,
                position,
            )

    async def apply(self, *batches: ProjectionBatch) -> None:
        """Writes batches of different partitions together, and moves their positions.

        Raises:
            PositionMoved: the position is not where the batch begins, for one of them at least: nothing was written.
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.transaction() as connection:
            moved = await connection.execute(
                _MOVE,
                [batch.topic for batch in batches],
                [batch.partition for batch in batches],
                [batch.begins for batch in batches],
                [batch.ends for batch in batches],
            )
            if moved != f"UPDATE {len(batches)}":
                raise PositionMoved
            arrived = [each for batch in batches for each in batch.events]
            known = await forgotten.look(connection, [event.order for _, event in arrived])
            events = [(at, event) for at, event in arrived if event.order.order_id not in known.purged]
            erased = erasures.clear(known.erased, [event.order for _, event in events])
            for batch in batches:
                await erased_letters.clear_arriving(connection, batch)
            await _write_history(
                connection, events, {at: trace for batch in batches for at, trace in batch.traces.items()}
            )
            await _write_views(connection, [event for _, event in events if event.revision > 0])
            await _write_dead_letters(connection, [each for batch in batches for each in batch.dead_letters])
            await _write_failures(connection, [each for batch in batches for each in batch.failures])
            if erased:  # what was projected of them before the erasure, and was not known to be theirs
                await erasures.clear_history(connection, known.erased, [order.order_id for order in erased])
            await order_notices.notify(connection, (event.order.order_id for _, event in events if event.revision > 0))


async def _write_history(
    connection: "Connection", events: Sequence[tuple[Coordinates, OrderEvent]], traces: Mapping[Coordinates, str]
) -> None:
    if events:
        await connection.execute(
            "insert into order_events (order_id, event_id, type, revision, occur_time, topic, partition, record_offset,"
            " event, trace_id, declined_reference) select * from unnest($1::uuid[], $2::uuid[], $3::int[],"
            " $4::bigint[], $5::timestamptz[], $6::text[], $7::int[], $8::bigint[], $9::bytea[], $10::uuid[],"
            " $11::text[]) on conflict (order_id, event_id) do nothing",
            [event.order.order_id for _, event in events],
            [event.event_id for _, event in events],
            [event.type for _, event in events],
            [event.revision for _, event in events],
            [time_of(event.occur_time) for _, event in events],
            [at.topic for at, _ in events],
            [at.partition for at, _ in events],
            [at.offset for at, _ in events],
            [event.SerializeToString() for _, event in events],
            [traces.get(at) for at, _ in events],
            [event.payment_failed.gateway_reference[:_KEY] or None for _, event in events],
        )


async def _write_views(connection: "Connection", events: Sequence[OrderEvent]) -> None:
    latest: dict[str, OrderEvent] = {}
    for event in events:
        known = latest.get(event.order.order_id)
        if known is None or known.revision < event.revision:
            latest[event.order.order_id] = event
    views = [latest[order_id] for order_id in sorted(latest)]  # one lock order everywhere
    if views:
        await connection.execute(
            "insert into order_views (order_id, caller, user_id, status, revision, create_time, snapshot)"
            " select * from unnest($1::uuid[], $2::text[], $3::text[], $4::int[], $5::bigint[], $6::timestamptz[],"
            " $7::bytea[])"
            " on conflict (order_id) do update set status = excluded.status, revision = excluded.revision,"
            " snapshot = excluded.snapshot where order_views.revision < excluded.revision",
            [view.order.order_id for view in views],
            [view.metadata.caller for view in views],
            [view.order.user_id for view in views],
            [view.order.status for view in views],
            [view.revision for view in views],
            [time_of(view.order.create_time) for view in views],
            [view.order.SerializeToString() for view in views],
        )


async def _write_dead_letters(connection: "Connection", letters: Sequence[tuple[Coordinates, DeadLetter]]) -> None:
    if letters:
        await connection.executemany(
            "insert into dead_letters (partition, record_offset, group_name, error_class, order_id, dead_letter,"
            " occur_time) values ($1, $2, $3, $4, $5, $6, least($7::timestamptz, now())) on conflict do nothing",
            [
                (
                    at.partition,
                    at.offset,
                    letter.group[:_KEY],
                    letter.error_class[:_KEY],
                    order_id_of(letter),
                    letter.SerializeToString(),
                    _failure_time(letter),
                )
                for at, letter in letters
            ],
        )


def _failure_time(letter: DeadLetter) -> datetime.datetime | None:
    """Returns when the record failed first; None if what the header says is no time of ours."""
    told = letter.first_failure_time
    return told.ToDatetime(datetime.UTC) if 0 < told.seconds < _YEAR_10000 else None


async def _write_failures(connection: "Connection", failures: Sequence[tuple[Coordinates, DeadLetter]]) -> None:
    if failures:
        await connection.executemany(
            "insert into projection_failures (topic, partition, record_offset, error_class, dead_letter)"
            " values ($1, $2, $3, $4, $5) on conflict do nothing",
            [
                (at.topic, at.partition, at.offset, letter.error_class, letter.SerializeToString())
                for at, letter in failures
            ],
        )
