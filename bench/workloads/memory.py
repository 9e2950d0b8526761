"""Resident memory of every process after 100,000 orders, and after 1,000,000.

All orders go through the server in batches, with nobody to process them yet, and then through the workers. Where growth
is measured with as many orders its run is that of this workload, too.
"""

import dataclasses
from typing import Final

import grpc.aio

from bench import orders
from bench.results import Figure, Line, Lines, Measured, Ratio, Workload
from bench.system import BenchSystem
from bench.workloads.batch import BatchCaller, batches
from bench.workloads.drain import PROJECTOR, WORKERS, Drained, drained

ROLES: Final = (*WORKERS, PROJECTOR)
_POINTS: Final = 50
_SLICE: Final = 20_000


@dataclasses.dataclass(frozen=True)
class Size:
    """After how many orders memory is looked at."""

    early: int
    late: int


class Growth:
    """Memory of each process by how many orders there were, MiB."""

    def __init__(self, system: BenchSystem, every: int) -> None:
        self._system = system
        self._every = every
        self._next = every
        self.lines: dict[str, Line] = {}

    def look(self, count: int) -> None:
        """Looks if it is time to."""
        if count >= self._next:
            self._next = count - count % self._every + self._every
            for name, mib in self._system.resident().items():
                self.lines.setdefault(name, []).append((float(count), mib))

    def at(self, name: str, count: int) -> float:
        """Returns what a process had once there were so many, at the first look after it."""
        return next((mib for seen, mib in self.lines[name] if seen >= count), self.lines[name][-1][1])


async def measure(system: BenchSystem, size: Size) -> Measured:
    """Measures the server, and then the workers."""
    _, measured = await filled(system, size)
    return measured


async def filled(system: BenchSystem, size: Size) -> tuple[Drained, Measured]:
    """Has orders placed and drained. Returns how they went, and the memory of the processes meanwhile."""
    async with system.fresh():
        await system.add_stock(orders.SKUS, orders.UNITS)
        system.start_roles("server")
        await system.wait_healthy(["server"])
        growth = Growth(system, max(size.late // _POINTS, 1))
        ids: set[str] = set()
        async with grpc.aio.insecure_channel(system.server_address) as channel:
            for first in range(0, size.late, _SLICE):
                caller = BatchCaller(channel)
                await caller.call_all(batches(min(_SLICE, size.late - first), first=first))
                ids |= caller.tokens().keys()
                growth.look(len(ids))
        await system.stop_all()
        workers = Growth(system, max(size.late // _POINTS, 1))
        went = await drained(system, ids, *ROLES, watch=workers.look)
    growths = {"server": growth, **dict.fromkeys(ROLES, workers)}
    figures = {
        f"{name}_{when}_mib": each.at(name, count)
        for name, each in growths.items()
        for when, count in (("early", size.early), ("late", size.late))
    }
    return went, Measured(figures, {**growth.lines, **workers.lines})


WORKLOAD = Workload(
    name="memory",
    about=(__doc__ or "").strip(),
    measure=measure,
    full=Size(early=100_000, late=1_000_000),
    short=Size(early=100, late=400),
    figures=tuple(
        Figure(f"{name}_{when}_mib", f"memory of {name} after {count} orders", "MiB")
        for name in ("server", *ROLES)
        for when, count in (("early", "100,000"), ("late", "1,000,000"))
    ),
    ratios=tuple(
        Ratio(name, f"memory of {name}, 1,000,000 over 100,000", f"{name}_late_mib", f"{name}_early_mib", most=1.1)
        for name in ("server", *ROLES)
    ),
    lines=Lines("orders", "resident memory, MiB", is_even=True),
)
