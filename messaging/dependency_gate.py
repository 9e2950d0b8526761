"""Holds a worker's records while something that all of them need is away, and lets one through at a time to probe."""

import asyncio
import random
from typing import Final

from domain.failures import DependencyDown
from telemetry import logs

log = logs.get()

_FIRST_WAIT: Final = 0.25


class DependencyGate:
    """Open: every record passes. Closed: after a wait one passes as the probe, and its answer opens the gate or not."""

    def __init__(self, group: str, *, probe_cap: float) -> None:
        """`probe_cap` is the longest wait between two probes, seconds, where the dependency does not name its own."""
        self._group = group
        self._probe_cap = probe_cap
        self._turn = asyncio.Lock()
        self._wait = _FIRST_WAIT
        self._probe_at = 0.0
        self.down: DependencyDown | None = None

    async def admit(self) -> bool:
        """Waits until a record may go on. True: as the probe, to be ended by `failed`, `answered` or `withdrawn`.

        Turns are first come, first served: a record whose probe failed waits behind all others, so one that fails for a
        reason of its own does not keep the gate closed.
        """
        while self.down is not None:
            await self._turn.acquire()
            if self.down is None:
                self._turn.release()
                break
            try:
                await asyncio.sleep(max(self._probe_at - asyncio.get_running_loop().time(), 0))
            except asyncio.CancelledError:
                self.withdrawn()
                raise
            return True
        return False

    def failed(self, down: DependencyDown, *, probe: bool) -> None:
        """A record found the dependency away."""
        if self.down is None:
            log.warning("worker.dependency.down", group=self._group, dependency=down.dependency, error=down.message)
            self._wait = _FIRST_WAIT
        elif not probe:
            return  # it was under way when the gate closed, and tells nothing new
        else:
            self._wait = min(self._wait * 2, self._probe_cap)
        self.down = down
        wait = self._wait * random.uniform(0.5, 1.0) if down.retry_after is None else down.retry_after  # noqa: S311
        self._probe_at = asyncio.get_running_loop().time() + wait
        if probe:
            self.withdrawn()

    def answered(self, *, probe: bool) -> None:
        """A record got an answer, whatever it was. The probe's opens the gate."""
        if probe:
            if self.down is not None:
                log.info("worker.dependency.up", group=self._group, dependency=self.down.dependency)
            self.down = None
            self.withdrawn()

    def nothing_waits(self) -> None:
        """No record is left that could probe: the next one finds out, and until then nothing is known to be away."""
        if self.down is not None:
            log.info("worker.dependency.unprobed", group=self._group, dependency=self.down.dependency)
            self.down = None

    def withdrawn(self) -> None:
        """The probe was given up, or is over: the next record may probe."""
        self._turn.release()
