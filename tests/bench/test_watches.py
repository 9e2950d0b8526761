"""The bench's watches: one that fails is noticed while others are waited for."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bench.workloads.watches import Watch
from orderflow.orders.v1.order_pb2 import Order
from orderflow.orders.v1.order_service_pb2 import WatchOrderResponse


class Stub:
    """Shows these revisions, and then waits for ever or fails."""

    def __init__(self, *revisions: int, failure: Exception | None = None) -> None:
        self._revisions, self._failure = revisions, failure
        self.asked: Any = None

    async def WatchOrder(  # noqa: N802 - the name in the contract
        self, request: Any, timeout: float
    ) -> AsyncIterator[WatchOrderResponse]:
        self.asked = request
        for revision in self._revisions:
            yield WatchOrderResponse(order=Order(revision=revision))
        if self._failure is not None:
            raise self._failure
        await asyncio.Event().wait()


async def opened(stub: Stub) -> Watch:
    watch = Watch()
    following = asyncio.create_task(watch.follow(stub, "an id", "a token"))
    try:
        async with asyncio.timeout(5):
            await watch.opened(following)
    finally:
        following.cancel()
    return watch


async def test_it_is_open_once_it_shows_something_and_goes_on_from_the_token() -> None:
    stub = Stub(2)
    watch = await opened(stub)
    assert watch.revisions == [2]
    assert (stub.asked.order_id, stub.asked.resume_token) == ("an id", "a token")


@pytest.mark.parametrize("revisions", [(), (2,)])
async def test_what_ends_it_before_the_end_is_raised(revisions: tuple[int, ...]) -> None:
    with pytest.raises(LookupError):
        await opened(Stub(*revisions, failure=LookupError()))
