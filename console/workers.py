"""Each worker as its processes' metrics show it. What none of them tells is None, never a number."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from console import metric_names
from console.scraping import Process

_PROJECTOR: Final = "projector"
_BREAKER_STATES: Final = ("open", "half_open", "closed")
"""Worst first."""


@dataclasses.dataclass(frozen=True)
class Worker:
    """All processes of one name.

    Attributes:
        up: How many answer.
        total: How many there should be.
        down_since: When the first of those that do not answer was found so, seconds since 1970.
        lag: Records behind the end.
        oldest_age: Age of the oldest unfinished record, seconds.
        in_flight: Records fetched and not committed.
        paused: Partitions not fetched from, by reason.
        breakers: Circuit breakers with the worst state that a process reports.
        behind: How far the read model was behind with its last event, seconds.
        idle: Seconds since something was last committed.
    """

    name: str
    up: int
    total: int
    down_since: float | None = None
    lag: int | None = None
    oldest_age: float | None = None
    in_flight: int | None = None
    paused: Mapping[str, int] | None = None
    breakers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    behind: float | None = None
    idle: float | None = None

    @property
    def is_down(self) -> bool:
        """Whether none of its processes answers. Before the first look nobody knows."""
        return not self.up and self.down_since is not None

    @property
    def age(self) -> float | None:
        """How old what it has still to do is, seconds: the oldest record, or of the projector the last event."""
        return max((each for each in (self.oldest_age, self.behind) if each is not None), default=None)

    @property
    def held_up_by(self) -> str:
        """Why partitions of it are paused, as the metric words it; empty if none is for a reason to worry about."""
        stopped = {why: count for why, count in (self.paused or {}).items() if count and why != metric_names.BUSY}
        return max(stopped, key=lambda why: stopped[why], default="")

    @property
    def open_breakers(self) -> list[str]:
        """The breakers that let no call through, or only a probe."""
        return sorted(name for name, state in self.breakers.items() if state != "closed")


def workers(processes: Sequence[Process], now: float) -> list[Worker]:
    """Returns the processes summed up by name, in the order of the addresses. `now` is in seconds since 1970."""
    named: dict[str, list[Process]] = defaultdict(list)
    for process in processes:
        named[process.where.name].append(process)
    return [_worker(name, members, now) for name, members in named.items()]


def _worker(name: str, members: Sequence[Process], now: float) -> Worker:
    lags = _values(members, metric_names.LAG)
    ages = _values(members, metric_names.OLDEST_AGE)
    in_flight = _values(members, metric_names.IN_FLIGHT)
    # Every process has this one, without a label: in all others it is 0 and means nothing.
    behind = _values(members, metric_names.PROJECTION_LAG) if name == _PROJECTOR else []
    progress = _values(members, metric_names.LAST_PROGRESS)
    return Worker(
        name,
        up=sum(process.is_up for process in members),
        total=len(members),
        down_since=min((p.since for p in members if not p.is_up and p.since is not None), default=None),
        lag=int(sum(lags)) if lags else None,
        oldest_age=max(ages, default=None),
        in_flight=int(sum(in_flight)) if in_flight else None,
        paused=_paused(members),
        breakers=_breakers(members),
        behind=max(behind, default=None),
        idle=max(now - max(progress), 0.0) if progress else None,
    )


def _values(members: Iterable[Process], metric: str) -> list[float]:
    return [value for process in members for (name, _), value in process.samples.items() if name == metric]


def _labelled(members: Iterable[Process], metric: str) -> list[tuple[dict[str, str], float]]:
    return [(dict(labels), value) for p in members for (name, labels), value in p.samples.items() if name == metric]


def _paused(members: Sequence[Process]) -> Mapping[str, int] | None:
    found = _labelled(members, metric_names.PAUSED)
    if not found:
        return None
    paused: dict[str, int] = defaultdict(int)
    for labels, value in found:
        paused[labels.get("reason", "")] += int(value)
    return dict(paused)


def _breakers(members: Sequence[Process]) -> Mapping[str, str]:
    states: dict[str, set[str]] = defaultdict(set)
    for labels, value in _labelled(members, metric_names.BREAKER):
        if value == 1:
            states[labels.get("breaker", "")].add(labels.get("state", ""))
    return {name: next((each for each in _BREAKER_STATES if each in found), "") for name, found in states.items()}
