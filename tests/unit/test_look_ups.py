"""Look-ups that are asked for one by one and made many at a time."""

import asyncio
from collections.abc import Collection
from unittest.mock import ANY

import pytest

from server.gathering import Gathering


class Store:
    """Has each key doubled; odd keys have nothing, 13 breaks a query."""

    def __init__(self) -> None:
        self.queries: list[list[int]] = []
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, keys: Collection[int]) -> dict[int, int]:
        self.queries.append(list(keys))
        await self.open.wait()
        if 13 in keys:
            raise RuntimeError("broken")
        return {key: 2 * key for key in keys if key % 2 == 0}


async def asked(store: Store) -> None:
    async with asyncio.timeout(5):
        while not store.queries:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)


async def test_who_asks_while_a_query_is_under_way_shares_the_next() -> None:
    store = Store()
    store.open.clear()
    look_ups: Gathering[int, int] = Gathering(store)
    first = asyncio.create_task(look_ups.look(2))
    await asked(store)
    others = [asyncio.create_task(look_ups.look(key)) for key in (4, 3, 4)]
    many = asyncio.create_task(look_ups.look_all([6, 3]))
    await asyncio.sleep(0)
    store.open.set()
    assert await asyncio.gather(first, *others) == [4, 8, None, 8]
    found = await many
    assert (found.get(6), found.get(3)) == (12, None)
    assert store.queries == [[2], [4, 3, 6]]


async def test_a_query_that_fails_fails_those_who_share_it_and_nobody_else() -> None:
    store = Store()
    look_ups: Gathering[int, int] = Gathering(store)
    with pytest.raises(RuntimeError, match="broken"):
        await look_ups.look_all([2, 13])
    assert await look_ups.look(2) == 4


async def test_a_cancellation_inside_leaves_nobody_waiting() -> None:
    """CancelledError of something in the query, while nobody cancelled: those who share it see it, the others go on."""
    began, may_fail = asyncio.Event(), asyncio.Event()

    async def query(keys: Collection[int]) -> dict[int, int]:
        if 2 in keys:
            began.set()
            await may_fail.wait()
            raise asyncio.CancelledError
        return {key: 2 * key for key in keys}

    look_ups: Gathering[int, int] = Gathering(query)
    first = asyncio.create_task(look_ups.look(2))
    await began.wait()
    next_one = asyncio.create_task(look_ups.look(4))
    await asyncio.sleep(0)
    may_fail.set()
    async with asyncio.timeout(5):
        assert await asyncio.gather(first, next_one, return_exceptions=True) == [ANY, 8]
    assert first.cancelled()


async def test_who_waits_for_look_ups_that_end_is_cancelled() -> None:
    store = Store()
    store.open.clear()
    look_ups: Gathering[int, int] = Gathering(store)
    asked_for = [asyncio.create_task(look_ups.look(2))]
    await asked(store)
    asked_for.append(asyncio.create_task(look_ups.look(4)))
    await asyncio.sleep(0)
    assert look_ups._task is not None
    look_ups._task.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait(asked_for)
    assert [each.cancelled() for each in asked_for] == [True, True]


async def test_who_gave_up_is_not_asked_for() -> None:
    store = Store()
    store.open.clear()
    look_ups: Gathering[int, int] = Gathering(store)
    first = asyncio.create_task(look_ups.look(2))
    await asked(store)
    over, waiting = asyncio.create_task(look_ups.look(8)), asyncio.create_task(look_ups.look(4))
    await asyncio.sleep(0)
    over.cancel()
    first.cancel()
    await asyncio.wait([over, first])
    store.open.set()
    assert await waiting == 8
    assert store.queries == [[2], [4]]


async def test_a_query_has_a_limit_of_keys_and_the_rest_comes_next() -> None:
    store = Store()
    store.open.clear()
    look_ups: Gathering[int, int] = Gathering(store)
    first = asyncio.create_task(look_ups.look(2))
    await asked(store)
    batches = [asyncio.create_task(look_ups.look_all(range(n * 500 + 14, n * 500 + 514))) for n in range(5)]
    await asyncio.sleep(0)
    store.open.set()
    await asyncio.gather(first, *batches)
    assert [len(query) for query in store.queries] == [1, 1000, 1000, 500]


async def test_soon_after_a_query_is_a_pause_after_which_all_go_on_together() -> None:
    loop = asyncio.get_running_loop()
    look_ups: Gathering[int, int] = Gathering(store := Store(), pause=1.0)
    began = loop.time()
    assert await look_ups.look(2) == 4
    alone = loop.time() - began
    gone: list[float] = []

    async def call(keys: list[int]) -> None:
        await look_ups.look_all(keys)
        gone.append(loop.time() - began)

    await asyncio.gather(*(asyncio.create_task(call(keys)) for keys in ([4], [], [6])))
    assert alone < 0.1, "who asks alone waits for nobody"
    assert store.queries == [[2], [4, 6]]
    assert min(gone) >= 0.19
    assert max(gone) - min(gone) < 0.1


async def test_the_more_went_on_together_the_longer_is_the_pause_up_to_its_limit() -> None:
    loop = asyncio.get_running_loop()
    for callers, least in ((1, 0.06), (5, 0.3), (20, 0.3)):
        look_ups: Gathering[int, int] = Gathering(Store(), pause=0.3)
        began = loop.time()
        await asyncio.gather(*(asyncio.create_task(look_ups.look(2)) for _ in range(callers)))
        await look_ups.look(2)
        assert least - 0.01 <= loop.time() - began < least + 0.2


async def test_who_has_no_key_needs_no_query() -> None:
    store = Store()
    assert await Gathering(store).look_all(()) == {}
    assert store.queries == []
