"""Waits until the system has caught up, and says what it still waits for."""

import asyncio
import time
from typing import Final

from chaos import probes
from chaos.oracle import rules
from chaos.system import ChaosSystem

_LOOK_SECONDS: Final = 1.0


async def settled(system: ChaosSystem, observer: probes.Observer, *, within: float) -> tuple[bool, float, str]:
    """Returns whether everything caught up within a time, after how many seconds, and what it waited for last."""
    started = time.monotonic()
    waits_for, before = "a first look", probes.Offsets()
    while time.monotonic() - started < within:
        try:
            async with asyncio.timeout(10):
                ends = await observer.ends("read_uncommitted")
                waits_for = await _missing(system, observer, ends)
        except probes.AWAY as error:
            waits_for = repr(error)
        else:
            if not waits_for and ends == before:
                return True, time.monotonic() - started, ""
            before = ends
        await asyncio.sleep(_LOOK_SECONDS)
    return False, time.monotonic() - started, waits_for or "the topics still grow"


async def _missing(system: ChaosSystem, observer: probes.Observer, ends: probes.Offsets) -> str:
    for role in (*rules.READS, "projector"):
        if lag := await observer.lag(role, ends):
            return f"{role}: {lag} records"
    if unhealthy := await system.unhealthy():
        return f"not healthy: {', '.join(unhealthy)}"
    return ""
