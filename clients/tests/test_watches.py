"""Watches: they resume by themselves, without a gap or a repeat."""

import asyncio

import grpc
import pytest

from clients.tests.caller import connected, failure
from clients.tests.scripted_server import LIFE, Refusal, error_info, proceed, retry_info, serving
from orderflow.orders.v1 import order_pb2
from orderflow_client import (
    DeadlineExceeded,
    OrderNotFound,
    OrdersClient,
    Overloaded,
    Unavailable,
    UnexpectedStatus,
    _watches,
    is_settled,
)

CODE = grpc.StatusCode
BREAK = Refusal(CODE.UNAVAILABLE, metadata=(("grpc-retry-pushback-ms", "-1"),))


async def revisions(caller, **arguments):
    return [each.order.revision async for each in caller.each("watch_order", "order-1", **arguments)]


def tokens(orders):
    return [seen.request.resume_token for seen in orders.seen]


async def test_it_yields_each_state_and_ends_at_the_settled_one(caller, orders):
    seen = await caller.all("watch_order", "order-1")
    assert [each.order.status for each in seen] == list(LIFE)
    assert tokens(orders) == [""]


async def test_it_goes_on_with_the_last_token_after_each_break(caller, orders):
    """The stream breaks before each message: no gap, no repeat."""
    orders.stream_script.extend([BREAK, proceed, BREAK, proceed, BREAK, proceed])
    assert await revisions(caller) == [1, 2, 3]
    assert tokens(orders) == ["", "", "1", "2"]


@pytest.mark.parametrize("code", [CODE.UNAVAILABLE, CODE.INTERNAL, CODE.CANCELLED, CODE.DEADLINE_EXCEEDED])
async def test_whatever_lies_between_may_break_it(caller, orders, code):
    orders.stream_script.extend([proceed, Refusal(code, metadata=BREAK.metadata)])
    assert await revisions(caller) == [1, 2, 3]


async def test_an_overloaded_server_says_when_to_come_back(caller, orders):
    orders.script.append(Refusal(CODE.RESOURCE_EXHAUSTED, details=(error_info("TOO_MANY_WATCHES"), retry_info(0.2))))
    started = asyncio.get_running_loop().time()
    assert await revisions(caller) == [1, 2, 3]
    assert asyncio.get_running_loop().time() - started >= 0.2


async def test_a_lost_ending_is_no_error(caller, orders):
    orders.stream_script.extend([proceed] * 3 + [Refusal(CODE.UNAVAILABLE)])
    assert await revisions(caller) == [1, 2, 3]
    assert len(orders.seen) == 1


async def test_it_leaves_out_what_the_token_showed(caller, orders):
    assert await revisions(caller, resume_token="2") == [3]
    assert await revisions(caller, resume_token="3") == []


@pytest.mark.parametrize("code", [CODE.NOT_FOUND, CODE.INVALID_ARGUMENT, CODE.PERMISSION_DENIED, CODE.UNKNOWN])
async def test_what_stays_wrong_is_raised(caller, orders, code):
    orders.script.append(Refusal(code))
    assert (await failure(caller.all("watch_order", "order-1"))).code is code
    assert len(orders.seen) == 1


async def test_an_error_that_our_server_explains_is_raised(caller, orders):
    orders.script.append(Refusal(CODE.INTERNAL, details=(error_info("INTERNAL"),)))
    assert isinstance(await failure(caller.all("watch_order", "order-1")), UnexpectedStatus)
    assert len(orders.seen) == 1


async def test_it_gives_up_when_no_server_is_there_for_long(flavour, orders, monkeypatch):
    monkeypatch.setattr(_watches, "_GIVE_UP_SECONDS", 0.3)
    async with serving(orders) as target:
        pass
    caller = connected(flavour, target)
    assert isinstance(await failure(caller.all("watch_order", "order-1")), Unavailable)
    await caller.close()


async def test_a_server_that_comes_back_is_found(flavour, orders):
    orders.life = (order_pb2.ORDER_STATUS_CREATED,)
    reached = asyncio.Event()

    async def hang(_context):
        reached.set()
        await asyncio.sleep(30)

    orders.stream_script.extend([proceed, hang])
    async with serving(orders) as target:
        caller = connected(flavour, target)
        watched = asyncio.create_task(revisions(caller))
        await reached.wait()
    orders.life = LIFE
    async with serving(orders, target):
        assert await watched == [1, 2, 3]
        await caller.close()


async def test_it_ends_at_its_deadline(caller, orders):
    async def hang(_context):
        await asyncio.sleep(30)

    orders.stream_script.extend([proceed, hang])
    assert isinstance(await failure(caller.all("watch_order", "order-1", timeout=0.3)), DeadlineExceeded)


async def test_breaks_do_not_outlast_the_deadline(caller, orders):
    orders.stream_script.extend([proceed] + [BREAK] * 50)
    assert isinstance(await failure(caller.all("watch_order", "order-1", timeout=1)), DeadlineExceeded)


async def test_leaving_early_ends_the_stream(caller, orders):
    ended = asyncio.Event()

    async def hang(_context):
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    orders.stream_script.extend([proceed, hang])
    async for _ in caller.each("watch_order", "order-1"):
        break
    async with asyncio.timeout(10):
        await ended.wait()


async def test_closing_the_client_ends_it(caller, orders):
    under_way = asyncio.Event()

    async def hang(_context):
        under_way.set()
        await asyncio.sleep(30)

    orders.stream_script.extend([proceed, hang])
    watched = asyncio.create_task(revisions(caller))
    await under_way.wait()
    await caller.close()
    assert (await failure(watched)).code is CODE.CANCELLED


async def test_an_expired_token_is_renewed_between_streams(target, orders):
    given = iter(["old", "new", "newer"])
    expired = Refusal(CODE.UNAUTHENTICATED)
    orders.script.extend([expired, proceed, expired])
    orders.stream_script.extend([proceed, BREAK])
    async with OrdersClient(target, token=lambda: next(given)) as client:
        assert [each.order.revision async for each in client.watch_order("order-1")] == [1, 2, 3]
    assert [seen.metadata["authorization"] for seen in orders.seen] == [
        "Bearer old",
        "Bearer new",
        "Bearer new",
        "Bearer newer",
    ]


async def test_each_token_that_expires_during_a_stream_is_renewed(flavour, target, orders):
    given = iter(range(100))
    expired = Refusal(CODE.UNAUTHENTICATED)
    orders.stream_script.extend([proceed, expired, proceed, expired])
    caller = connected(flavour, target, token=lambda: f"t-{next(given)}")
    assert await revisions(caller) == [1, 2, 3]
    assert [seen.metadata["authorization"] for seen in orders.seen] == ["Bearer t-0", "Bearer t-1", "Bearer t-2"]
    await caller.close()


async def test_a_token_that_is_refused_twice_is_not_renewed_for_ever(flavour, target, orders):
    given = iter(range(100))
    orders.script.extend([Refusal(CODE.UNAUTHENTICATED)] * 100)
    caller = connected(flavour, target, token=lambda: f"t-{next(given)}")
    assert (await failure(caller.all("watch_order", "order-1"))).code is CODE.UNAUTHENTICATED
    assert len(orders.seen) == 2
    await caller.close()


async def test_wait_until_settled(caller, orders):
    orders.stream_script.extend([proceed, BREAK])
    order = await caller.call("wait_until_settled", "order-1")
    assert (order.revision, is_settled(order)) == (3, True)
    assert 10 < orders.seen[0].time_remaining < 61


async def test_wait_until_settled_with_the_token_of_the_end(caller, orders):
    order = await caller.call("wait_until_settled", "order-1", resume_token="3")
    assert order.status == order_pb2.ORDER_STATUS_PAID
    orders.script.append(Refusal(CODE.NOT_FOUND))
    assert isinstance(await failure(caller.call("wait_until_settled", "order-1")), OrderNotFound)


@pytest.mark.parametrize("status", order_pb2.OrderStatus.values())
def test_settled_is_all_but_created_and_processing(status):
    open_states = (order_pb2.ORDER_STATUS_CREATED, order_pb2.ORDER_STATUS_PROCESSING)
    assert is_settled(order_pb2.Order(status=status)) is (status not in open_states)


async def test_the_refusal_of_overload_is_told_when_it_stays(caller, orders, monkeypatch):
    monkeypatch.setattr(_watches, "_GIVE_UP_SECONDS", 0.1)
    orders.script.extend([Refusal(CODE.RESOURCE_EXHAUSTED)] * 50)
    assert isinstance(await failure(caller.all("watch_order", "order-1")), Overloaded)
