"""GetOrder and ListOrders with a million stored orders against a thousand, page 1,000 of the list against page 1."""

import contextlib
import dataclasses
import datetime
import random
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final

import grpc.aio

from bench import orders
from bench.load import Loaded, closed_loop
from bench.results import Figure, Lines, Measured, Ratio, Workload, WrongResultError
from bench.system import BenchSystem
from devstack.ports import LOOPBACK, free_ports
from orderflow.orders.v1.order_service_pb2 import GetOrderRequest, ListOrdersRequest
from orderflow.orders.v1.order_service_pb2_grpc import OrderServiceStub

_CALLERS: Final = 16
_ASKED: Final = 20_000
"""Different orders that are asked for."""
_COPIED: Final = 10_000
_EVERY_MS: Final = 20
"""An order was created each so often."""
_WITH_FEW: Final = "few"
"""The database that has few orders, and the server that reads it."""


@dataclasses.dataclass(frozen=True)
class Size:
    """Stored orders: few and many; how often GetOrder is measured of each, and for how long each time, seconds.

    Pages, and how often each is read.
    """

    few: int
    many: int
    warmup: float
    seconds: float
    rounds: int
    page: int
    page_size: int
    repeats: int


async def measure(system: BenchSystem, size: Size) -> Measured:
    """Measures two servers in turns, of a database with few orders and of one with many."""
    async with system.fresh(), system.copied_database(_WITH_FEW) as dsn:
        few_ids, many_ids = await _store(system, dsn, size.few), await _store(system, system.postgres.dsn, size.many)
        few_address = await _serve(system, dsn)
        few, many = [], []
        for _ in range(size.rounds):  # in turns, so that what else the machine does meets both
            few.append(await _get(system, few_address, few_ids, size))
            many.append(await _get(system, system.server_address, many_ids, size))
        async with _stub(few_address) as of_few, _stub(system.server_address) as of_many:
            token = await _token_of_last(of_many, size)
            few_page, first, last = [], [], []
            for _ in range(size.repeats):
                few_page.append(await _timed_page(of_few, size, ""))
                first.append(await _timed_page(of_many, size, ""))
                last.append(await _timed_page(of_many, size, token))
    return Measured(
        {
            "few_get_per_s": statistics.median(each.rate for each in few),
            "few_get_p50_ms": statistics.median(each.p50 for each in few) * 1000,
            "few_get_p99_ms": statistics.median(each.p99 for each in few) * 1000,
            "many_get_per_s": statistics.median(each.rate for each in many),
            "many_get_p50_ms": statistics.median(each.p50 for each in many) * 1000,
            "many_get_p99_ms": statistics.median(each.p99 for each in many) * 1000,
            "get_cpu_ms": statistics.median(each.cpu_ms("server") for each in many),
            "few_page_ms": statistics.median(few_page) * 1000,
            "first_page_ms": statistics.median(first) * 1000,
            "last_page_ms": statistics.median(last) * 1000,
        },
        {
            f"GetOrder, {size.few:,} stored": _middle(few).percentiles,
            f"GetOrder, {size.many:,} stored": _middle(many).percentiles,
        },
    )


def _middle(rounds: Sequence[Loaded]) -> Loaded:
    return sorted(rounds, key=lambda each: each.p99)[len(rounds) // 2]


async def _store(system: BenchSystem, dsn: str, count: int) -> list[str]:
    """Has the read model there hold so many orders. Returns the ids of some, mixed."""
    async with system.sql(dsn) as connection:
        placed = orders.Placed()
        for begin in range(0, count, _COPIED):
            numbers = range(begin, min(begin + _COPIED, count))
            await connection.copy_records_to_table(
                "order_views", records=list(_rows(placed, numbers)), columns=_COLUMNS
            )
        await connection.execute("vacuum analyze order_views")
        rows = await connection.fetch("select order_id from order_views limit $1", _ASKED)
    ids = [str(row["order_id"]) for row in rows]
    random.Random(count).shuffle(ids)  # noqa: S311 - chooses orders, guards nothing
    return ids


async def _serve(system: BenchSystem, dsn: str) -> str:
    """Runs a server of the system's database, and one of the database there, whose address it returns."""
    listen, metrics = free_ports(2)
    address = f"{LOOPBACK}:{listen}"
    system.start_role("server")
    system.start_role(
        "server",
        {
            "ORDERFLOW_DATABASE_URL": dsn,
            "ORDERFLOW_SERVER_LISTEN": address,
            "ORDERFLOW_SERVER_METRICS_LISTEN": f"{LOOPBACK}:{metrics}",
        },
        name=_WITH_FEW,
    )
    await system.wait_healthy(["server"])
    await system.wait_listening(listen)
    return address


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


async def _get(system: BenchSystem, address: str, ids: list[str], size: Size) -> Loaded:
    messages = [GetOrderRequest(order_id=each).SerializeToString() for each in ids]
    return await closed_loop(
        system,
        address,
        "GetOrder",
        messages,
        seconds=size.seconds,
        warmup=size.warmup,
        again=True,
        callers=_CALLERS,
    )


@contextlib.asynccontextmanager
async def _stub(address: str) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address) as channel:
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
    full=Size(few=1_000, many=1_000_000, warmup=0.5, seconds=3, rounds=7, page=1_000, page_size=100, repeats=200),
    short=Size(few=100, many=2_000, warmup=0.2, seconds=0.5, rounds=1, page=10, page_size=50, repeats=5),
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
