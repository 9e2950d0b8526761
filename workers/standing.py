"""Shows how things stand as metrics: what is open, overdue, unknown or waits for somebody.

A timer in every order processor. All of them read the same, so of these figures the greatest counts and never the sum.
"""

import asyncio
import datetime
from collections.abc import Callable
from typing import Protocol

from domain.failures import DependencyDown
from storage.standing import Standing
from telemetry import logs, metrics

log = logs.get()


class Records(Protocol):
    """What it is read from."""

    async def read(self, now: datetime.datetime) -> Standing:
        """Returns how things stand.

        Raises:
            DependencyDown: they cannot be read.
        """
        ...


class StandingFigures:
    """Looks every `interval` seconds. While it cannot, what it saw last stays, and so does the time of that."""

    def __init__(self, *, records: Records, interval: float, now: Callable[[], datetime.datetime]) -> None:
        """Collaborators are given; nothing is read yet, and nothing shown."""
        self._records = records
        self._interval = interval
        self._now = now
        self._is_stale = False
        self._shown: set[tuple[str, str]] = set()

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval)

    async def look(self) -> None:
        """Reads and shows. An outage is told once, when it begins, and once when it is over."""
        now = self._now()
        try:
            standing = await self._records.read(now)
        except DependencyDown as down:
            if not self._is_stale:
                log.warning("standing.unreadable", error=str(down))
            self._is_stale = True
            return
        if self._is_stale:
            log.info("standing.readable")
        self._is_stale = False
        self._show(standing, now)

    def _show(self, standing: Standing, now: datetime.datetime) -> None:
        for state, count in standing.open.items():
            metrics.ORDERS_OPEN.labels(state).set(count)
        for state, count in standing.overdue.items():
            metrics.ORDERS_OVERDUE.labels(state).set(count)
        for (group, reason), count in standing.unresolved.items():
            metrics.UNRESOLVED.labels(group, reason).set(count)
        for gone in self._shown - standing.unresolved.keys():
            metrics.UNRESOLVED.remove(*gone)  # and not 0 for ever: there would be ever more of them
        self._shown = set(standing.unresolved)
        metrics.UNKNOWN_AGE.set(_age(standing.unknown_since, now))
        metrics.UNRESOLVED_AGE.set(_age(standing.unresolved_since, now))
        metrics.STANDING_LAST_SUCCESS.set(now.timestamp())


def _age(since: datetime.datetime | None, now: datetime.datetime) -> float:
    return max((now - since).total_seconds(), 0.0) if since is not None else 0.0
