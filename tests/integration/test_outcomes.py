"""Outcomes: a replay gives the same answer, a copy none, and two at once decide once (semantics 12 and 13)."""

import asyncio
from typing import TYPE_CHECKING

from orderflow.events.v1.order_event_pb2 import OrderEvent
from storage import outcomes
from storage.database import Database
from tests import engines
from tests.builders import a_delivery, a_group, emitted_for

if TYPE_CHECKING:
    from storage.database import Connection


class Decision:
    """Decides with an effect in the database, so that one can see whether it was rolled back."""

    def __init__(self, group: str, answer: list[OrderEvent]) -> None:
        self.group = group
        self.answer = answer
        self.calls = 0
        self.at_once = asyncio.Barrier(1)

    async def __call__(self, connection: "Connection") -> list[OrderEvent]:
        self.calls += 1
        await connection.execute("insert into consumer_groups values ($1, $2)", self.group, f"effect {self.calls}")
        await self.at_once.wait()
        return self.answer

    async def effects(self, database: Database) -> int:
        return len(await engines.fetch(database, "select from consumer_groups where group_name = $1", self.group))


async def test_a_replay_emits_the_stored_outcome_again(database: Database) -> None:
    group = a_group()
    delivery = a_delivery(group=group, offset=7)
    decision = Decision(group, [emitted_for(delivery), emitted_for(delivery)])
    assert await outcomes.decide(database, delivery, decision) == decision.answer
    replay = a_delivery(delivery.event, group=group, offset=7, attempt=3)
    assert await outcomes.decide(database, replay, decision) == decision.answer
    assert (decision.calls, await decision.effects(database)) == (1, 1)


async def test_nothing_is_an_outcome_too(database: Database) -> None:
    delivery = a_delivery(group=a_group())
    decision = Decision(delivery.group, [])
    assert await outcomes.decide(database, delivery, decision) == []
    assert await outcomes.decide(database, delivery, decision) == []
    assert decision.calls == 1


async def test_a_copy_emits_nothing_and_another_group_decides_for_itself(database: Database) -> None:
    group = a_group()
    delivery = a_delivery(group=group, offset=7)
    decision = Decision(group, [emitted_for(delivery)])
    await outcomes.decide(database, delivery, decision)
    for other in ({"offset": 8}, {"partition": 1, "offset": 7}, {"topic": "payments", "offset": 7}):
        copy = a_delivery(delivery.event, group=group, **other)  # type: ignore[arg-type]
        assert await outcomes.decide(database, copy, decision) == []
    assert decision.calls == 1
    elsewhere = a_delivery(delivery.event, group=a_group(), offset=7)
    assert await outcomes.decide(database, elsewhere, decision) == decision.answer
    assert decision.calls == 2


async def test_two_at_once_decide_once(database: Database) -> None:
    group = a_group()
    delivery = a_delivery(group=group)
    decision = Decision(group, [emitted_for(delivery)])
    decision.at_once = asyncio.Barrier(2)
    answers = await asyncio.gather(*(outcomes.decide(database, delivery, decision) for _ in range(2)))
    assert answers == [decision.answer] * 2
    assert (decision.calls, await decision.effects(database)) == (2, 1), "one of them was rolled back"


async def test_a_copy_that_is_decided_at_the_same_time_emits_nothing(database: Database) -> None:
    group = a_group()
    delivery = a_delivery(group=group, offset=1)
    decision = Decision(group, [emitted_for(delivery)])
    decision.at_once = asyncio.Barrier(2)
    both = (delivery, a_delivery(delivery.event, group=group, offset=2))
    answers = await asyncio.gather(*(outcomes.decide(database, each, decision) for each in both))
    assert sorted(map(len, answers)) == [0, 1]
    assert await decision.effects(database) == 1
