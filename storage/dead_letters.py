"""Dead letters as operators see them: what stands on dlq, what became of it, and plans to replay."""

import dataclasses
import datetime
import uuid
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from domain.records import Coordinates, Delivery
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.operations.v1.dead_letter_service_pb2 import (
    DeadLetterEntry,
    DeadLetterFilter,
    DeadLetterState,
    DeadLetterSummary,
    ReplayPlan,
    ReplayPlanState,
)
from storage import discarded_refunds
from storage.database import Database
from storage.discarded_refunds import DiscardRefused

if TYPE_CHECKING:
    import asyncpg

    from storage.database import Connection

_PAYMENTS: Final = "payment-processor"
_ENTRY: Final = (
    "select d.partition, d.record_offset, d.dead_letter, d.recorded_time, r.state, r.resolved_by, r.reason,"
    " r.resolve_time from dead_letters d left join dead_letter_resolutions r using (partition, record_offset)"
)


@dataclasses.dataclass(frozen=True, order=True)
class DeadLetterId:
    """Where a dead letter stands on dlq."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> "DeadLetterId":
        """Returns the identifier.

        Raises:
            ValueError: the text is none.
        """
        partition, _, offset = text.partition("-")
        if not (partition.isascii() and partition.isdigit() and offset.isascii() and offset.isdigit()):
            raise ValueError("a dead letter's identifier is PARTITION-OFFSET")
        if len(partition) > 9 or len(offset) > 18:
            raise ValueError("a dead letter's identifier is PARTITION-OFFSET")
        return cls(int(partition), int(offset))


class AlreadyResolved(Exception):
    """Somebody replayed or discarded it before, or a sweep has settled it."""


class DeadLetters:
    """Reads the projector's table and writes what becomes of its rows. Every method raises DependencyDown."""

    def __init__(self, database: Database) -> None:
        """Uses the database's pool."""
        self._database = database

    async def summary(self) -> list[DeadLetterSummary]:
        """Returns the unresolved ones by group and error class, most first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "select group_name, error_class, count(*) as letters, count(distinct order_id) as orders,"
                " min(recorded_time) as first, max(recorded_time) as last from dead_letters d"
                " where not exists (select 1 from dead_letter_resolutions r"
                " where r.partition = d.partition and r.record_offset = d.record_offset)"
                " group by group_name, error_class order by letters desc, group_name, error_class"
            )
        return [
            DeadLetterSummary(
                group=row["group_name"],
                error_class=row["error_class"],
                count=row["letters"],
                order_count=row["orders"],
                first_time=_timestamp(row["first"]),
                last_time=_timestamp(row["last"]),
            )
            for row in rows
        ]

    async def page(
        self, which: DeadLetterFilter, *, include_resolved: bool, size: int, before: DeadLetterId | None
    ) -> list[DeadLetterEntry]:
        """Returns at most `size` matches, newest first, older than `before`."""
        condition, values = _condition(which, include_resolved=include_resolved)
        if before is not None:
            values += [before.partition, before.offset]
            condition += f" and (d.partition, d.record_offset) < (${len(values) - 1}, ${len(values)})"
        values.append(size)
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"{_ENTRY} where {condition} order by d.partition desc, d.record_offset desc limit ${len(values)}",
                *values,
            )
        return [_entry(row) for row in rows]

    async def get(self, which: DeadLetterId) -> DeadLetterEntry | None:
        """Returns one, None if there is none (yet)."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"{_ENTRY} where d.partition = $1 and d.record_offset = $2", which.partition, which.offset
            )
        return _entry(row) if row else None

    async def resolve(self, which: DeadLetterId, state: DeadLetterState, *, by: str, reason: str) -> None:
        """Records that it was replayed or discarded. A discard gives up the refund that it is about.

        Raises:
            AlreadyResolved: it was before.
            DiscardRefused: it must not be discarded.
        """
        async with self._database.transaction() as connection:
            if state == DeadLetterState.DEAD_LETTER_STATE_DISCARDED:
                await _lock_order(connection, which)
            resolved = await connection.fetchval(
                "insert into dead_letter_resolutions (partition, record_offset, state, resolved_by, reason)"
                " values ($1, $2, $3, $4, $5) on conflict do nothing returning true",
                which.partition,
                which.offset,
                state,
                by,
                reason,
            )
            if not resolved:
                raise AlreadyResolved
            if state == DeadLetterState.DEAD_LETTER_STATE_DISCARDED:
                await _discard(connection, which)

    async def create_plan(self, which: DeadLetterFilter, *, by: str) -> ReplayPlan | None:
        """Freezes the list of all unresolved matches. None: there is no match."""
        condition, values = _condition(which, include_resolved=False)
        plan_id = str(uuid.uuid4())
        async with self._database.transaction() as connection:
            await connection.execute(
                "insert into replay_plans (plan_id, filter, created_by) values ($1, $2, $3)",
                plan_id,
                which.SerializeToString(),
                by,
            )
            values.append(plan_id)
            taken = await connection.execute(
                "insert into replay_plan_items (plan_id, partition, record_offset)"  # noqa: S608 - numbers of parameters
                f" select ${len(values)}, d.partition, d.record_offset from dead_letters d"
                f" left join dead_letter_resolutions r using (partition, record_offset) where {condition}",
                *values,
            )
            if taken.endswith(" 0"):
                await connection.execute("delete from replay_plans where plan_id = $1", plan_id)
                return None
        return await self.plan(plan_id)

    async def plan(self, plan_id: str) -> ReplayPlan | None:
        """Returns a plan as it stands."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                "select p.*, count(*) as total, count(*) filter (where i.state = 'replayed') as replayed,"
                " count(*) filter (where i.state = 'skipped') as skipped"
                " from replay_plans p join replay_plan_items i using (plan_id) where plan_id = $1 group by p.plan_id",
                plan_id,
            )
        if row is None:
            return None
        if row["aborted"]:
            state = ReplayPlanState.REPLAY_PLAN_STATE_ABORTED
        elif row["replayed"] + row["skipped"] == row["total"]:
            state = ReplayPlanState.REPLAY_PLAN_STATE_DONE
        else:
            state = ReplayPlanState.REPLAY_PLAN_STATE_OPEN
        return ReplayPlan(
            plan_id=plan_id,
            filter=DeadLetterFilter.FromString(row["filter"]),
            created_by=row["created_by"],
            create_time=_timestamp(row["create_time"]),
            total=row["total"],
            replayed=row["replayed"],
            skipped=row["skipped"],
            state=state,
        )

    async def next_of_plan(self, plan_id: str) -> DeadLetterEntry | None:
        """Returns the oldest dead letter of the plan that waits, None if none does or the plan was aborted."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"{_ENTRY} join replay_plan_items i on i.partition = d.partition and i.record_offset = d.record_offset"
                " join replay_plans p using (plan_id)"
                " where plan_id = $1 and i.state = 'waiting' and not p.aborted"
                " order by d.partition, d.record_offset limit 1",
                plan_id,
            )
        return _entry(row) if row else None

    async def tick_off(self, plan_id: str, which: DeadLetterId, *, replayed: bool) -> None:
        """Records what became of a plan's dead letter."""
        async with self._database.connection() as connection:
            await connection.execute(
                "update replay_plan_items set state = $4 where plan_id = $1 and partition = $2 and record_offset = $3",
                plan_id,
                which.partition,
                which.offset,
                "replayed" if replayed else "skipped",
            )

    async def abort_plan(self, plan_id: str) -> None:
        """Ends a plan; nothing more of it is replayed."""
        async with self._database.connection() as connection:
            await connection.execute("update replay_plans set aborted = true where plan_id = $1", plan_id)


async def settle(connection: "Connection", group: str, order_id: str, event_id: str) -> None:
    """Closes a group's open dead letters of an event that has been decided without them."""
    rows = await connection.fetch(
        "select partition, record_offset, dead_letter from dead_letters d where order_id = $1 and group_name = $2"
        " and not exists (select from dead_letter_resolutions r"
        " where r.partition = d.partition and r.record_offset = d.record_offset)",
        order_id,
        group,
    )
    for row in rows:
        event = _event_of(DeadLetter.FromString(row["dead_letter"]))
        if event is not None and event.event_id == event_id:
            await connection.execute(
                "insert into dead_letter_resolutions (partition, record_offset, state, resolved_by, reason)"
                " values ($1, $2, $3, $4, 'another record has settled it') on conflict do nothing",
                row["partition"],
                row["record_offset"],
                DeadLetterState.DEAD_LETTER_STATE_SETTLED,
                group,
            )


def _event_of(letter: DeadLetter) -> OrderEvent | None:
    """Returns the event that a dead letter carries; its bytes may be anything."""
    try:
        event = OrderEvent.FromString(letter.value)
        return event if str(uuid.UUID(event.event_id)) == event.event_id else None
    except (DecodeError, ValueError):
        return None


async def _lock_order(connection: "Connection", which: DeadLetterId) -> None:
    """Locks the order that a dead letter is about, before its resolution: so does who settles it (semantics 2)."""
    await connection.execute(
        "select from orders where order_id ="
        " (select order_id from dead_letters where partition = $1 and record_offset = $2) for update",
        which.partition,
        which.offset,
    )


async def _discard(connection: "Connection", which: DeadLetterId) -> None:
    """Gives up what the record asked for, where it may be."""
    row = await connection.fetchrow(
        "select dead_letter, group_name, order_id from dead_letters where partition = $1 and record_offset = $2",
        which.partition,
        which.offset,
    )
    if row is None:
        return
    letter = DeadLetter.FromString(row["dead_letter"])
    event, origin = _event_of(letter), letter.origin
    # No outcome is stored for what is no event. At other coordinates it is one of another record, which has told it.
    if event is not None and await connection.fetchval(
        "select true from outcomes where group_name = $1 and event_id = $2"
        " and topic = $3 and partition = $4 and record_offset = $5",
        row["group_name"],
        event.event_id,
        origin.topic,
        origin.partition,
        origin.offset,
    ):
        raise DiscardRefused("OUTCOME_STORED")
    if row["group_name"] != _PAYMENTS or row["order_id"] is None:
        return
    record = None
    if event is not None:
        record = Delivery(event, _PAYMENTS, Coordinates(origin.topic, origin.partition, origin.offset))
    for event_id in await discarded_refunds.give_up(connection, str(row["order_id"]), record):
        await settle(connection, _PAYMENTS, str(row["order_id"]), event_id)


def _condition(which: DeadLetterFilter, *, include_resolved: bool) -> tuple[str, list[Any]]:
    conditions = ["true"] if include_resolved else ["r.state is null"]
    values: list[Any] = []

    def add(text: str, value: object) -> None:
        values.append(value)
        conditions.append(text.format(f"${len(values)}"))

    if which.group:
        add("d.group_name = {}", which.group)
    if which.error_class:
        add("d.error_class = {}", which.error_class)
    if which.order_id:
        add("d.order_id = {}", which.order_id)
    if which.HasField("since"):
        add("d.recorded_time >= {}", which.since.ToDatetime(datetime.UTC))
    if which.HasField("until"):
        add("d.recorded_time < {}", which.until.ToDatetime(datetime.UTC))
    return " and ".join(conditions), values


def _entry(row: "asyncpg.Record") -> DeadLetterEntry:
    entry = DeadLetterEntry(
        dead_letter_id=str(DeadLetterId(row["partition"], row["record_offset"])),
        dead_letter=DeadLetter.FromString(row["dead_letter"]),
        state=row["state"] or DeadLetterState.DEAD_LETTER_STATE_OPEN,
        record_time=_timestamp(row["recorded_time"]),
        resolved_by=row["resolved_by"] or "",
        resolution_reason=row["reason"] or "",
    )
    if row["resolve_time"] is not None:
        entry.resolve_time.FromDatetime(row["resolve_time"])
    return entry


def _timestamp(time: datetime.datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp
