"""From the moment that an order is due to be placed until it has ended, with a gateway that takes 50 ms, open loop.

At 100 orders/s by CreateOrder, and at half of what the workers drain by BatchCreateOrders, a batch each 50 ms.
"""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable
from typing import Final

import grpc.aio

from bench import orders
from bench.load import SERVICE
from bench.results import Figure, Lines, Measured, Ratio, Workload, percentile, percentiles
from bench.system import GATEWAY_SECONDS, BenchSystem
from bench.topics import Ends, reading
from bench.workloads.drain import WORKERS, drained
from orderflow.orders.v1.order_service_pb2 import (
    BatchCreateOrdersRequest,
    BatchCreateOrdersResponse,
    CreateOrderRequest,
    CreateOrderResponse,
)

_PROBE_SECONDS: Final = 60.0
_BATCH_SECONDS: Final = 0.05
_MOST_IN_BATCH: Final = 500

Place = Callable[[int, int], Awaitable[list[str]]]
"""Places so many orders from a number on, and returns their ids."""


@dataclasses.dataclass(frozen=True)
class Size:
    """Orders a second, for how long, of how many the drain rate is told, and how many orders go first, one by one.

    Of none the drain rate is taken for that at which orders are placed.
    """

    rate: float
    seconds: float
    drained: int
    probes: int


async def measure(system: BenchSystem, size: Size) -> Measured:
    """Measures at the given rate, then the drain rate, then at half of that."""
    at_rate, spent = await _loaded(system, size, size.rate, 1)
    half = await _drain_rate(system, size) / 2
    in_batch = max(min(round(half * _BATCH_SECONDS), _MOST_IN_BATCH), 1)
    at_half, _ = await _loaded(system, size, half, in_batch)
    low, high = sorted(at_rate), sorted(at_half)
    return Measured(
        {
            "p50_ms": percentile(low, 0.5) * 1000,
            "p99_ms": percentile(low, 0.99) * 1000,
            "generator": spent,
            "half_rate": half,
            "half_p50_ms": percentile(high, 0.5) * 1000,
            "half_p99_ms": percentile(high, 0.99) * 1000,
            "gateway_ms": GATEWAY_SECONDS * 1000,
        },
        {
            f"{size.rate:.0f} orders/s": _milliseconds(at_rate),
            "half of the drain rate": _milliseconds(at_half),
        },
    )


async def _drain_rate(system: BenchSystem, size: Size) -> float:
    if not size.drained:
        return size.rate
    async with system.fresh():
        await system.add_stock(orders.SKUS, orders.UNITS)
        ids = await orders.preload(system.kafka_settings, size.drained)
        return (await drained(system, ids, *WORKERS)).steady


def _milliseconds(latencies: list[float]) -> list[tuple[float, float]]:
    return [(percent, 1000 * seconds) for percent, seconds in percentiles(latencies)]


async def _loaded(system: BenchSystem, size: Size, rate: float, at_once: int) -> tuple[list[float], float]:
    """Returns the latencies of orders placed at a rate, so many at once, and the load generator's share of a core."""
    async with system.fresh():
        await system.add_stock(orders.SKUS, orders.UNITS)
        system.start_roles("server", *WORKERS)
        await system.wait_healthy(["server", *WORKERS])
        async with reading(system, Ends) as ends, grpc.aio.insecure_channel(system.server_address) as channel:
            place = _single(channel) if at_once == 1 else _batch(channel)
            probes = await _all_at_work(ends, place, size.probes)
            began = time.process_time()
            due = await _open_loop(place, rate, size.seconds, at_once)
            await ends.until(lambda: len(ends.arrived) >= len(due) + len(probes))
            spent = (time.process_time() - began) / size.seconds
            await ends.late()
            ends.check({*due, *probes})
    return [ends.arrived[order_id] - moment for order_id, moment in due.items()], spent


def _single(channel: grpc.aio.Channel) -> Place:
    call: grpc.aio.UnaryUnaryMultiCallable[CreateOrderRequest, CreateOrderResponse] = channel.unary_unary(
        f"{SERVICE}/CreateOrder", CreateOrderRequest.SerializeToString, CreateOrderResponse.FromString
    )

    async def place(first: int, _: int) -> list[str]:
        [request] = orders.requests(1, first=first)
        return [(await call(request, timeout=30)).order.order_id]

    return place


def _batch(channel: grpc.aio.Channel) -> Place:
    call: grpc.aio.UnaryUnaryMultiCallable[BatchCreateOrdersRequest, BatchCreateOrdersResponse] = channel.unary_unary(
        f"{SERVICE}/BatchCreateOrders",
        BatchCreateOrdersRequest.SerializeToString,
        BatchCreateOrdersResponse.FromString,
    )

    async def place(first: int, count: int) -> list[str]:
        answer = await call(BatchCreateOrdersRequest(requests=orders.requests(count, first=first)), timeout=30)
        return [result.created.order.order_id for result in answer.results]

    return place


async def _all_at_work(ends: Ends, place: Place, count: int) -> list[str]:
    """Places orders one by one until so many have ended, and returns the ids of all when they have."""
    placed: list[str] = []

    def have_ended() -> bool:
        return len(ends.arrived) >= len(placed)

    async with asyncio.timeout(_PROBE_SECONDS):
        while len(ends.arrived) < count:
            placed += await place(10**9 + len(placed), 1)
            await ends.until(have_ended, idle=1)
        await ends.until(have_ended)
    return placed


async def _open_loop(place: Place, rate: float, seconds: float, at_once: int) -> dict[str, float]:
    """Places orders whatever becomes of them, and returns when each was due."""
    due: dict[str, float] = {}
    calls: list[asyncio.Task[None]] = []

    async def call(first: int, moment: float) -> None:
        for order_id in await place(first, at_once):
            due[order_id] = moment

    began = time.monotonic() + 0.1
    for first in range(0, max(int(rate * seconds), 1), at_once):
        moment = began + first / rate
        await asyncio.sleep(max(moment - time.monotonic(), 0))
        calls.append(asyncio.create_task(call(first, moment)))
    await asyncio.gather(*calls)
    return due


WORKLOAD = Workload(
    name="latency",
    about=(__doc__ or "").strip(),
    measure=measure,
    full=Size(rate=100, seconds=20, drained=30_000, probes=20),
    short=Size(rate=40, seconds=0.5, drained=0, probes=1),
    figures=(
        Figure("p50_ms", "created to paid at 100/s, median", "ms"),
        Figure("p99_ms", "created to paid at 100/s, p99", "ms"),
        Figure("generator", "load generator and reader", "cores"),
        Figure("half_rate", "half of the drain rate", "orders/s"),
        Figure("half_p50_ms", "created to paid at that rate, median", "ms"),
        Figure("half_p99_ms", "created to paid at that rate, p99", "ms"),
        Figure("gateway_ms", "the gateway's part of it", "ms"),
    ),
    ratios=(
        Ratio("tail", "p99 over p50 at 100/s", "p99_ms", "p50_ms", most=2, aim=1.5),
        Ratio("over_gateway", "p50 at 100/s over the gateway's part", "p50_ms", "gateway_ms"),
        Ratio("half_tail", "p99 over p50 at half of the drain rate", "half_p99_ms", "half_p50_ms"),
    ),
    lines=Lines("percent of the orders", "created to paid, ms", is_even=True),
)
