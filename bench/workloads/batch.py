"""BatchCreateOrders of 200, from eight callers that wait for their answers, on one server process."""

import asyncio
import dataclasses
import time
from collections.abc import Iterator

import grpc.aio

from bench import orders
from bench.ceilings import produced_per_second
from bench.load import SERVICE
from bench.results import Figure, Measured, Ratio, Workload, WrongResultError, percentile
from bench.system import KAFKA, BenchSystem
from bench.topics import check_stored
from orderflow.orders.v1.order_service_pb2 import BatchCreateOrdersRequest, BatchCreateOrdersResponse

BATCH = 200
_CALLERS = 8


@dataclasses.dataclass(frozen=True)
class Size:
    """How many orders are measured, and how many before."""

    warmup: int
    orders: int


def batches(count: int, *, first: int = 0) -> list[bytes]:
    """Returns serialized requests for so many orders, in batches."""
    return [
        BatchCreateOrdersRequest(
            requests=orders.requests(min(BATCH, first + count - begin), first=begin)
        ).SerializeToString()
        for begin in range(first, first + count, BATCH)
    ]


class BatchCaller:
    """Calls BatchCreateOrders with what is serialized already, so that the server is what takes time."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{SERVICE}/BatchCreateOrders")
        self.took: list[float] = []
        self.answers: list[bytes] = []

    async def call(self, request: bytes) -> bytes:
        """Calls, and returns the serialized answer."""
        began = time.perf_counter()
        answer: bytes = await self._call(request, timeout=30)
        self.took.append(time.perf_counter() - began)
        self.answers.append(answer)
        return answer

    async def call_all(self, requests: list[bytes]) -> float:
        """Calls with all of them, some at once, and returns how many seconds that took."""
        left: Iterator[bytes] = iter(requests)
        began = time.perf_counter()

        async def caller() -> None:
            for request in left:
                await self.call(request)

        await asyncio.gather(*(caller() for _ in range(_CALLERS)))
        return time.perf_counter() - began

    def tokens(self) -> dict[str, str]:
        """Returns the consistency token of each order that was accepted, by its id.

        Raises:
            WrongResultError: one was not.
        """
        tokens: dict[str, str] = {}
        for answer in self.answers:
            for result in BatchCreateOrdersResponse.FromString(answer).results:
                if not result.HasField("created"):
                    raise WrongResultError(f"an order was refused: {result.error.message}")
                tokens[result.created.order.order_id] = result.created.consistency_token
        return tokens


async def measure(system: BenchSystem, size: Size) -> Measured:
    """Measures aiokafka alone with the records of as many orders, and then the server."""
    async with system.fresh():
        produced = await produced_per_second(system, size.orders, at_once=BATCH * _CALLERS)
    async with system.fresh():
        system.start_roles("server")
        await system.wait_healthy(["server"])
        async with grpc.aio.insecure_channel(system.server_address) as channel:
            caller = BatchCaller(channel)
            await caller.call_all(batches(size.warmup))
            requests = batches(size.orders, first=size.warmup)
            caller.took.clear()
            meter, spent = system.meter(), time.process_time()
            seconds = await caller.call_all(requests)
            cpu, spent = meter.read(), time.process_time() - spent
        accepted = len(caller.tokens())
        if accepted != size.warmup + size.orders:
            raise WrongResultError(f"{size.warmup + size.orders} orders were placed, {accepted} accepted")
        await check_stored(system, accepted)
    took = sorted(caller.took)
    return Measured(
        {
            "orders_per_s": size.orders / seconds,
            "p50_ms": percentile(took, 0.5) * 1000,
            "p99_ms": percentile(took, 0.99) * 1000,
            "cpu_us": cpu["server"] / size.orders * 1e6,
            "kafka_cpu_us": cpu[KAFKA] / size.orders * 1e6,
            "generator": spent / seconds,
            "ceiling_per_s": produced,
        }
    )


WORKLOAD = Workload(
    name="batch",
    about=(__doc__ or "").strip(),
    measure=measure,
    full=Size(warmup=20_000, orders=200_000),
    short=Size(warmup=400, orders=4_000),
    figures=(
        Figure("orders_per_s", "BatchCreateOrders", "orders/s"),
        Figure("p50_ms", "latency of a batch, median", "ms"),
        Figure("p99_ms", "latency of a batch, p99", "ms"),
        Figure("cpu_us", "CPU of the server", "us/order"),
        Figure("kafka_cpu_us", "CPU of Kafka", "us/order"),
        Figure("generator", "load generator", "cores"),
        Figure("ceiling_per_s", "aiokafka alone, the same records", "records/s"),
    ),
    ratios=(Ratio("of_ceiling", "BatchCreateOrders over aiokafka alone", "orders_per_s", "ceiling_per_s"),),
    bars=("orders_per_s", "ceiling_per_s"),
)
