"""Outcomes: what was emitted for every record, stored in the transaction that decided it (semantics 12 to 14).

They do not keep who their orders are for, so that there is nothing to erase in them (semantics 35). A replay takes that
from the order's row, which it is erased from: so it emits the same event again, or the same without contact data.
"""

import dataclasses
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import asyncpg

from domain import erasure
from domain.records import Coordinates, Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_pb2 import Order
from storage import erasures
from storage.database import Database
from telemetry import logs

if TYPE_CHECKING:
    from storage.database import Connection

log = logs.get()

Decision = Callable[["Connection"], Awaitable[list[OrderEvent]]]
"""Decides a record inside a transaction and returns the events to emit, none if nothing is to happen."""

DecisionOfAll = Callable[["Connection", Sequence[Delivery]], Awaitable[list[list[OrderEvent]]]]
"""Decides several records inside a transaction and returns the events to emit for each."""

Effect = Callable[["Connection", OrderEvent], Awaitable[None]]
"""What an event that was decided does besides, in the same transaction."""

EffectOfAll = Callable[["Connection", Sequence[OrderEvent]], Awaitable[None]]
"""What the events that were decided together do besides, in the same transaction."""


@dataclasses.dataclass(frozen=True)
class Settled:
    """The record is decided already; `events` are to be emitted."""

    events: list[OrderEvent]


@dataclasses.dataclass(frozen=True, slots=True)
class StoredOutcome:
    """An outcome, and where the record stands that it was stored for. `events` are serialized, without who for.

    `content` is the order's, serialized, as its row has it; None where it has no row.
    """

    coordinates: Coordinates
    events: Sequence[bytes]
    content: bytes | None = None


class _StoredMeanwhileError(Exception):
    """Another process stored an outcome for the record while this one decided: this decision is rolled back."""


def obey(stored: StoredOutcome, delivery: Delivery) -> list[OrderEvent]:
    """Returns what a stored outcome says to emit: a replay's events, nothing for a copy."""
    if stored.coordinates != delivery.coordinates:
        log.info("order.duplicate_skipped")
        return []
    log.info("order.replayed")
    # Without a row it is an order that only somebody else's decision has not reached yet: the record itself tells.
    order = delivery.event.order if stored.content is None else Order.FromString(stored.content)
    events = [OrderEvent.FromString(event) for event in stored.events]
    for event in events:
        erasure.restore(event.order, order)
    return events


async def obeyed(connection: "Connection", delivery: Delivery) -> list[OrderEvent] | None:
    """Returns what the record's stored outcome says to emit. None: none is stored."""
    row = await connection.fetchrow(
        "select topic, partition, record_offset, events, (select content from orders where order_id = $3) as content"
        " from outcomes where group_name = $1 and event_id = $2",
        *_key(delivery),
        delivery.event.order.order_id,
    )
    return obey(_stored(row), delivery) if row else None


def _key(delivery: Delivery) -> tuple[str, str]:
    return delivery.group, delivery.event.event_id


def _stored(row: asyncpg.Record) -> StoredOutcome:
    at = Coordinates(row["topic"], row["partition"], row["record_offset"])
    return StoredOutcome(at, row["events"], row["content"])


def _kept(coordinates: Coordinates, events: Sequence[OrderEvent]) -> StoredOutcome:
    return StoredOutcome(coordinates, [erasure.impersonal(event).SerializeToString() for event in events])


async def store(connection: "Connection", delivery: Delivery, events: Sequence[OrderEvent]) -> None:
    """Stores the record's outcome.

    Raises:
        _StoredMeanwhileError: there is one; only inside `decide`, which then obeys it.
    """
    await _store_or_raise(connection, [delivery], [_kept(delivery.coordinates, events)])


async def _store_or_raise(
    connection: "Connection", deliveries: Sequence[Delivery], outcomes: Sequence[StoredOutcome]
) -> None:
    stored = await _store(connection, deliveries, outcomes)
    if len(stored) < len(deliveries):
        raise _StoredMeanwhileError


async def _store(
    connection: "Connection", deliveries: Sequence[Delivery], outcomes: Sequence[StoredOutcome]
) -> set[tuple[str, str]]:
    """Stores outcomes of different events. Returns the keys of those that had none, and have this one now."""
    # PostgreSQL has no arrays of arrays of different lengths: all events stand in one, each outcome has a slice of it.
    ends = list(itertools.accumulate(len(each.events) for each in outcomes))
    rows = await connection.fetch(
        "insert into outcomes (group_name, event_id, topic, partition, record_offset, events, holds_contact)"
        " select group_name, event_id, topic, partition, record_offset, ($8::bytea[])[first:last], false"
        " from unnest($1::text[], $2::uuid[], $3::text[], $4::integer[], $5::bigint[], $6::integer[], $7::integer[])"
        " as decided (group_name, event_id, topic, partition, record_offset, first, last)"
        " order by group_name, event_id"  # one lock order everywhere
        " on conflict do nothing returning group_name, event_id",
        [each.group for each in deliveries],
        [each.event.event_id for each in deliveries],
        [each.coordinates.topic for each in deliveries],
        [each.coordinates.partition for each in deliveries],
        [each.coordinates.offset for each in deliveries],
        [end - len(each.events) + 1 for end, each in zip(ends, outcomes, strict=True)],
        ends,
        [event for each in outcomes for event in each.events],
    )
    return {(row["group_name"], str(row["event_id"])) for row in rows}


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


async def decide_all(
    database: Database, deliveries: Sequence[Delivery], decision: DecisionOfAll, *, last: EffectOfAll | None = None
) -> list[list[OrderEvent] | StoredOutcome]:
    """Decides records in one transaction, each as `decide` would, in their order; `last` is done for all at once.

    Returns for each the events that were decided, or a stored outcome for the caller to `obey`. `decision` is handed
    those that have none; of several with the same event the first, and the others obey its outcome.

    Hardly any record has one, so they are looked for only once one was in the way. Until then `decision` is handed
    those records, too, whose orders have moved already; what it makes of them is rolled back.

    Raises:
        DependencyDown: as `decide`.
    """
    stored: dict[tuple[str, str], StoredOutcome] = {}
    while True:
        fresh: dict[tuple[str, str], Delivery] = {}
        for each in deliveries:
            if _key(each) not in stored:
                fresh.setdefault(_key(each), each)
        if not fresh:
            return [stored[_key(each)] for each in deliveries]
        try:
            async with database.transaction() as connection:
                events = await decision(connection, list(fresh.values()))
                kept = [_kept(each.coordinates, told) for each, told in zip(fresh.values(), events, strict=True)]
                await _store_or_raise(connection, list(fresh.values()), kept)
                if last is not None:
                    await last(connection, list(itertools.chain.from_iterable(events)))
        except _StoredMeanwhileError:  # by somebody who has committed, so that it is found now
            async with database.connection() as connection:
                stored = await find_stored(connection, deliveries)
            continue
        decided = dict(zip(fresh, events, strict=True))
        stored.update(zip(fresh, kept, strict=True))
        return [decided[_key(each)] if fresh.get(_key(each)) is each else stored[_key(each)] for each in deliveries]


async def store_all(
    connection: "Connection", deliveries: Sequence[Delivery], events: Sequence[list[OrderEvent]]
) -> list[list[OrderEvent] | StoredOutcome]:
    """Stores what was decided where nothing else changes with it: that is one statement, and needs no transaction.

    Returns as `decide_all` does. A record that has an outcome keeps it.
    """
    first: dict[tuple[str, str], Delivery] = {}
    kept: dict[tuple[str, str], StoredOutcome] = {}
    for each, told in zip(deliveries, events, strict=True):
        if _key(each) not in first:
            first[_key(each)], kept[_key(each)] = each, _kept(each.coordinates, told)
    new = await _store(connection, list(first.values()), list(kept.values()))
    if others := [each for key, each in first.items() if key not in new]:
        # A statement of its own, which sees what another transaction committed after the first one began.
        found = await find_stored(connection, others)
        assert len(found) == len(others), "an outcome that was in the way is gone"
        kept |= found
    return [
        told if _key(each) in new and first[_key(each)] is each else kept[_key(each)]
        for each, told in zip(deliveries, events, strict=True)
    ]


class Known(NamedTuple):
    """What is known of a record: the outcome that is stored for its event, and whether an erasure covers its order."""

    outcome: StoredOutcome | None
    is_erased: bool


async def find_all(connection: "Connection", deliveries: Sequence[Delivery]) -> list[Known]:
    """Returns what is known of each record. Of a database that is `of_many`."""
    user_ids = dict.fromkeys(erasures.distinct(each.event.order.user_id for each in deliveries))
    rows = await connection.fetch(
        f"with erased as ({erasures.found_of('$1::text[]')})"  # noqa: S608 - a constant
        " select topic, partition, record_offset, events, user_hash, before_time,"
        # Hardly any has an outcome: a join would be planned for all of them, and read the whole table.
        " (select content from orders where orders.order_id = asked_order and topic is not null) as content"
        " from unnest($2::text[], $3::uuid[], $4::uuid[], $5::text[]) with ordinality"
        " as asked (group_name, event_id, asked_order, user_id, number)"
        " left join outcomes using (group_name, event_id) left join erased using (user_id) order by number",
        list(user_ids),
        [each.group for each in deliveries],
        [each.event.event_id for each in deliveries],
        [each.event.order.order_id for each in deliveries],
        [user_id if (user_id := each.event.order.user_id) in user_ids else "" for each in deliveries],
    )
    return [
        Known(
            outcome=_stored(row) if row["topic"] is not None else None,
            is_erased=row["before_time"] is not None
            and erasures.erasure_of(row["user_hash"], row).covers(each.event.order),
        )
        for each, row in zip(deliveries, rows, strict=True)
    ]


async def find_stored(connection: "Connection", deliveries: Sequence[Delivery]) -> dict[tuple[str, str], StoredOutcome]:
    """Returns the outcomes that are stored for the records' events, by group and event_id."""
    rows = await connection.fetch(
        "select group_name, event_id, topic, partition, record_offset, events, content"
        " from unnest($1::text[], $2::uuid[], $3::uuid[]) as asked (group_name, event_id, asked_order)"
        " join outcomes using (group_name, event_id) left join orders on orders.order_id = asked_order",
        [each.group for each in deliveries],
        [each.event.event_id for each in deliveries],
        [each.event.order.order_id for each in deliveries],
    )
    return {(row["group_name"], str(row["event_id"])): _stored(row) for row in rows}
