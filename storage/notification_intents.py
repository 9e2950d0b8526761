"""What the notification service intends and decides: one send per (event, channel).

Calls that arrive together share their statements, of which but one writes. Each is answered as if it had come alone,
and only after the commit.
"""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from domain.erasure import UserErased
from domain.failures import DependencyDown
from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_pb2 import NotificationChannel
from storage import erasures, outcomes
from storage.database import Database
from storage.gathering import Gathering
from storage.outcomes import Settled, StoredOutcome

if TYPE_CHECKING:
    from storage.database import Connection

_MOST: Final = 200
_HEAVIEST: Final = 4 * 1024 * 1024  # bytes: each is written twice, and a statement has but seconds


class _Intent(NamedTuple):
    delivery: Delivery
    message_id: str


class _Decision(NamedTuple):
    delivery: Delivery
    event: OrderEvent | None


class NotificationIntents:
    """Intents of one channel."""

    def __init__(self, database: Database, channel: NotificationChannel) -> None:
        """Uses the database's pool."""
        self._database = database
        self._channel = channel
        self._intents: Gathering[_Intent, StoredOutcome | UserErased | bool] = Gathering(
            self._intend_all,
            most=_MOST,
            weigh=lambda intent: intent.delivery.event.ByteSize(),
            heaviest=_HEAVIEST,
            unheard=self._withdraw,
        )
        self._decisions: Gathering[_Decision, list[OrderEvent] | StoredOutcome] = Gathering(
            self._decide_all, most=_MOST, weigh=_weight, heaviest=_HEAVIEST
        )

    async def intend(self, delivery: Delivery, *, message_id: str) -> Settled | bool:
        """Stores the intent to send. True: for the first time. False: a send may have happened already.

        Raises:
            UserErased: nothing was stored.
            DependencyDown: PostgreSQL is away.
        """
        # The statements are those of many messages; to each of them they are the time that it waited and they took.
        with self._database.span("query"):
            answer = await self._intents.ask(_Intent(delivery, message_id))
        if isinstance(answer, StoredOutcome):
            return Settled(outcomes.obey(answer, delivery))
        if isinstance(answer, UserErased):
            raise answer
        return answer

    async def not_sent(self, delivery: Delivery) -> None:
        """Withdraws the intent: the channel refused the message, so it is known that nothing was sent.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        await self._delete([delivery.event.event_id])

    async def _delete(self, event_ids: Sequence[str]) -> None:
        async with self._database.connection() as connection:
            await connection.execute(
                "delete from notification_intents where event_id = any($1::uuid[]) and channel = $2",
                event_ids,
                self._channel,
            )

    async def decide(self, delivery: Delivery, event: OrderEvent | None) -> list[OrderEvent]:
        """Stores the outcome: the event that tells of it, or nothing. Returns the events to emit.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        with self._database.span("query"):
            answer = await self._decisions.ask(_Decision(delivery, event))
        return outcomes.obey(answer, delivery) if isinstance(answer, StoredOutcome) else answer

    async def _intend_all(self, intents: Sequence[_Intent]) -> list[StoredOutcome | UserErased | bool]:
        # One statement writes, after what it rests on was read: that needs no transaction.
        async with self._database.connection() as connection:
            known = await outcomes.find_all(connection, [each.delivery for each in intents])
            told = [
                each
                for each, (outcome, is_erased) in zip(intents, known, strict=True)
                if outcome is None and not is_erased
            ]
            first = await self._insert(connection, told)
            # Who had the partition before may have stored an outcome between the two statements.
            met = [each.delivery for each in told if each.delivery.event.event_id not in first]
            since = await outcomes.find_stored(connection, met) if met else {}
        answers: list[StoredOutcome | UserErased | bool] = []
        for each, (found, is_erased) in zip(intents, known, strict=True):
            event_id = each.delivery.event.event_id
            if (outcome := found or since.get((each.delivery.group, event_id))) is not None:
                answers.append(outcome)
            elif is_erased:
                answers.append(UserErased())
            else:
                answers.append(event_id in first)
                first.discard(event_id)  # another record with the same event: this one may have sent it
        return answers

    async def _withdraw(self, unheard: Sequence[tuple[_Intent, StoredOutcome | UserErased | bool]]) -> None:
        """Withdraws intents whose callers were cancelled meanwhile: nobody sends what they were stored for."""
        if never_sent := [intent.delivery.event.event_id for intent, answer in unheard if answer is True]:
            with contextlib.suppress(DependencyDown):  # then nobody knows whether it was sent, as after a kill
                await self._delete(never_sent)

    async def _insert(self, connection: "Connection", intents: Sequence[_Intent]) -> set[str]:
        """Stores intents. Returns the events of those that were not there."""
        if not intents:
            return set()
        rows = await connection.fetch(
            "insert into notification_intents (event_id, channel, message_id)"
            " select event_id, $1, message_id from unnest($2::uuid[], $3::text[]) as intended (event_id, message_id)"
            " order by event_id"  # one lock order everywhere
            " on conflict do nothing returning event_id::text",
            self._channel,
            [each.delivery.event.event_id for each in intents],
            [each.message_id for each in intents],
        )
        return {row["event_id"] for row in rows}

    async def _decide_all(self, decisions: Sequence[_Decision]) -> list[list[OrderEvent] | StoredOutcome]:
        decided = [[each.event] if each.event is not None else [] for each in decisions]
        async with self._database.connection() as connection:
            # Made from what came from the topic, and not from the row as everything else is.
            await erasures.apply(connection, [event.order for events in decided for event in events])
            return await outcomes.store_all(connection, [each.delivery for each in decisions], decided)


def _weight(decision: _Decision) -> int:
    return decision.event.ByteSize() if decision.event is not None else 0
