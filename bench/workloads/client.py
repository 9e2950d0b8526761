"""What the client library costs its caller: CreateOrder by OrdersClient against the bare stub, on the empty server.

Both build the request from the same values. One call after the other, the two in turns, in the bench's own process.
"""

import dataclasses
import statistics
import time
from typing import Any, Final

import grpc
import grpc.aio

from bench.results import Figure, Measured, Ratio, Workload
from bench.system import BenchSystem
from devstack.ports import LOOPBACK, free_ports
from orderflow.orders.v1.order_service_pb2 import CreateOrderRequest
from orderflow.orders.v1.order_service_pb2_grpc import OrderServiceStub
from orderflow_client import NewOrder, OrdersClient, SyncOrdersClient, item

_ROUNDS: Final = 10
_TIMEOUT: Final = 10.0


@dataclasses.dataclass(frozen=True)
class Size:
    """Calls of each kind, in several rounds."""

    calls: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a call, microseconds: how long it took, and the CPU time of the process that called."""

    took: float
    cpu: float


def _order() -> NewOrder:
    return {
        "request_id": "bench",
        "user_id": "user-1",
        "email": "user-1@example.com",
        "payment_method": "pm_card_visa",
        "items": [item("BENCH-ALL", 1, 500, "EUR"), item("BENCH-1", 2, 1999, "EUR")],
    }


async def measure(system: BenchSystem, size: Size) -> Measured:
    """Measures the asynchronous client, and then the synchronous one."""
    [port] = free_ports(1)
    address, calls = f"{LOOPBACK}:{port}", max(size.calls // _ROUNDS, 1)
    async with system.fresh():
        system.start_program("empty", ["-m", "bench.empty_server", address])
        await system.wait_listening(port)
        stub, client = await _asynchronous(address, calls)
        sync_stub, sync_client = _synchronous(address, calls)
    return Measured(
        {
            "stub_us": stub.took,
            "client_us": client.took,
            "stub_cpu_us": stub.cpu,
            "client_cpu_us": client.cpu,
            "sync_stub_us": sync_stub.took,
            "sync_client_us": sync_client.took,
            "sync_stub_cpu_us": sync_stub.cpu,
            "sync_client_cpu_us": sync_client.cpu,
        }
    )


async def _asynchronous(address: str, calls: int) -> tuple[Cost, Cost]:
    costs: tuple[list[Cost], list[Cost]] = ([], [])
    async with grpc.aio.insecure_channel(address) as channel, OrdersClient(address) as client:
        stub: Any = OrderServiceStub(channel)

        async def bare() -> None:
            await stub.CreateOrder(CreateOrderRequest(**_order()), timeout=_TIMEOUT)

        async def by_client() -> None:
            await client.create_order(**_order())

        for _ in range(_ROUNDS + 1):
            for call, found in zip((bare, by_client), costs, strict=True):
                clock = _Clock()
                for _ in range(calls):
                    await call()
                found.append(clock.cost(calls))
    return _median(costs[0]), _median(costs[1])


def _synchronous(address: str, calls: int) -> tuple[Cost, Cost]:
    """Blocks: nothing else is to be done meanwhile."""
    costs: tuple[list[Cost], list[Cost]] = ([], [])
    with grpc.insecure_channel(address) as channel, SyncOrdersClient(address) as client:
        stub = OrderServiceStub(channel)

        def bare() -> None:
            stub.CreateOrder(CreateOrderRequest(**_order()), timeout=_TIMEOUT)

        def by_client() -> None:
            client.create_order(**_order())

        for _ in range(_ROUNDS + 1):
            for call, found in zip((bare, by_client), costs, strict=True):
                clock = _Clock()
                for _ in range(calls):
                    call()
                found.append(clock.cost(calls))
    return _median(costs[0]), _median(costs[1])


class _Clock:
    def __init__(self) -> None:
        self._began, self._spent = time.perf_counter(), time.process_time()

    def cost(self, calls: int) -> Cost:
        """Returns the cost of so many calls since."""
        took, spent = time.perf_counter() - self._began, time.process_time() - self._spent
        return Cost(took / calls * 1e6, spent / calls * 1e6)


def _median(costs: list[Cost]) -> Cost:
    """Returns the median without the first round, which warms up."""
    return Cost(statistics.median(each.took for each in costs[1:]), statistics.median(each.cpu for each in costs[1:]))


WORKLOAD = Workload(
    name="client",
    about=(__doc__ or "").strip(),
    measure=measure,
    full=Size(calls=8_000),
    short=Size(calls=200),
    figures=(
        Figure("stub_us", "a call by the stub", "us"),
        Figure("client_us", "a call by OrdersClient", "us"),
        Figure("stub_cpu_us", "CPU of the caller by the stub", "us"),
        Figure("client_cpu_us", "CPU of the caller by OrdersClient", "us"),
        Figure("sync_stub_us", "a call by the synchronous stub", "us"),
        Figure("sync_client_us", "a call by SyncOrdersClient", "us"),
        Figure("sync_stub_cpu_us", "CPU of the caller by the synchronous stub", "us"),
        Figure("sync_client_cpu_us", "CPU of the caller by SyncOrdersClient", "us"),
    ),
    ratios=(
        Ratio("time", "a call by OrdersClient over the stub", "client_us", "stub_us"),
        Ratio("cpu", "CPU by OrdersClient over the stub", "client_cpu_us", "stub_cpu_us"),
        Ratio("sync_time", "a call by SyncOrdersClient over the stub", "sync_client_us", "sync_stub_us"),
        Ratio("sync_cpu", "CPU by SyncOrdersClient over the stub", "sync_client_cpu_us", "sync_stub_cpu_us"),
    ),
    bars=("stub_us", "client_us", "sync_stub_us", "sync_client_us"),
)
