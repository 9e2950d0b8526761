"""Calls that come close together go on in groups, and who comes alone waits for nobody."""

import asyncio

import pytest

from server.pace import Pace


async def test_who_comes_alone_goes_on_at_once() -> None:
    pace = Pace(3600)
    async with asyncio.timeout(1):
        await pace.turn()


async def test_who_comes_soon_after_goes_on_later_and_with_all_others() -> None:
    loop = asyncio.get_running_loop()
    pace, gone = Pace(0.2), []

    async def call(name: str) -> None:
        await pace.turn()
        gone.append((name, loop.time()))

    began = loop.time()
    await call("first")
    await asyncio.gather(*(asyncio.create_task(call(name)) for name in ("a", "b", "c")))
    assert [name for name, _ in gone] == ["first", "a", "b", "c"], "in the order in which they came"
    times = [at - began for _, at in gone]
    assert times[0] < 0.1
    assert times[1] >= 0.19
    assert times[3] - times[1] < 0.1, "one group"


async def test_a_call_that_is_over_holds_up_nobody() -> None:
    pace = Pace(0.1)
    await pace.turn()
    over, other = (asyncio.create_task(pace.turn()) for _ in range(2))
    await asyncio.sleep(0)
    over.cancel()
    async with asyncio.timeout(5):
        await other
    with pytest.raises(asyncio.CancelledError):
        await over


async def test_with_no_time_between_nobody_ever_waits() -> None:
    pace = Pace(0)
    for _ in range(100):
        turn = pace.turn()
        with pytest.raises(StopIteration):
            turn.send(None)
