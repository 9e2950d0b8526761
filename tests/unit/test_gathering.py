"""Gathering: concurrent calls are answered together, each as if it had come alone."""

import asyncio
import contextvars
import random
from collections.abc import Sequence

import pytest

from domain.failures import DependencyDown
from storage.gathering import Gathering

ASKED_BY = contextvars.ContextVar("ASKED_BY", default=0)


class Together:
    """Doubles numbers, when it is let."""

    def __init__(self, *, most: int = 100, heaviest: int = 1_000_000) -> None:
        self.gatherings: list[list[int]] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.began = asyncio.Event()
        self.bad: dict[int, Exception] = {}
        self.running = self.most_at_once = 0
        self.seen_context: list[int] = []
        self.gathering: Gathering[int, int] = Gathering(self, most=most, weigh=abs, heaviest=heaviest)

    async def __call__(self, calls: Sequence[int]) -> list[int]:
        self.gatherings.append(list(calls))
        self.seen_context.append(ASKED_BY.get())
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        self.began.set()
        try:
            await self.may_go_on.wait()
        finally:
            self.running -= 1
        for each in calls:
            if each in self.bad:
                raise self.bad[each]
        return [2 * each for each in calls]

    async def ask_all(self, *calls: int) -> list[int | BaseException]:
        return await asyncio.gather(*map(self.gathering.ask, calls), return_exceptions=True)


async def test_calls_at_once_are_answered_together_in_their_order() -> None:
    together = Together()
    assert await together.ask_all(3, 1, 2, 1) == [6, 2, 4, 2]
    assert together.gatherings == [[3, 1, 2, 1]]


async def test_while_one_is_answered_the_next_fills_up() -> None:
    together = Together()
    together.may_go_on.clear()
    first = asyncio.create_task(together.gathering.ask(1))
    await together.began.wait()
    others = asyncio.create_task(together.ask_all(2, 3, 4))
    await asyncio.sleep(0)
    together.may_go_on.set()
    assert (await first, await others) == (2, [4, 6, 8])
    assert together.gatherings == [[1], [2, 3, 4]]
    assert await together.gathering.ask(5) == 10, "it starts again after a rest"


async def test_a_gathering_has_bounds() -> None:
    together = Together(most=3, heaviest=10)
    assert await together.ask_all(1, 1, 1, 1, 5, 5, 50, 1, 9) == [2, 2, 2, 2, 10, 10, 100, 2, 18]
    assert together.gatherings == [[1, 1, 1], [1, 5], [5], [50], [1, 9]]


async def test_a_bad_call_fails_alone() -> None:
    together = Together()
    bad = ValueError("bad")
    together.bad = {5: bad}
    assert await together.ask_all(*range(8)) == [0, 2, 4, 6, 8, bad, 12, 14]
    assert together.gatherings[0] == list(range(8))
    assert [5] in together.gatherings
    assert len(together.gatherings) < 9, "the others are not all asked one by one"


async def test_several_bad_calls_each_fail_for_their_own_reason() -> None:
    together = Together()
    together.bad = {each: ValueError(each) for each in range(6)}
    assert await together.ask_all(*range(6)) == list(together.bad.values())


async def test_a_dependency_that_is_down_fails_all_at_once() -> None:
    together = Together()
    down = DependencyDown("postgres", "away")
    together.bad = {2: down}
    assert await together.ask_all(1, 2, 3) == [down] * 3
    assert together.gatherings == [[1, 2, 3]]
    assert await together.gathering.ask(4) == 8, "it is asked again"


async def test_a_dependency_that_is_down_keeps_nobody_waiting_for_it() -> None:
    """With a queue of gatherings the last would else wait for as many time-outs, and be parked for it."""
    together = Together(most=2)
    down = DependencyDown("postgres", "away")
    together.bad = {1: down}
    assert await together.ask_all(*range(10)) == [down] * 10
    assert together.gatherings == [[0, 1]]


async def test_a_call_that_is_cancelled_before_its_gathering_is_not_made() -> None:
    together = Together()
    together.may_go_on.clear()
    first = asyncio.create_task(together.gathering.ask(1))
    await together.began.wait()
    waiting = [asyncio.create_task(together.gathering.ask(each)) for each in (2, 3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    together.may_go_on.set()
    assert (await first, await waiting[1]) == (2, 6)
    assert together.gatherings == [[1], [3]]


async def test_a_call_that_is_cancelled_meanwhile_takes_no_other_with_it() -> None:
    together = Together()
    together.may_go_on.clear()
    both = [asyncio.create_task(together.gathering.ask(each)) for each in (1, 2)]
    await together.began.wait()
    both[0].cancel()
    await asyncio.wait(both[:1])
    together.may_go_on.set()
    assert await both[1] == 4


async def test_an_answer_that_nobody_hears_is_told_before_the_next_gathering() -> None:
    asked: list[Sequence[int]] = []
    began, may_go_on = asyncio.Event(), asyncio.Event()

    async def together(calls: Sequence[int]) -> list[int]:
        began.set()
        await may_go_on.wait()
        asked.append(calls)
        return [2 * each for each in calls]

    async def unheard(answers: Sequence[tuple[int, int]]) -> None:
        await asyncio.sleep(0)
        asked.append([part for each in answers for part in each])

    gathering: Gathering[int, int] = Gathering(together, most=3, weigh=abs, heaviest=100, unheard=unheard)
    calls = [asyncio.create_task(gathering.ask(each)) for each in (1, 2, 3, 4)]
    await began.wait()
    calls[1].cancel()
    await asyncio.wait(calls[1:2])
    may_go_on.set()
    assert [await each for each in (calls[0], *calls[2:])] == [2, 6, 8]
    assert asked == [[1, 2, 3], [2, 4], [4]]


@pytest.mark.parametrize("largest", [2, 1], ids=["whole", "in halves"])
async def test_a_cancellation_inside_leaves_nobody_waiting(largest: int) -> None:
    under_way = asyncio.Event()

    async def together(calls: Sequence[int]) -> list[int]:
        if len(calls) > largest:
            raise ValueError("again in halves")
        if 4 not in calls:
            under_way.set()
            await asyncio.Event().wait()
        return list(calls)

    gathering: Gathering[int, int] = Gathering(together, most=2, weigh=abs, heaviest=100)
    asked = [asyncio.create_task(gathering.ask(each)) for each in (1, 2, 3)]
    await under_way.wait()
    assert gathering._running is not None
    gathering._running.cancel()
    async with asyncio.timeout(1):
        results = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(each) for each in results] == [asyncio.CancelledError] * 3
    assert await gathering.ask(4) == 4


async def test_nothing_of_a_callers_context_gets_into_the_gathering() -> None:
    """Or the log lines of all its orders would carry the first one's id."""
    together = Together()
    ASKED_BY.set(7)
    assert await together.gathering.ask(1) == 2
    assert together.seen_context == [0]


@pytest.mark.parametrize("seed", range(20))
async def test_every_call_is_answered_whoever_is_cancelled(seed: int) -> None:
    dice, together = random.Random(seed), Together(most=7)
    together.bad = {13: ValueError("bad"), 77: ValueError("bad")}
    tasks = []
    for number in range(200):
        tasks.append(asyncio.create_task(together.gathering.ask(number)))
        if dice.random() < 0.3:
            dice.choice(tasks).cancel()
        if dice.random() < 0.2:
            await asyncio.sleep(0)
    async with asyncio.timeout(10):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for number, result in enumerate(results):
        if isinstance(result, asyncio.CancelledError):
            assert tasks[number].cancelled()
        else:
            assert result == together.bad.get(number, 2 * number)
    assert together.most_at_once == 1
    assert max(map(len, together.gatherings)) <= 7
