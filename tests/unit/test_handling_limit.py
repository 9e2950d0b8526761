"""The hard limit of a handling cancels who is late, nobody else, and takes the cancellation back."""

import asyncio

from messaging.handling_limit import HandlingLimit


async def _limited(limit: HandlingLimit, waits_for: "asyncio.Future[None]") -> str:
    task = asyncio.current_task()
    assert task is not None
    limit.begin(task)
    try:
        await waits_for
    except asyncio.CancelledError:
        is_late = limit.end(task)
        return f"{is_late} {task.cancelling()}"
    return f"{limit.end(task)} done"


async def test_who_is_late_is_cancelled_and_goes_on() -> None:
    limit, never = HandlingLimit(0.05), asyncio.get_running_loop().create_future()
    assert await _limited(limit, never) == "True 0"
    await asyncio.sleep(0)  # a cancellation that is left over would come here


async def test_who_ends_in_time_is_left_alone_and_the_next_one_is_not() -> None:
    limit, loop = HandlingLimit(0.05), asyncio.get_running_loop()
    soon = loop.create_future()
    first = asyncio.create_task(_limited(limit, soon))
    soon.set_result(None)
    assert await first == "False done"
    since = loop.time()
    assert await _limited(limit, loop.create_future()) == "True 0"
    assert loop.time() - since >= 0.05, "each has a whole limit of its own, whenever the timer was set"


async def test_several_end_each_at_its_time() -> None:
    limit, loop = HandlingLimit(0.1), asyncio.get_running_loop()
    tasks = []
    for _ in range(3):
        tasks.append(asyncio.create_task(_limited(limit, loop.create_future())))
        await asyncio.sleep(0.02)
    in_time = loop.create_future()
    in_time.set_result(None)
    assert await _limited(limit, in_time) == "False done"
    assert await asyncio.gather(*tasks) == ["True 0"] * 3


async def test_who_is_cancelled_by_somebody_else_stays_cancelled() -> None:
    limit = HandlingLimit(60)
    task = asyncio.create_task(_limited(limit, asyncio.get_running_loop().create_future()))
    await asyncio.sleep(0)
    task.cancel()
    assert await task == "False 1"


async def test_who_is_late_and_cancelled_too_stays_cancelled() -> None:
    limit = HandlingLimit(0.0)
    task = asyncio.create_task(_limited(limit, asyncio.get_running_loop().create_future()))
    await asyncio.sleep(0)
    limit._look()
    task.cancel()
    assert await task == "True 1"
