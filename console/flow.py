"""The funnel: how many orders got how far, from the processes' counters of events.

Counters begin at zero with their process. What one gains between two readings is added up; what it had before the first
one counts too if the process is younger than what is shown.
"""

import dataclasses
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Final

from console import metric_names
from console.scraping import Process, Sample

WINDOW_SECONDS: Final = 15 * 60.0
_RATE_SECONDS: Final = 20.0
_LINE_POINTS: Final = 60
_LINE_SECONDS: Final = 5.0
_COUNTED: Final = (metric_names.EVENTS, metric_names.CALLS)
_CREATE: Final = ("CreateOrder", "BatchCreateOrders")


@dataclasses.dataclass(frozen=True)
class Funnel:
    """Events emitted since `since`, seconds since 1970.

    Attributes:
        counts: By type, as `ce_type` spells it.
        rates: The same per second, over the last seconds.
        line: Orders created per second, oldest first.
        calls: Calls that place orders, per second.
        missing: Names of processes that do not answer: what they emitted meanwhile is not in it.
    """

    since: float
    counts: Mapping[str, int]
    rates: Mapping[str, float]
    line: Sequence[float]
    calls: float
    missing: Sequence[str]

    def count(self, *types: str) -> int:
        """Returns how many events of these types there were."""
        return sum(self.counts.get(each, 0) for each in types)

    def rate(self, *types: str) -> float:
        """Returns the same per second, over the last seconds."""
        return sum(self.rates.get(each, 0.0) for each in types)


class Flow:
    """Adds up what the counters gain."""

    def __init__(self) -> None:
        """Knows nothing yet."""
        self._last: dict[tuple[str, Sample], float] = {}
        self._seen: set[str] = set()
        self._totals: dict[str, float] = defaultdict(float)
        self._window: deque[tuple[float, dict[str, float]]] = deque()
        self._missing: list[str] = []

    def observe(self, processes: Sequence[Process], now: float) -> None:
        """Takes a reading. `now` is in seconds since 1970."""
        up = [process for process in processes if process.is_up]
        if up and not self._seen:
            began = [_started(process) for process in up]
            if min(began) > now - WINDOW_SECONDS:  # then all that ever happened here can be told
                self._window.append((min(min(began), now), {}))
        since = self._window[0][0] if self._window else now
        for process in up:
            self._add(process, since)
        self._missing = [process.where.name for process in processes if not process.is_up]
        if self._seen:
            self._window.append((now, dict(self._totals)))
        while len(self._window) > 1 and self._window[1][0] <= now - WINDOW_SECONDS:
            self._window.popleft()

    def _add(self, process: Process, since: float) -> None:
        address = process.where.address
        is_known = address in self._seen or _started(process) >= since
        self._seen.add(address)
        for sample, value in process.samples.items():
            name, labels = sample
            if name not in _COUNTED:
                continue
            # A series that a known process did not have before began at zero; so did all of one that was restarted.
            before = self._last.get((address, sample), 0.0 if is_known else value)
            self._last[address, sample] = value
            gained = value - before if value >= before else value
            if name == metric_names.EVENTS:
                self._totals[dict(labels).get("type", "")] += gained
            elif dict(labels).get("rpc_method", "").rpartition("/")[2] in _CREATE:
                self._totals[metric_names.CALLS] += gained

    def funnel(self) -> Funnel | None:
        """Returns what is known; None before any process answered."""
        if not self._window:
            return None
        (since, first), (now, last) = self._window[0], self._window[-1]
        gained = {each: last[each] - first.get(each, 0.0) for each in last}
        rates = self._rates(now)
        return Funnel(
            since,
            {each: round(value) for each, value in gained.items() if each != metric_names.CALLS},
            rates,
            self._line(),
            rates.get(metric_names.CALLS, 0.0),
            self._missing,
        )

    def _rates(self, now: float) -> dict[str, float]:
        newest, last = self._window[-1]
        oldest, first = next((each for each in self._window if each[0] >= now - _RATE_SECONDS), self._window[-1])
        if newest <= oldest:
            return {}
        return {each: (last[each] - first.get(each, 0.0)) / (newest - oldest) for each in last}

    def _line(self) -> list[float]:
        points: list[float] = []
        begin = self._window[0]
        for reading in self._window:
            if reading[0] - begin[0] >= _LINE_SECONDS:
                gained = reading[1].get("ORDER_CREATED", 0.0) - begin[1].get("ORDER_CREATED", 0.0)
                points.append(gained / (reading[0] - begin[0]))
                begin = reading
        return points[-_LINE_POINTS:]


def _started(process: Process) -> float:
    """Returns when the process began, seconds since 1970; one that does not tell is as old as can be."""
    return process.samples.get((metric_names.STARTED, ()), float("-inf"))
