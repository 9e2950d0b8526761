"""Turns at the database's connections."""

import asyncio
import random

import pytest

from storage.turns import Turns


async def take(turns: Turns, *, seconds: float = 1.0) -> None:
    await turns.take(seconds=seconds, goes_on=lambda _: True)


async def test_first_come_first_served() -> None:
    turns, served = Turns(1), list[int]()

    async def one(number: int) -> None:
        await take(turns)
        served.append(number)
        await asyncio.sleep(0)
        turns.give_back()

    await asyncio.gather(*(one(number) for number in range(20)))
    assert served == list(range(20))


async def test_who_waits_gives_up_when_nothing_goes_on() -> None:
    turns = Turns(1)
    await take(turns)
    with pytest.raises(TimeoutError):
        await turns.take(seconds=0.01, goes_on=lambda _: False)
    turns.give_back()
    await take(turns)


@pytest.mark.parametrize("seed", range(20))
async def test_no_turn_is_lost_when_many_are_cancelled_at_once(seed: int) -> None:
    """As by a partition that starts over."""
    dice, turns = random.Random(seed), Turns(3)
    most = running = 0

    async def one() -> None:
        nonlocal most, running
        await take(turns)
        try:
            running += 1
            most = max(most, running)
            await asyncio.sleep(dice.choice((0, 0.001)))
        finally:
            running -= 1
            turns.give_back()

    tasks = [asyncio.create_task(one()) for _ in range(200)]
    for _ in range(30):
        await asyncio.sleep(0)
        for task in dice.sample(tasks, 5):
            task.cancel()
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 3
    async with asyncio.timeout(1):
        await asyncio.gather(*(take(turns) for _ in range(3)))
