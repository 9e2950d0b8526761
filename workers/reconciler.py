"""Reconciles again and again, records what it finds and shows it as a metric. It mends nothing: people do."""

import asyncio
import dataclasses
import datetime
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from domain.failures import Failure
from domain.reconciliation import Case, Kind
from telemetry import logs, metrics, process
from workers import reconciliation
from workers.reconciliation import Reconciliation

log = logs.get()

_STEP: Final = datetime.timedelta(hours=1)
"""After so much of a window the progress is stored."""


class Cases(reconciliation.Cases, Protocol):
    """What was found, and how far. Every method raises DependencyDown."""

    async def save(self, cases: Sequence[Case], *, now: datetime.datetime) -> None:
        """Stores cases; one without differences is resolved."""
        ...

    async def counts(self) -> dict[Kind, int]:
        """Returns how many differences there are of each kind."""
        ...

    async def reconciled_until(self) -> datetime.datetime | None:
        """Returns up to when everything has been compared."""
        ...

    async def advance(self, until: datetime.datetime) -> None:
        """Stores that everything up to then has been compared."""
        ...


@dataclasses.dataclass(frozen=True)
class Span:
    """Which time is compared.

    Attributes:
        settle: what is younger is on its way, and is not judged.
        overlap: how far each reconciliation reaches back before the end of the last: something may be listed late.
        look_back: how far the very first one does.
    """

    settle: datetime.timedelta
    overlap: datetime.timedelta
    look_back: datetime.timedelta


class Reconciler:
    """Looks every `interval` seconds. Any number at once do the same work more than once, and no harm."""

    def __init__(
        self,
        *,
        compared: Reconciliation,
        cases: Cases,
        span: Span,
        interval: float,
        now: Callable[[], datetime.datetime],
    ) -> None:
        """Collaborators are given; nothing is read yet."""
        self._compared = compared
        self._cases = cases
        self._span = span
        self._interval = interval
        self._now = now
        self._is_ready = False
        for kind in Kind:
            metrics.RECONCILIATION_DIFFERENCES.labels(kind.value).set(0)

    @property
    def is_ready(self) -> bool:
        """Whether it has come on, and has not failed since."""
        return self._is_ready

    async def run(self, stop: asyncio.Event) -> None:
        """Reconciles until `stop` is set. What is left in the middle begins anew with the next one."""
        while not stop.is_set():
            reconciling = asyncio.create_task(self._try())
            stopped = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait((reconciling, stopped), return_when=asyncio.FIRST_COMPLETED)
                if not reconciling.done():
                    return
                reconciling.result()
            finally:
                reconciling.cancel()
                stopped.cancel()
                await asyncio.gather(reconciling, stopped, return_exceptions=True)
            await process.pause(stop, self._interval)

    async def _try(self) -> None:
        try:
            await self.reconcile()
        except Failure as failure:
            self._is_ready = False
            log.warning("reconciler.skipped", error=str(failure))

    async def reconcile(self) -> int:
        """Compares what has happened since the last time, and open cases anew. Returns how many differences there are.

        Raises:
            DependencyDown: PostgreSQL or the gateway is away. What was compared until then is recorded.
            GatewayRefused: the gateway refuses the question itself.
        """
        await self._show()
        until = self._now() - self._span.settle
        done = await self._cases.reconciled_until()
        begin = done - self._span.overlap if done is not None else until - self._span.look_back
        while begin < until:
            end = min(begin + _STEP, until)
            async for cases in self._compared.window(begin, end, until=until):
                await self._record(cases)
            await self._cases.advance(end)
            self._is_ready = True
            begin = end
        async for cases in self._compared.open_cases(until=until):
            await self._record(cases)
        found = await self._show()
        metrics.RECONCILIATION_LAST_SUCCESS.set(self._now().timestamp())
        self._is_ready = True
        log.info("reconciler.reconciled", until=until.isoformat(), differences=found)
        return found

    async def _record(self, cases: Sequence[Case]) -> None:
        """Stores what is new, and tells of it."""
        metrics.RECONCILED.inc(len(cases))
        known = await self._cases.of([case.order_id for case in cases])
        changed = [case for case in cases if _is_new(case, known.get(case.order_id))]
        if not changed:
            return
        await self._cases.save(changed, now=self._now())
        for case in changed:
            before = known[case.order_id].differences if case.order_id in known else ()
            for difference in case.differences:
                if difference not in before:
                    log.error("reconciler.difference_found", **dataclasses.asdict(difference))
            if not case.differences:
                log.info("reconciler.order_agrees", order_id=case.order_id)

    async def _show(self) -> int:
        counts = await self._cases.counts()
        for kind, count in counts.items():
            metrics.RECONCILIATION_DIFFERENCES.labels(kind.value).set(count)
        return sum(counts.values())


def _is_new(case: Case, known: Case | None) -> bool:
    if known is None:
        return bool(case.differences)
    return (case.differences, case.movements) != (known.differences, known.movements)
