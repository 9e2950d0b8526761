"""What an order costs to drain when more of them wait, with more partitions, and with more processes of each worker.

With how many of them wait the projector works, too, and what processes use to start is left out of what an order costs.
What has fewest orders is measured before and after the rest, several times, and counts by its median: no machine is as
fast for an hour. What has most orders is measured for the workload `memory` as well: it takes long enough once.
"""

import dataclasses
import statistics

from bench import orders
from bench.results import Figure, Lines, Measured, Ratio, Workload
from bench.system import BenchSystem
from bench.workloads.drain import WORKERS, Drained, drained
from bench.workloads.memory import ROLES, filled
from bench.workloads.memory import Size as MemorySize

Case = tuple[int, int, int]
"""Orders waiting, partitions, processes of each worker."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How many orders wait, rising; with how many the rest is measured; partitions, rising; processes, rising.

    `turns` is how often the fewest orders are measured before the others, and after them.
    """

    orders: tuple[int, ...]
    turns: int
    middle: int
    partitions: tuple[int, ...]
    processes: tuple[int, ...]


async def measure(system: BenchSystem, size: Size) -> Measured:
    """Measures each in turn; what two of the lines have in common once."""
    many, alone = size.partitions[-1], size.processes[0]
    spread = [(size.middle, count, alone) for count in size.partitions]
    shared = [(size.middle, many, count) for count in size.processes]
    fewest = [size.orders[0]] * size.turns
    by_orders: list[Drained] = []
    memory: dict[int, Measured] = {}
    for count in (*fewest, *size.orders[1:], *fewest):
        went, memory[count] = await filled(system, MemorySize(early=max(count // 10, 1), late=count))
        by_orders.append(went)
    found: dict[Case, Drained] = {}
    for case in (*spread, *shared):
        if case not in found:
            found[case] = await _drain(system, *case)
    start = await _start_cpu_ms(system)

    def cost(count: int) -> tuple[float, float]:
        """CPU and time of an order, milliseconds."""
        alike = [went for went in by_orders if went.count == count]
        cpu_ms = statistics.median(went.workers_cpu_ms for went in alike) - start / count
        return cpu_ms, statistics.median(1000 / went.steady for went in alike)

    costs = {count: cost(count) for count in size.orders}
    (fewest_cpu_ms, fewest_ms), (most_cpu_ms, most_ms) = costs[size.orders[0]], costs[size.orders[-1]]
    return Measured(
        {
            "start_cpu_ms": start,
            "fewest_cpu_ms": fewest_cpu_ms,
            "most_cpu_ms": most_cpu_ms,
            "fewest_ms": fewest_ms,
            "most_ms": most_ms,
            "few_partitions_per_s": found[spread[0]].steady,
            "many_partitions_per_s": found[spread[-1]].steady,
            "one_process_per_s": found[shared[0]].steady,
            "two_processes_per_s": found[shared[len(shared) // 2]].steady,
            "four_processes_per_s": found[shared[-1]].steady,
        },
        {
            "by orders waiting, with projector": [(float(count), 1000 / ms) for count, (_, ms) in costs.items()],
            "by partitions": [(float(case[1]), found[case].steady) for case in spread],
            "by processes of each worker": [(float(case[2]), found[case].steady) for case in shared],
        },
        {"memory": memory[size.orders[-1]]},
    )


async def _drain(system: BenchSystem, count: int, partitions: int, processes: int) -> Drained:
    async with system.fresh(partitions=partitions):
        await system.add_stock(orders.SKUS, orders.UNITS)
        ids = await orders.preload(system.kafka_settings, count)
        return await drained(system, ids, *WORKERS, processes=processes)


async def _start_cpu_ms(system: BenchSystem) -> float:
    """Returns what one process of each worker uses until it is healthy, all together."""
    async with system.fresh():
        system.start_roles(*ROLES)
        await system.wait_healthy(ROLES)
        return sum(system.spent().values()) * 1000


WORKLOAD = Workload(
    name="growth",
    about=(__doc__ or "").strip(),
    measure=measure,
    full=Size(orders=(10_000, 100_000, 1_000_000), turns=3, middle=50_000, partitions=(3, 12), processes=(1, 2, 4)),
    # As many as use more than the start of the processes varies by: it is taken off.
    short=Size(orders=(1_000,), turns=1, middle=60, partitions=(12,), processes=(2,)),
    figures=(
        Figure("start_cpu_ms", "CPU of the workers' start", "ms"),
        Figure("fewest_cpu_ms", "CPU of the workers besides, 10,000 orders waiting", "ms/order"),
        Figure("most_cpu_ms", "CPU of the workers besides, 1,000,000 orders waiting", "ms/order"),
        Figure("fewest_ms", "time, 10,000 orders waiting", "ms/order"),
        Figure("most_ms", "time, 1,000,000 orders waiting", "ms/order"),
        Figure("few_partitions_per_s", "drain with 3 partitions", "orders/s"),
        Figure("many_partitions_per_s", "drain with 12 partitions", "orders/s"),
        Figure("one_process_per_s", "12 partitions, one process of each worker", "orders/s"),
        Figure("two_processes_per_s", "12 partitions, two processes of each worker", "orders/s"),
        Figure("four_processes_per_s", "12 partitions, four processes of each worker", "orders/s"),
    ),
    ratios=(
        Ratio("cpu", "CPU of an order, 1,000,000 waiting over 10,000", "most_cpu_ms", "fewest_cpu_ms", most=1.1),
        Ratio("time", "time of an order, 1,000,000 waiting over 10,000", "most_ms", "fewest_ms", most=1.1),
        Ratio("partitions", "drain with 12 partitions over 3", "many_partitions_per_s", "few_partitions_per_s"),
        Ratio("processes", "drain with four processes over one", "four_processes_per_s", "one_process_per_s"),
    ),
    lines=Lines("orders waiting, partitions or processes", "orders/s"),
)
