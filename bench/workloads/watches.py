"""Thousands of WatchOrder streams on one server: opening them, holding them, and telling all of them at once.

The orders wait for their payment while the watches are opened; then the payment processor is started.
"""

import asyncio
import dataclasses
import datetime
import itertools
import time
from collections.abc import Mapping
from typing import Any, Final

import grpc.aio

from bench import orders
from bench.results import Figure, Lines, Measured, Workload, WrongResultError, percentile, percentiles
from bench.system import BenchSystem
from bench.workloads.batch import BatchCaller, batches
from orderflow.orders.v1.order_service_pb2 import WatchOrderRequest
from orderflow.orders.v1.order_service_pb2_grpc import OrderServiceStub

_AT_ONCE: Final = 50
"""Watches that one of the callers opens at a time: who opens thousands at once is refused some."""
_PATIENCE_SECONDS: Final = 300.0
_BEFORE: Final = ("server", "order-processor", "projector")


@dataclasses.dataclass(frozen=True)
class Size:
    """How many watches."""

    watches: int


class Watch:
    """One watch: the revisions that it has shown, and how long after it happened the last was here, seconds."""

    def __init__(self) -> None:
        self.revisions: list[int] = []
        self.took = 0.0
        self._shows = asyncio.Event()

    async def follow(self, stub: Any, order_id: str, token: str) -> None:
        """Watches an order from its creation to its end."""
        # With the token it waits for what the projector has not written yet, instead of finding nothing.
        request = WatchOrderRequest(order_id=order_id, resume_token=token)
        async for seen in stub.WatchOrder(request, timeout=_PATIENCE_SECONDS):
            self.took = time.time() - seen.order.update_time.ToDatetime(datetime.UTC).timestamp()
            self.revisions.append(seen.order.revision)
            self._shows.set()

    async def opened(self, following: "asyncio.Task[None]") -> None:
        """Waits until it shows something; raises what ended it before."""
        shows = asyncio.create_task(self._shows.wait())
        await asyncio.wait((shows, following), return_when=asyncio.FIRST_COMPLETED)
        shows.cancel()
        if following.done():
            following.result()


async def measure(system: BenchSystem, size: Size) -> Measured:
    """Opens the watches, and then has all orders paid."""
    tasks: list[asyncio.Task[None]] = []
    async with system.fresh():
        await system.add_stock(orders.SKUS, orders.UNITS)
        system.start_roles(*_BEFORE)
        await system.wait_healthy(_BEFORE)
        async with grpc.aio.insecure_channel(system.server_address) as channel:
            caller = BatchCaller(channel)
            await caller.call_all(batches(size.watches))
            tokens = caller.tokens()
            idle = system.resident()["server"]
            try:
                watches, opened = await _open(OrderServiceStub(channel), tokens, tasks)
                held = system.resident()["server"]
                meter, began, spent = system.meter(), time.monotonic(), time.process_time()
                system.start_roles("payment-processor")
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            told, cpu = time.monotonic() - began, meter.read()["server"]
            spent = time.process_time() - spent
    wrong = [each.revisions for each in watches if each.revisions != [2, 3]]
    if wrong:
        raise WrongResultError(f"{len(wrong)} watches have not shown each revision once: {wrong[:3]}")
    took = sorted(each.took for each in watches)
    return Measured(
        {
            "opened_per_s": len(tokens) / opened,
            "idle_mib": idle,
            "held_mib": held,
            "kib_each": (held - idle) * 1024 / len(tokens),
            "told_s": told,
            "told_p50_ms": percentile(took, 0.5) * 1000,
            "told_p99_ms": percentile(took, 0.99) * 1000,
            "cpu_ms": cpu / len(tokens) * 1000,
            "watcher": spent / told,
        },
        {f"{len(tokens):,} watches": [(percent, seconds * 1000) for percent, seconds in percentiles(took)]},
    )


async def _open(stub: Any, tokens: Mapping[str, str], tasks: "list[asyncio.Task[None]]") -> tuple[list[Watch], float]:
    """Opens a watch for each order, and adds what follows it to the tasks. Returns how many seconds it took, too."""
    watches: list[Watch] = []
    left = iter(sorted(tokens.items()))
    began = time.monotonic()
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while some := list(itertools.islice(left, _AT_ONCE)):
            new = [Watch() for _ in some]
            following = [asyncio.create_task(watch.follow(stub, *each)) for watch, each in zip(new, some, strict=True)]
            watches += new
            tasks += following
            await asyncio.gather(*(watch.opened(task) for watch, task in zip(new, following, strict=True)))
    return watches, time.monotonic() - began


WORKLOAD = Workload(
    name="watches",
    about=(__doc__ or "").strip(),
    measure=measure,
    full=Size(watches=5_000),
    short=Size(watches=100),
    figures=(
        Figure("opened_per_s", "watches opened", "1/s"),
        Figure("idle_mib", "memory of the server before", "MiB"),
        Figure("held_mib", "memory of the server that holds them", "MiB"),
        Figure("kib_each", "memory for each", "KiB"),
        Figure("told_s", "from the start of the payment processor until all have ended", "s"),
        Figure("told_p50_ms", "from the payment until the watcher knows, median", "ms"),
        Figure("told_p99_ms", "from the payment until the watcher knows, p99", "ms"),
        Figure("cpu_ms", "CPU of the server for telling", "ms/watch"),
        Figure("watcher", "CPU of the watchers", "cores"),
    ),
    lines=Lines("percent of the watches", "from payment to watcher, ms", is_even=True),
)
