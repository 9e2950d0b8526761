"""All orders want one SKU, against orders for a hundred: how many the order processor decides."""

import dataclasses
from collections.abc import Sequence
from typing import Final

from bench import orders
from bench.results import Figure, Measured, Ratio, Workload, WrongResultError
from bench.system import BenchSystem
from bench.topics import Decisions, reading

_ROLE: Final = "order-processor"


@dataclasses.dataclass(frozen=True)
class Size:
    """How many orders wait."""

    orders: int


async def measure(system: BenchSystem, size: Size) -> Measured:
    """Measures one SKU, and then a hundred."""
    one, one_cpu = await _decided(system, size, orders.SKUS[:1])
    many, many_cpu = await _decided(system, size, orders.SKUS[1:])
    return Measured({"one_per_s": one, "many_per_s": many, "one_cpu_ms": one_cpu, "many_cpu_ms": many_cpu})


async def _decided(system: BenchSystem, size: Size, skus: Sequence[str]) -> tuple[float, float]:
    """Returns orders decided a second, and the order processor's CPU time for one, milliseconds."""
    async with system.fresh():
        await system.add_stock(skus, orders.UNITS)
        ids = await orders.preload(system.kafka_settings, size.orders, baskets=[[sku] for sku in skus])
        async with reading(system, Decisions) as decisions:
            system.start_roles(_ROLE)
            await decisions.until(lambda: len(decisions.arrived) >= len(ids))
            system.check_running()
            spent = system.spent()[_ROLE]
            await decisions.late()
            decisions.check(ids)
        async with system.sql() as connection:
            held = await connection.fetchval("select sum(held) from stock")
        if held != len(ids):
            raise WrongResultError(f"{len(ids)} units were ordered, {held} are held")
        rate: float = decisions.steady_rate()
        return rate, spent / len(ids) * 1000


WORKLOAD = Workload(
    name="hot-sku",
    about=(__doc__ or "").strip(),
    measure=measure,
    full=Size(orders=20_000),
    short=Size(orders=200),
    figures=(
        Figure("one_per_s", "decided, all for one SKU", "orders/s"),
        Figure("many_per_s", "decided, for a hundred SKUs", "orders/s"),
        Figure("one_cpu_ms", "CPU of the order processor, one SKU", "ms/order"),
        Figure("many_cpu_ms", "CPU of the order processor, a hundred SKUs", "ms/order"),
    ),
    ratios=(Ratio("hot", "one SKU over a hundred", "one_per_s", "many_per_s"),),
    bars=("one_per_s", "many_per_s"),
)
