"""Has http2_load call a server, and measures what that costs meanwhile."""

import asyncio
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterable
from signal import SIGKILL
from typing import Final

from bench.http2_load import write_messages
from bench.results import Line, WrongResultError
from bench.system import BenchSystem, python_path
from devstack.process import launcher

SERVICE: Final = "/orderflow.orders.v1.OrderService"
CALLERS: Final = 64
_PATIENCE_SECONDS: Final = 60.0


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a closed loop has come to. Times are in seconds.

    `answered` counts the warm-up too, `cpu` is what each process used for the `calls`, `generator` the load generator's
    share of one core.
    """

    calls: int
    answered: int
    seconds: float
    p50: float
    p99: float
    percentiles: Line
    generator: float
    cpu: dict[str, float]

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds

    def cpu_ms(self, name: str) -> float:
        """Returns the CPU time that a process used for a call, milliseconds."""
        return self.cpu[name] / max(self.calls, 1) * 1000


async def closed_loop(
    system: BenchSystem,
    address: str,
    method: str,
    messages: Iterable[bytes],
    *,
    seconds: float,
    warmup: float,
    again: bool = False,
    callers: int = CALLERS,
) -> Loaded:
    """Calls a method of the server there from so many callers.

    Raises:
        WrongResultError: a call failed, or the load generator did.
    """
    with tempfile.NamedTemporaryFile(prefix="bench-messages-") as file:
        write_messages(pathlib.Path(file.name), iter(messages))
        command = [sys.executable, "-m", "bench.http2_load", address, f"{SERVICE}/{method}", file.name]
        command += ["--seconds", str(seconds), "--warmup", str(warmup), "--callers", str(callers)]
        command += ["--connections", str(min(4, callers)), *(["--again"] if again else [])]
        process = await asyncio.create_subprocess_exec(
            *launcher(SIGKILL),
            *command,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": python_path()},
            limit=2**20,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with asyncio.timeout(seconds + warmup + _PATIENCE_SECONDS):
                await process.stdout.readline()
                meter = system.meter()
                await process.stdout.readline()
                cpu = meter.read()
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if process.returncode:
        raise WrongResultError(err.decode().strip())
    seen = json.loads(out)
    if seen["failed"]:
        raise WrongResultError(f"{seen['failed']} of {seen['failed'] + seen['answered']} calls of {method} failed")
    return Loaded(
        calls=seen["calls"],
        answered=seen["answered"],
        seconds=seen["seconds"],
        p50=seen["p50"],
        p99=seen["p99"],
        percentiles=[(percent, value * 1000) for percent, value in seen["percentiles"]],
        generator=seen["core_share"],
        cpu=cpu,
    )
