"""GetOrder and ListOrders with a million stored orders against a thousand, page 1,000 of the list against page 1."""

import contextlib
import dataclasses
import datetime
import random
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import grpc.aio

from bench import orders
from bench.load import Loaded, closed_loop
from bench.results import Figure, Lines, Measured, Ratio, Workload, WrongResultError
from bench.system import BenchSystem
from orderflow.orders.v1.order_service_pb2 import GetOrderRequest, ListOrdersRequest
from orderflow.orders.v1.order_service_pb2_grpc import OrderServiceStub

_CALLERS: Final = 16
_ASKED: Final = 20_000
"""Different orders that are asked for."""
_COPIED: Final = 10_000
_EVERY_MS: Final = 20
"""An order was created each so often."""


@dataclasses.dataclass(frozen=True)
class Size:
    """Stored orders: few and many; for how long GetOrder is called, seconds; pages, and how often each is read."""

    few: int
    many: int
    warmup: float
    seconds: float
    page: int
    page_size: int
    repeats: int


async def measure(system: BenchSystem, size: Size) -> Measured:
    """Measures with few orders, and then with many."""
    async with _stored(system, size.few) as ids:
        few = await _get(system, ids, size)
        async with _stub(system) as stub:
            few_page = statistics.median([await _timed_page(stub, size, "") for _ in range(size.repeats)])
    async with _stored(system, size.many) as ids:
        many = await _get(system, ids, size)
        async with _stub(system) as stub:
            token = await _token_of_last(stub, size)
            first, last = [], []
            for _ in range(size.repeats):  # in turns, so that what else the machine does meets both
                first.append(await _timed_page(stub, size, ""))
                last.append(await _timed_page(stub, size, token))
    return Measured(
        {
            "few_get_per_s": few.rate,
            "few_get_p50_ms": few.p50 * 1000,
            "few_get_p99_ms": few.p99 * 1000,
            "many_get_per_s": many.rate,
            "many_get_p50_ms": many.p50 * 1000,
            "many_get_p99_ms": many.p99 * 1000,
            "get_cpu_ms": many.cpu_ms("server"),
            "few_page_ms": few_page * 1000,
            "first_page_ms": statistics.median(first) * 1000,
            "last_page_ms": statistics.median(last) * 1000,
        },
        {f"GetOrder, {size.few:,} stored": few.percentiles, f"GetOrder, {size.many:,} stored": many.percentiles},
    )


@contextlib.asynccontextmanager
async def _stored(system: BenchSystem, count: int) -> AsyncIterator[list[str]]:
    """Runs a server whose read model has so many orders, and yields the ids of some, mixed."""
    async with system.fresh():
        dice = random.Random(count)  # noqa: S311 - chooses orders, guards nothing
        async with system.sql() as connection:
            placed = orders.Placed()
            for begin in range(0, count, _COPIED):
                numbers = range(begin, min(begin + _COPIED, count))
                await connection.copy_records_to_table(
                    "order_views", records=list(_rows(placed, numbers)), columns=_COLUMNS
                )
            await connection.execute("vacuum analyze order_views")
            ids = [
                str(row["order_id"])
                for row in await connection.fetch("select order_id from order_views limit $1", _ASKED)
            ]
        dice.shuffle(ids)
        system.start_roles("server")
        await system.wait_healthy(["server"])
        yield ids


_COLUMNS: Final = ("order_id", "caller", "user_id", "status", "revision", "create_time", "snapshot")


def _rows(placed: orders.Placed, numbers: range) -> Iterator[tuple[Any, ...]]:
    """Yields the rows of the read model for orders that were created one after the other."""
    for number in numbers:
        order = placed.order(number)
        order.create_time.FromMilliseconds(order.create_time.ToMilliseconds() - number * _EVERY_MS)
        yield (
            uuid.UUID(order.order_id),
            orders.CALLER,
            order.user_id,
            order.status,
            order.revision,
            order.create_time.ToDatetime(datetime.UTC),
            order.SerializeToString(),
        )


async def _get(system: BenchSystem, ids: list[str], size: Size) -> Loaded:
    messages = [GetOrderRequest(order_id=each).SerializeToString() for each in ids]
    return await closed_loop(
        system,
        system.server_address,
        "GetOrder",
        messages,
        seconds=size.seconds,
        warmup=size.warmup,
        again=True,
        callers=_CALLERS,
    )


@contextlib.asynccontextmanager
async def _stub(system: BenchSystem) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(system.server_address) as channel:
        yield OrderServiceStub(channel)


async def _token_of_last(stub: Any, size: Size) -> str:
    """Reads page by page and returns the token of the last one."""
    token = ""
    for _ in range(size.page - 1):
        page = await stub.ListOrders(ListOrdersRequest(page_size=size.page_size, page_token=token), timeout=30)
        token = page.next_page_token
    return token


async def _timed_page(stub: Any, size: Size, token: str) -> float:
    began = time.perf_counter()
    page = await stub.ListOrders(ListOrdersRequest(page_size=size.page_size, page_token=token), timeout=30)
    took = time.perf_counter() - began
    if len(page.orders) != size.page_size:
        raise WrongResultError(f"a page has {len(page.orders)} orders instead of {size.page_size}")
    return took


WORKLOAD = Workload(
    name="reads",
    about=(__doc__ or "").strip(),
    measure=measure,
    full=Size(few=1_000, many=1_000_000, warmup=2, seconds=10, page=1_000, page_size=100, repeats=200),
    short=Size(few=100, many=2_000, warmup=0.2, seconds=0.5, page=10, page_size=50, repeats=5),
    figures=(
        Figure("few_get_per_s", "GetOrder, 16 callers, few stored", "calls/s"),
        Figure("few_get_p50_ms", "its latency, median", "ms"),
        Figure("few_get_p99_ms", "its latency, p99", "ms"),
        Figure("many_get_per_s", "GetOrder, 16 callers, many stored", "calls/s"),
        Figure("many_get_p50_ms", "its latency, median", "ms"),
        Figure("many_get_p99_ms", "its latency, p99", "ms"),
        Figure("get_cpu_ms", "CPU of the server", "ms/call"),
        Figure("few_page_ms", "first page of a list, few stored", "ms"),
        Figure("first_page_ms", "first page of a list, many stored", "ms"),
        Figure("last_page_ms", "page far in a list, many stored", "ms"),
    ),
    ratios=(
        Ratio("get", "GetOrder p99, many stored over few", "many_get_p99_ms", "few_get_p99_ms", most=1.3),
        Ratio("page", "page far in a list over the first", "last_page_ms", "first_page_ms", most=1.2),
        Ratio("list", "first page, many stored over few", "first_page_ms", "few_page_ms"),
    ),
    lines=Lines("percent of the calls", "latency, ms", is_even=True),
)
