"""Many orders at once."""

import asyncio

import grpc
import pytest
from google.rpc import status_pb2

from clients.tests.caller import ORDER, failure
from clients.tests.scripted_server import Refusal, bad_request, error_info, retry_info
from orderflow_client import (
    InvalidOrder,
    OrderflowError,
    OrdersClient,
    Outcome,
    Progress,
    Unavailable,
    UnexpectedStatus,
)

CODE = grpc.StatusCode
NOT_ACCEPTED = error_info("KAFKA_UNAVAILABLE", outcome="NOT_ACCEPTED")
INVALID = Refusal(
    CODE.INVALID_ARGUMENT, details=(error_info("INVALID_FIELDS", outcome="NOT_ACCEPTED"), bad_request(items="none"))
)


def many(count: int):
    return [{**ORDER, "request_id": f"r-{number}"} for number in range(count)]


def ids(results):
    return [result.request_id for result in results]


async def test_each_order_of_a_batch_has_its_own_result(caller, orders):
    orders.refused["r-1"].append(INVALID)
    first, second, third = await caller.call("batch_create_orders", many(3))
    assert [first.get().order.order_id, third.get().order.order_id] == ["order-of-r-0", "order-of-r-2"]
    assert second.created is None
    with pytest.raises(InvalidOrder) as caught:
        second.get()
    error = caught.value
    assert error is second.error
    assert (error.request_id, error.outcome, error.violations) == ("r-1", Outcome.NOT_ACCEPTED, (("items", "none"),))


async def test_each_order_of_a_batch_gets_a_request_id(caller, orders):
    results = await caller.call("batch_create_orders", [ORDER, ORDER])
    assert len({*ids(results)}) == 2
    assert [each.request_id for each in orders.seen[0].request.requests] == ids(results)


async def test_a_batch_that_fails_as_a_whole_names_its_request_ids(caller, orders):
    orders.script.append(Refusal(CODE.INTERNAL))
    error = await failure(caller.call("batch_create_orders", many(2)))
    assert (error.request_id, error.request_ids, error.outcome) == (None, ("r-0", "r-1"), Outcome.UNKNOWN)


async def test_a_code_that_grpc_does_not_know_is_no_crash(caller, orders):
    refusal = Refusal(CODE.INTERNAL)
    refusal.status = lambda: status_pb2.Status(code=99)
    orders.refused["r-0"].append(refusal)
    [result] = await caller.call("batch_create_orders", many(1))
    assert isinstance(result.error, UnexpectedStatus)


async def test_results_come_in_the_order_of_the_orders(caller, orders):
    """Whatever batch is answered first."""
    first_may_answer = asyncio.Event()

    async def last(_context):
        await first_may_answer.wait()

    async def release(_context):
        first_may_answer.set()

    orders.script.extend([last, release])
    orders.refused["r-3"].append(INVALID)
    told: list[Progress] = []
    results = await caller.all("create_orders", iter(many(7)), batch_size=2, concurrency=2, on_progress=told.append)
    assert ids(results) == [f"r-{number}" for number in range(7)]
    assert [result.error is None for result in results] == [True] * 3 + [False] + [True] * 3
    assert told == [(2, 0), (3, 1), (5, 1), (6, 1)]
    assert [progress.done for progress in told] == [2, 4, 6, 7]
    assert sorted(len(seen.request.requests) for seen in orders.seen) == [1, 2, 2, 2]


async def test_no_more_calls_at_once_than_asked_for(caller, orders):
    at_once = most = 0

    async def count(_context):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1

    orders.script.extend([count] * 10)
    assert len(await caller.all("create_orders", many(10), batch_size=1, concurrency=3)) == 10
    assert 1 <= most <= 3


async def test_orders_are_read_as_fast_as_results_are_taken(caller, orders):
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield ORDER

    async for result in caller.each("create_orders", endless(), batch_size=2, concurrency=2):
        assert result.error is None
        break
    assert read <= 6


async def test_orders_may_come_from_an_async_iterable(target):
    async def arriving():
        for order in many(5):
            yield order

    async with OrdersClient(target) as client:
        assert ids([each async for each in client.create_orders(arriving(), batch_size=2)]) == ids_of(5)


def ids_of(count: int) -> list[str]:
    return [f"r-{number}" for number in range(count)]


async def test_no_orders_no_call(caller, orders):
    assert await caller.all("create_orders", []) == []
    assert orders.seen == []


async def test_what_the_server_cannot_take_for_now_is_sent_again(caller, orders):
    away = Refusal(CODE.UNAVAILABLE, details=(NOT_ACCEPTED, retry_info(0.01)))
    orders.refused["r-1"].extend([away, away])
    results = await caller.all("create_orders", many(3))
    assert [result.error for result in results] == [None] * 3
    assert [ids(seen.request.requests) for seen in orders.seen] == [ids_of(3), ["r-1"], ["r-1"]]


async def test_so_is_what_is_more_than_it_takes_at_once(caller, orders):
    shed = Refusal(CODE.RESOURCE_EXHAUSTED, details=(NOT_ACCEPTED, retry_info(0.01)))
    orders.refused["r-1"].append(shed)
    orders.script.extend([shed, shed])
    results = await caller.all("create_orders", many(3))
    assert [result.error for result in results] == [None] * 3
    assert [ids(seen.request.requests) for seen in orders.seen] == [ids_of(3), ids_of(3), ids_of(3), ["r-1"]]


async def test_four_tries_at_most(caller, orders):
    orders.refused["r-0"].extend([Refusal(CODE.UNAVAILABLE, details=(NOT_ACCEPTED,))] * 9)
    [result] = await caller.all("create_orders", many(1))
    assert isinstance(result.error, Unavailable)
    assert len(orders.seen) == 4


@pytest.mark.parametrize(
    "refusal",
    [
        INVALID,
        Refusal(CODE.RESOURCE_EXHAUSTED, details=(NOT_ACCEPTED,)),
        Refusal(CODE.RESOURCE_EXHAUSTED, details=(NOT_ACCEPTED, retry_info(61))),
        Refusal(CODE.UNAVAILABLE),
    ],
    ids=["refused", "overloaded", "for long", "may be accepted"],
)
async def test_nothing_else_is_sent_again(caller, orders, refusal):
    orders.refused["r-0"].append(refusal)
    [result] = await caller.all("create_orders", many(1))
    assert result.error.code is refusal.code
    assert len(orders.seen) == 1


async def test_a_call_that_fails_is_the_error_of_its_orders(caller, orders):
    orders.script.append(Refusal(CODE.INTERNAL))
    results = await caller.all("create_orders", many(4), batch_size=2, concurrency=1)
    assert [result.error is None for result in results] == [False, False, True, True]
    error = results[1].error
    assert isinstance(error, UnexpectedStatus)
    assert (error.request_id, error.request_ids, error.outcome) == ("r-1", (), Outcome.UNKNOWN)
    assert isinstance(error.__cause__, OrderflowError)


async def test_a_request_id_is_never_twice_in_a_batch(caller, orders):
    await caller.all("create_orders", [*many(2), *many(2)])
    assert [ids(seen.request.requests) for seen in orders.seen] == [ids_of(2), ids_of(2)]


async def test_large_orders_make_small_batches(caller, orders):
    large = [{**order, "labels": {"k": "x" * 200_000}} for order in many(20)]
    results = await caller.all("create_orders", large, concurrency=1)
    assert ids(results) == ids_of(20)
    assert [len(seen.request.requests) for seen in orders.seen] == [15, 5]


@pytest.mark.parametrize("size", [0, 501])
async def test_a_batch_that_the_server_would_refuse_is_not_made(caller, size):
    with pytest.raises(ValueError, match="1 to 500"):
        await caller.all("create_orders", many(1), batch_size=size)


async def test_leaving_early_ends_the_calls_under_way(target, orders):
    cancelled = asyncio.Event()

    async def hang(_context):
        try:
            await asyncio.sleep(30)
        finally:
            cancelled.set()

    async def answer(_context):
        pass

    orders.script.extend([answer, hang])
    async with OrdersClient(target) as client:
        results = client.create_orders(many(2), batch_size=1, concurrency=2)
        async for _ in results:
            break
        await results.aclose()
        async with asyncio.timeout(10):
            await cancelled.wait()


async def test_batch_get_keeps_the_order_and_passes_tokens(caller, orders):
    found = await caller.call("batch_get_orders", ["b", "a"], consistency_tokens={"a": "token-a"})
    assert [(each.order.order_id, each.consistency_token) for each in found] == [("b", ""), ("a", "token-a")]
