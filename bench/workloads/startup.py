"""`orderflow dev` from the command until all is healthy: the first start on an empty folder, and the second.

What is fetched once, Kafka itself, is there. The engines of the bench run meanwhile, idle.
"""

import asyncio
import dataclasses
import os
import pathlib
import sys
import tempfile
import time
from typing import Final

from bench.results import Figure, Measured, Ratio, Workload, WrongResultError
from bench.system import BenchSystem, python_path
from devstack.process import ManagedProcess, run_to_end

_HEALTHY: Final = "all healthy after"
_START_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.02
_MOST_SECONDS: Final = 12.0
_ORDERFLOW: Final = [sys.executable, "-m", "cli"]


@dataclasses.dataclass(frozen=True)
class Size:
    """How often it is started. What ends in seconds has no second start."""

    starts: int


async def measure(_: BenchSystem, size: Size) -> Measured:
    """Starts and stops the whole system on a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="orderflow-bench-dev-") as name:
        folder = pathlib.Path(name)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ORDERFLOW_")}
        environment |= {"PYTHONPATH": python_path(), "ORDERFLOW_STATE_DIR": str(folder / "state")}
        try:
            took = [await _started(folder / f"{number}.log", environment) for number in range(size.starts)]
        finally:
            run_to_end("orderflow dev reset", [*_ORDERFLOW, "dev", "reset"], deadline_seconds=60, env=environment)
    return Measured({"first_s": took[0], "second_s": took[-1], "most_s": _MOST_SECONDS})


async def _started(log: pathlib.Path, environment: dict[str, str]) -> float:
    """Starts the system and stops it again; returns how many seconds it took until all was healthy."""
    command = [*_ORDERFLOW, "dev", "--random-ports", "--no-samples"]
    process = ManagedProcess("orderflow dev", command, log, environment)
    began = time.monotonic()
    process.start()
    try:
        while _HEALTHY not in process.tail(1000):
            if not process.running:
                raise process.died()
            if time.monotonic() - began > _START_SECONDS:
                raise WrongResultError(f"not healthy within {_START_SECONDS:.0f} s: {process.tail()}")
            await asyncio.sleep(_LOOK_SECONDS)
        return time.monotonic() - began
    finally:
        await process.stop(_STOP_SECONDS)


WORKLOAD = Workload(
    name="startup",
    about=(__doc__ or "").strip(),
    measure=measure,
    full=Size(starts=2),
    short=Size(starts=1),
    figures=(
        Figure("first_s", "first start", "s"),
        Figure("second_s", "second start", "s"),
        Figure("most_s", "what the second start may take", "s"),
    ),
    ratios=(Ratio("second", "second start over what it may take", "second_s", "most_s", most=1, aim=8 / 12),),
    bars=("first_s", "second_s", "most_s"),
)
