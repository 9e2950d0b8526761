"""Outcomes: what was emitted for every record, stored in the transaction that decided it (semantics 12 to 14)."""

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from domain.records import Coordinates, Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent
from storage.database import Database
from telemetry import logs

if TYPE_CHECKING:
    from storage.database import Connection

log = logs.get()

Decision = Callable[["Connection"], Awaitable[list[OrderEvent]]]
"""Decides a record inside a transaction and returns the events to emit, none if nothing is to happen."""

Effect = Callable[["Connection", OrderEvent], Awaitable[None]]
"""What an event that was decided does besides, in the same transaction."""


@dataclasses.dataclass(frozen=True)
class Settled:
    """The record is decided already; `events` are to be emitted."""

    events: list[OrderEvent]


class _StoredMeanwhileError(Exception):
    """Another process stored an outcome for the record while this one decided: this decision is rolled back."""


async def obeyed(connection: "Connection", delivery: Delivery) -> list[OrderEvent] | None:
    """Returns what the stored outcome says to emit: a replay's events, nothing for a copy. None: none is stored."""
    row = await connection.fetchrow(
        "select topic, partition, record_offset, events from outcomes where group_name = $1 and event_id = $2",
        delivery.group,
        delivery.event.event_id,
    )
    if row is None:
        return None
    if Coordinates(row["topic"], row["partition"], row["record_offset"]) != delivery.coordinates:
        log.info("order.duplicate_skipped")
        return []
    log.info("order.replayed")
    return [OrderEvent.FromString(event) for event in row["events"]]


async def store(connection: "Connection", delivery: Delivery, events: Sequence[OrderEvent]) -> None:
    """Stores the record's outcome.

    Raises:
        _StoredMeanwhileError: there is one; only inside `decide`, which then obeys it.
    """
    stored = await connection.fetchval(
        "insert into outcomes (group_name, event_id, topic, partition, record_offset, events)"
        " values ($1, $2, $3, $4, $5, $6) on conflict do nothing returning true",
        delivery.group,
        delivery.event.event_id,
        delivery.coordinates.topic,
        delivery.coordinates.partition,
        delivery.coordinates.offset,
        [event.SerializeToString() for event in events],
    )
    if not stored:
        raise _StoredMeanwhileError


async def decide(
    database: Database, delivery: Delivery, decision: Decision, *, last: Effect | None = None
) -> list[OrderEvent]:
    """Returns what to emit for the record: by its stored outcome, or else by `decision`, which is then stored with it.

    `last` is done for each event that was decided, right before the commit: rows that many orders want, such as a hot
    SKU's stock, are locked there, so that they wait for one round trip and not for a whole decision.

    Raises:
        DependencyDown: PostgreSQL is away; whether the decision was committed shows when the record is handled again.
    """
    try:
        async with database.transaction() as connection:
            events = await obeyed(connection, delivery)
            if events is None:
                events = await decision(connection)
                await store(connection, delivery, events)
                if last is not None:
                    for event in events:
                        await last(connection, event)
            return events
    except _StoredMeanwhileError:
        async with database.connection() as connection:
            events = await obeyed(connection, delivery)
            assert events is not None, "an outcome that was in the way is gone"
            return events
