"""CreateOrder, one order a call, from 64 callers that wait for their answers, on one server process."""

import dataclasses

from bench import orders
from bench.load import CALLERS, closed_loop
from bench.results import Figure, Lines, Measured, Ratio, Workload
from bench.system import BenchSystem
from bench.topics import check_stored
from devstack.ports import LOOPBACK, free_ports

_MOST_PER_SECOND = 12_000


@dataclasses.dataclass(frozen=True)
class Size:
    """How long it is loaded, seconds."""

    warmup: float
    seconds: float

    @property
    def most_calls(self) -> int:
        """More than any server answers in that time."""
        return int(_MOST_PER_SECOND * (self.warmup + self.seconds)) + CALLERS


async def measure(system: BenchSystem, size: Size) -> Measured:
    """Measures an empty handler, and then the server with all that it does."""
    [port] = free_ports(1)
    async with system.fresh():
        address = f"{LOOPBACK}:{port}"
        system.start_program("empty", ["-m", "bench.empty_server", address])
        await system.wait_listening(port)
        messages = [each.SerializeToString() for each in orders.requests(size.most_calls)]
        empty = await closed_loop(
            system, address, "CreateOrder", messages, seconds=size.seconds, warmup=size.warmup, again=True
        )
        await system.stop_all()
        system.start_roles("server")
        await system.wait_healthy(["server"])
        served = await closed_loop(
            system, system.server_address, "CreateOrder", messages, seconds=size.seconds, warmup=size.warmup
        )
        resident = system.resident()["server"]
        await check_stored(system, served.answered)
    return Measured(
        {
            "orders_per_s": served.rate,
            "p50_ms": served.p50 * 1000,
            "p99_ms": served.p99 * 1000,
            "cpu_ms": served.cpu_ms("server"),
            "kafka_cpu_ms": served.cpu_ms("kafka"),
            "generator": served.generator,
            "resident_mib": resident,
            "ceiling_per_s": empty.rate,
            "ceiling_p50_ms": empty.p50 * 1000,
            "ceiling_cpu_ms": empty.cpu_ms("empty"),
            "ceiling_generator": empty.generator,
        },
        {"CreateOrder": served.percentiles, "empty handler": empty.percentiles},
    )


WORKLOAD = Workload(
    name="unary",
    about=(__doc__ or "").strip(),
    measure=measure,
    full=Size(warmup=3, seconds=15),
    short=Size(warmup=0.3, seconds=0.7),
    figures=(
        Figure("orders_per_s", "CreateOrder", "orders/s"),
        Figure("p50_ms", "its latency, median", "ms"),
        Figure("p99_ms", "its latency, p99", "ms"),
        Figure("cpu_ms", "CPU of the server", "ms/order"),
        Figure("kafka_cpu_ms", "CPU of Kafka", "ms/order"),
        Figure("generator", "load generator", "cores"),
        Figure("resident_mib", "memory of the server", "MiB"),
        Figure("ceiling_per_s", "empty handler", "calls/s"),
        Figure("ceiling_p50_ms", "its latency, median", "ms"),
        Figure("ceiling_cpu_ms", "CPU of the empty server", "ms/call"),
        Figure("ceiling_generator", "load generator against it", "cores"),
    ),
    ratios=(
        Ratio("of_ceiling", "CreateOrder over the empty handler", "orders_per_s", "ceiling_per_s", least=0.5, aim=0.65),
        Ratio("cpu_of_ceiling", "the empty handler's CPU over the server's", "ceiling_cpu_ms", "cpu_ms"),
    ),
    lines=Lines("percent of the calls", "latency, ms", is_even=True),
)
