"""What happened to orders, as the projector recorded it: pages of all of it, and the run of an order's revisions."""

import dataclasses
import datetime
from collections.abc import Collection

from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.operations.v1.dead_letter_service_pb2 import DeadLetterState
from storage.database import Database


@dataclasses.dataclass(frozen=True, order=True)
class HistoryPosition:
    """Where an entry stands in its order's history: by time, then revision, then id, compared byte by byte."""

    time: datetime.datetime
    revision: int
    entry_id: str


@dataclasses.dataclass(frozen=True)
class HistoryRow:
    """One entry: an event or a dead letter.

    `resolution` is what became of a dead letter, the name of its state without its prefix; empty while it is open.
    """

    position: HistoryPosition
    what: OrderEvent | DeadLetter
    resolution: str = ""
    resolution_reason: str = ""


class OrderHistory:
    """Reads; changes nothing. Every method raises DependencyDown."""

    def __init__(self, database: Database) -> None:
        """Uses the database's pool."""
        self._database = database

    async def page(self, order_id: str, *, size: int, after: HistoryPosition | None) -> list[HistoryRow]:
        """Returns at most `size` entries of the order, oldest first, that stand after a position."""
        values: list[object] = [order_id, size]
        condition = ""
        if after is not None:
            values += [after.time, after.revision, after.entry_id]
            condition = "where (time, revision, entry_id) > ($3, $4, $5)"
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "select time, revision, entry_id, event, dead_letter, state, reason from ("  # noqa: S608 - numbers
                ' select occur_time as time, revision, event_id::text collate "C" as entry_id,'
                " event, null::bytea as dead_letter, null::smallint as state, null::text as reason"
                " from order_events where order_id = $1"
                " union all"
                " select occur_time, 0, 'dlq/' || partition || '-' || record_offset, null, dead_letter, state, reason"
                " from dead_letters left join dead_letter_resolutions using (partition, record_offset)"
                " where order_id = $1"
                f") as entries {condition} order by time, revision, entry_id limit $2",
                *values,
            )
        return [
            HistoryRow(
                HistoryPosition(row["time"], row["revision"], row["entry_id"]),
                DeadLetter.FromString(row["dead_letter"])
                if row["event"] is None
                else OrderEvent.FromString(row["event"]),
                _resolution(row["state"]),
                row["reason"] or "",
            )
            for row in rows
        ]

    async def runs(self, wanted: Collection[tuple[str, int]]) -> dict[tuple[str, int], list[OrderEvent]]:
        """Returns for each (order id, revision) the events past that revision, as far as they have no gap.

        A later revision may be projected first, from another topic (semantics 32): the run ends before the hole.
        """
        runs: dict[tuple[str, int], list[OrderEvent]] = {each: [] for each in wanted}
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "select order_id, after, revision, event"
                " from unnest($1::uuid[], $2::bigint[]) as wanted (order_id, after) join order_events using (order_id)"
                " where revision > after order by order_id, revision, event_id",
                [order_id for order_id, _ in wanted],
                [after for _, after in wanted],
            )
        for row in rows:
            run = runs[str(row["order_id"]), row["after"]]
            if row["revision"] == row["after"] + len(run) + 1:
                run.append(OrderEvent.FromString(row["event"]))
        return runs


def _resolution(state: int | None) -> str:
    if state is None:
        return ""
    return DeadLetterState.Name(DeadLetterState.ValueType(state)).removeprefix("DEAD_LETTER_STATE_")
