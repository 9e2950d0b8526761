"""Orders that wait on the topic, drained by order processor, payment processor and e-mails; then by a projector, too.

The gateway takes 50 ms and declines one order in fifty. Every order has to end as it says, once, and be told of.
"""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Collection
from typing import Final

from bench import ceilings, orders
from bench.results import Figure, Line, Lines, Measured, Ratio, Workload, WrongResultError
from bench.system import KAFKA, POSTGRES, BenchSystem
from bench.topics import IDLE_SECONDS, Ends, Notifications, reading
from orderflow.orders.v1.order_pb2 import OrderStatus

WORKERS: Final = ("order-processor", "payment-processor", "notification-email")
PROJECTOR: Final = "projector"
_LOOK_SECONDS: Final = 0.2


@dataclasses.dataclass(frozen=True)
class Size:
    """How many orders wait."""

    orders: int


@dataclasses.dataclass(frozen=True)
class Drained:
    """How orders went. Times are seconds from the start of the processes.

    `steady` is the rate from the first tenth to the last, orders a second; `first` and `last` are when the first and
    the last had ended, `told` when all were told of, `projected` when all ends were readable, 0 without a projector;
    `cpu` is what each process used until then, seconds.
    """

    count: int
    steady: float
    first: float
    last: float
    told: float
    projected: float
    cpu: dict[str, float]
    line: Line

    def cpu_ms(self, *roles: str) -> float:
        """Returns what the processes of these roles used for an order, milliseconds."""
        used = sum(seconds for name, seconds in self.cpu.items() if name.partition(".")[0] in roles)
        return used / self.count * 1000

    @property
    def workers_cpu_ms(self) -> float:
        """What all workers used for an order, milliseconds."""
        return sum(seconds for name, seconds in self.cpu.items() if name not in (KAFKA, POSTGRES)) / self.count * 1000


async def drained(
    system: BenchSystem,
    ids: Collection[str],
    *roles: str,
    processes: int = 1,
    watch: Callable[[int], None] = lambda _: None,
) -> Drained:
    """Starts workers on a system where these orders wait, and returns how it went once all are told of.

    `watch` is told every now and then how many have ended.

    Raises:
        WrongResultError: an order was lost or ended wrongly, or something happened twice.
    """
    engines = system.meter()
    async with reading(system, Ends) as ends:

        def are_through() -> bool:
            watch(len(ends.arrived))
            return len(ends.arrived) >= len(ids)

        began = time.monotonic()
        system.start_roles(*roles, processes=processes)
        await ends.until(are_through)
        system.check_running()
        ends.check(ids)
        async with reading(system, Notifications) as told:
            await told.until(lambda: told.records >= orders.EVENTS_TOLD * len(ids))
            told_after, projected_after = time.monotonic() - began, 0.0
            if PROJECTOR in roles:
                await _until_projected(system, ids)
                projected_after = time.monotonic() - began
            cpu = {**engines.read(), **system.spent()}
            await told.late()
            told.check(ids, each=orders.EVENTS_TOLD)
        ends.check(ids)
    await _check_booked(system, ids)
    times = sorted(each - began for each in ends.arrived.values())
    return Drained(len(ids), ends.steady_rate(), times[0], times[-1], told_after, projected_after, cpu, _line(times))


def _line(times: list[float]) -> Line:
    """Returns how many were through after how many seconds, in some hundred points."""
    step = max(len(times) // 100, 1)
    return [(times[number], float(number + 1)) for number in range(0, len(times), step)]


async def _until_projected(system: BenchSystem, ids: Collection[str]) -> None:
    ended = [OrderStatus.ORDER_STATUS_PAID, OrderStatus.ORDER_STATUS_PAYMENT_FAILED]
    seen, since = -1, time.monotonic()
    async with system.sql() as connection:
        while seen < len(ids):
            found = await connection.fetchval("select count(*) from order_views where status = any($1)", ended)
            if found != seen:
                seen, since = found, time.monotonic()
            elif time.monotonic() - since > IDLE_SECONDS:
                raise WrongResultError(f"{seen} of {len(ids)} orders became readable")
            await asyncio.sleep(_LOOK_SECONDS)


async def _check_booked(system: BenchSystem, ids: Collection[str]) -> None:
    """Checks that what was charged, held and sold is what the orders say."""
    paid = sum(not orders.is_declined(each) for each in ids)
    async with system.sql() as connection:
        captured = await connection.fetchval("select count(*) from payment_entries where kind = 'capture'")
        held = await connection.fetchval("select sum(held) from stock")
        sold = await connection.fetchval("select sold from stock where sku = $1", orders.SKUS[0])
    if (captured, held, sold) != (paid, 0, paid):
        raise WrongResultError(f"{paid} orders are paid, {captured} charges booked, {held} units held, {sold} sold")


async def measure(system: BenchSystem, size: Size) -> Measured:
    """Measures what bounds it, then the drain, then the drain with a projector."""
    async with system.fresh():
        moved = await ceilings.moved_per_second(system, size.orders)
        inserted = await ceilings.inserted_per_second(system, size.orders)
    async with system.fresh():
        await system.add_stock(orders.SKUS, orders.UNITS)
        bare = await drained(system, await orders.preload(system.kafka_settings, size.orders), *WORKERS)
    async with system.fresh():
        await system.add_stock(orders.SKUS, orders.UNITS)
        ids = await orders.preload(system.kafka_settings, size.orders)
        projected = await drained(system, ids, *WORKERS, PROJECTOR)
    return Measured(
        {
            "orders_per_s": bare.steady,
            "workers_cpu_ms": bare.workers_cpu_ms,
            **{f"{name}_cpu_ms": bare.cpu_ms(name) for name in (*WORKERS, KAFKA, POSTGRES)},
            "first_s": bare.first,
            "last_s": bare.last,
            "told_s": bare.told,
            "projected_orders_per_s": projected.steady,
            "projected_workers_cpu_ms": projected.workers_cpu_ms,
            "projector_cpu_ms": projected.cpu_ms(PROJECTOR),
            "projected_s": projected.projected,
            "moved_per_s": moved,
            "inserted_per_s": inserted,
        },
        {"without projector": bare.line, "with projector": projected.line},
    )


WORKLOAD = Workload(
    name="drain",
    about=(__doc__ or "").strip(),
    measure=measure,
    full=Size(orders=200_000),
    short=Size(orders=100),
    figures=(
        Figure("orders_per_s", "drain, from the first tenth to the last", "orders/s"),
        Figure("workers_cpu_ms", "CPU of all workers", "ms/order"),
        *(Figure(f"{name}_cpu_ms", f"CPU of {name}", "ms/order") for name in (*WORKERS, KAFKA, POSTGRES)),
        Figure("first_s", "from the start of the processes to the first end", "s"),
        Figure("last_s", "to the last end", "s"),
        Figure("told_s", "to the last notification", "s"),
        Figure("projected_orders_per_s", "drain with the projector", "orders/s"),
        Figure("projected_workers_cpu_ms", "CPU of all workers then", "ms/order"),
        Figure("projector_cpu_ms", "CPU of the projector", "ms/order"),
        Figure("projected_s", "to the last order readable", "s"),
        Figure("moved_per_s", "aiokafka alone: read and written in transactions", "records/s"),
        Figure("inserted_per_s", "PostgreSQL alone: the rows of an order, 200 orders at once", "orders/s"),
    ),
    ratios=(
        Ratio("of_kafka", "drain over aiokafka alone", "orders_per_s", "moved_per_s"),
        Ratio("of_postgres", "drain over PostgreSQL alone", "orders_per_s", "inserted_per_s"),
        Ratio("projected", "drain with the projector over without", "projected_orders_per_s", "orders_per_s"),
    ),
    lines=Lines("seconds", "orders that have ended", is_even=True),
)
