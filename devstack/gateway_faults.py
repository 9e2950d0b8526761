"""What goes wrong at the gateway, and for whom: the set of faults that a PUT of /faults replaces."""

import math
import random
from dataclasses import dataclass, fields
from typing import Any

_OUTAGES = ("refuse", "hang")


@dataclass(frozen=True, kw_only=True)
class Outage:
    """A window in which nobody is served. It begins and ends by itself, counted from the PUT that brought it.

    Attributes:
        kind: "refuse": nothing listens, and open connections are reset; "hang": calls are taken and never answered.
        start_seconds: when it begins.
        duration_seconds: how long it lasts.
    """

    kind: str
    start_seconds: float = 0.0
    duration_seconds: float

    @property
    def end_seconds(self) -> float:
        """When it is over."""
        return self.start_seconds + self.duration_seconds

    @classmethod
    def parse(cls, values: object) -> "Outage":
        """A window from JSON. Raises ValueError."""
        wanted = {"kind", "start_seconds", "duration_seconds"}
        if not isinstance(values, dict) or not {"kind", "duration_seconds"} <= values.keys() <= wanted:
            raise ValueError("an outage has a kind, a duration_seconds and perhaps a start_seconds")
        if values["kind"] not in _OUTAGES:
            raise ValueError(f"the kind of an outage is one of {', '.join(_OUTAGES)}")
        for name in values.keys() - {"kind"}:
            _require_number(name, values[name])
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong. All off unless told.

    Rates are shares from 0 to 1 of the charges and refunds. Where several strike one call, the first below wins.

    Attributes:
        refuse: outage until the next PUT: nothing listens, and open connections are reset.
        hang: outage until the next PUT: every call is taken, none is answered and nothing executes.
        outages: the same in windows that end by themselves.
        latency_seconds: wait before anything is decided, on every call, on top of --latency-ms.
        slow_rate: share of the calls that take `slow_seconds` longer.
        slow_seconds: see slow_rate.
        hang_rate: take the call, never answer, execute nothing.
        reset_before_rate: reset the connection, execute nothing.
        transient_error_rate: answer 503, execute nothing; the next attempt may go well.
        error_rate: answer 500 instead of executing, and ever again under that key while keys last.
        decline_rate: decline the charges of so many keys, whatever their payment method. Not of refunds.
        time_out_rate: execute, then never answer.
        reset_after_rate: execute, then reset the connection.
        drop_reply_rate: execute, then close the connection without an answer.
    """

    refuse: bool = False
    hang: bool = False
    outages: tuple[Outage, ...] = ()
    latency_seconds: float = 0.0
    slow_rate: float = 0.0
    slow_seconds: float = 0.0
    hang_rate: float = 0.0
    reset_before_rate: float = 0.0
    transient_error_rate: float = 0.0
    error_rate: float = 0.0
    decline_rate: float = 0.0
    time_out_rate: float = 0.0
    reset_after_rate: float = 0.0
    drop_reply_rate: float = 0.0

    @classmethod
    def parse(cls, values: object) -> "Faults":
        """Faults from JSON; what is missing is off. Raises ValueError."""
        known = {field.name: field.default for field in fields(cls)}
        if not isinstance(values, dict) or values.keys() - known.keys():
            raise ValueError(f"expected an object with some of {', '.join(known)}")
        given: dict[str, Any] = dict(values)
        for name, value in values.items():
            if name == "outages":
                if not isinstance(value, list):
                    raise ValueError("outages is not a list")
                given[name] = tuple(Outage.parse(each) for each in value)
            elif isinstance(known[name], bool):
                if not isinstance(value, bool):
                    raise ValueError(f"{name} is not a bool")
            else:
                _require_number(name, value, most=1.0 if name.endswith("_rate") else math.inf)
        return cls(**given)

    def outage(self, kind: str, after: float) -> bool:
        """Whether there is an outage of the kind, so many seconds after the PUT."""
        return (self.refuse if kind == "refuse" else self.hang) or any(
            each.kind == kind and each.start_seconds <= after < each.end_seconds for each in self.outages
        )

    def next_change(self, after: float) -> float | None:
        """How long from then until a window begins or ends. None: never."""
        times = [time - after for each in self.outages for time in (each.start_seconds, each.end_seconds)]
        return min((time for time in times if time > 0), default=None)


@dataclass(frozen=True)
class Call:
    """One attempt at a charge or a refund, and which faults strike it.

    That depends on the seed, the key and the attempt's number under the key alone, not on the order in which concurrent
    calls arrive nor on other faults: a run with the same calls meets the same ones, and a rate that is raised strikes
    all that it struck before.
    """

    seed: int
    key: str
    attempt: int

    def strikes(self, fault: str, rate: float) -> bool:
        """Whether the fault strikes this attempt."""
        return _dice(f"{self.seed}/{fault}/{self.key}/{self.attempt}") < rate

    def strikes_key(self, fault: str, rate: float) -> bool:
        """Whether the fault strikes every attempt under the key."""
        return _dice(f"{self.seed}/{fault}/{self.key}") < rate


def _dice(text: str) -> float:
    return random.Random(text).random()  # noqa: S311 - chooses faults, guards nothing


def _require_number(name: str, value: object, *, most: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is not a number")
    if not (0 <= value <= most and math.isfinite(value)):
        raise ValueError(f"{name} is out of range")
