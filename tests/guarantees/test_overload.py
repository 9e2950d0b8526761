"""Twice the load that a server's limit allows: what is accepted keeps its latency, what is refused is told at once."""

import asyncio
import dataclasses
import pathlib
import statistics
import time
from collections.abc import AsyncIterator

import pytest

from devstack.system import WORKERS, Ports, System
from orderflow_client import OrdersClient, Overloaded
from tests.e2e import observer, orders

IN_FLIGHT = 64


@dataclasses.dataclass
class Load:
    """What a load met. Latencies are in seconds; `generator` is this process's share of one core.

    `resident` is the server's memory after it, MiB.
    """

    accepted: list[float] = dataclasses.field(default_factory=list)
    refused: list[float] = dataclasses.field(default_factory=list)
    generator: float = 0.0
    resident: int = 0

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.accepted, n=100)[98]


async def test_overload_is_refused_at_once_and_harms_no_accepted_call(healthy: System) -> None:
    """The short form, with few orders: what it leaves to the workers must not burden the tests after it."""
    _, twice = await overload(healthy, limit=25, seconds=4)
    check_refusals(twice, 25, seconds=4)


@pytest.fixture
async def ingress(tmp_path: pathlib.Path) -> AsyncIterator[System]:
    """A system whose workers are stopped: they are not what is overloaded, and would take the server's cores."""
    system = System(tmp_path, Ports.chosen())
    try:
        await system.start()
        for worker in WORKERS:
            await system.stop_role(worker)
        yield system
    finally:
        await system.stop()


@pytest.mark.heavy
@pytest.mark.timeout(600)
async def test_60_s_of_overload(ingress: System) -> None:
    async with OrdersClient(ingress.server_address) as client:
        await closed_loop(client, seconds=2)  # warms up
        limit = int(await closed_loop(client, seconds=4) / 4)
    half, twice = await overload(ingress, limit=limit, seconds=60)
    check_refusals(twice, limit, seconds=60)
    assert not half.refused
    assert twice.p99 < 2 * half.p99
    assert twice.resident < half.resident * 1.1 + 8


def check_refusals(twice: Load, limit: int, *, seconds: float) -> None:
    assert len(twice.refused) > len(twice.accepted) / 2
    assert len(twice.accepted) > 0.5 * limit * seconds
    assert statistics.median(twice.refused) < 0.050


async def overload(system: System, *, limit: int, seconds: float) -> tuple[Load, Load]:
    """Returns what half of the limit met, and then twice the limit. `limit` is in orders a second."""
    await restart(system, {"ORDERFLOW_SERVER_RATE_LIMIT": f"{limit}/second"})
    try:
        async with OrdersClient(system.server_address) as client:  # the old one backs off from the server that went
            half = await open_loop(client, rate=limit / 2, seconds=seconds / 2)
            half.resident = observer.resident_mib(system.processes["server"].pid)
            twice = await open_loop(client, rate=limit * 2, seconds=seconds)
            twice.resident = observer.resident_mib(system.processes["server"].pid)
    finally:
        await restart(system, {})
    print(
        f"limit {limit}/s; at half of it p99 {half.p99 * 1000:.0f} ms; at twice {len(twice.accepted)} accepted, "
        f"p99 {twice.p99 * 1000:.0f} ms, {len(twice.refused)} refused, "
        f"median {statistics.median(twice.refused) * 1000:.1f} ms; resident {half.resident} then {twice.resident} MiB; "
        f"the generator took {half.generator:.0%} and {twice.generator:.0%} of a core"
    )
    return half, twice


async def closed_loop(client: OrdersClient, *, seconds: float) -> float:
    """Returns how many orders a second the server takes from so many callers that each wait for their answers."""
    end = time.monotonic() + seconds
    taken = 0

    async def caller() -> None:
        nonlocal taken
        while time.monotonic() < end:
            await orders.place(client)
            taken += 1

    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return taken / seconds


async def open_loop(client: OrdersClient, *, rate: float, seconds: float) -> Load:
    """Places orders at a rate, whatever becomes of them."""
    load = Load()
    calls: set[asyncio.Task[None]] = set()

    async def call() -> None:
        began = time.perf_counter()
        try:
            await orders.place(client)
            load.accepted.append(time.perf_counter() - began)
        except Overloaded:
            load.refused.append(time.perf_counter() - began)

    began, spent = time.perf_counter(), time.process_time()
    for number in range(int(rate * seconds)):
        ahead = began + number / rate - time.perf_counter()
        if ahead > 0:
            await asyncio.sleep(ahead)
        task = asyncio.create_task(call())
        calls.add(task)
        task.add_done_callback(calls.discard)
    await asyncio.gather(*calls)
    load.generator = (time.process_time() - spent) / (time.perf_counter() - began)
    return load


async def restart(system: System, settings: dict[str, str]) -> None:
    await system.stop_role("server")
    system.start_role("server", settings)
    await system.wait_healthy(["server"])
