"""What a monitoring plugin answers, in the way of the Nagios Plugin Development Guidelines.

A state that is the exit code, a line, and the figures that it was judged by with their thresholds.
"""

import dataclasses
import enum
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final


class Form(enum.StrEnum):
    """Shapes of an answer."""

    TEXT = "text"
    JSON = "json"
    NAGIOS = "nagios"


class State(enum.IntEnum):
    """How something stands. The value is the exit code."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


_SEVERITY: Final = (State.OK, State.UNKNOWN, State.WARNING, State.CRITICAL)


def worst(states: Iterable[State]) -> State:
    """Returns the worst: critical, else warning, else unknown, else ok; UNKNOWN of none.

    It is the order of the Monitoring Plugins' own (max_state_alt): what is known to be wrong goes before what could not
    be looked at.
    """
    return max(states, key=_SEVERITY.index, default=State.UNKNOWN)


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Past which figure something is a warning, and past which it is critical.

    Past is above or, for what should not run out, `below`. A figure that stands on its threshold is not past it.
    """

    warn: float | None = None
    crit: float | None = None
    below: bool = False

    def judge(self, value: float) -> State:
        """Returns the state of a figure. One that is no number is UNKNOWN."""
        if math.isnan(value):
            return State.UNKNOWN
        for limit, state in ((self.crit, State.CRITICAL), (self.warn, State.WARNING)):
            if limit is not None and (value < limit if self.below else value > limit):
                return state
        return State.OK

    @property
    def is_in_order(self) -> bool:
        """Whether a warning comes before it is critical."""
        if self.warn is None or self.crit is None:
            return True
        return self.warn >= self.crit if self.below else self.warn <= self.crit


@dataclasses.dataclass(frozen=True)
class Measure:
    """A figure as performance data. `unit` is `s` for seconds, or nothing for a count."""

    label: str
    value: float
    unit: str = ""
    threshold: Threshold | None = None

    @property
    def state(self) -> State:
        """How the figure stands; OK without a threshold."""
        return self.threshold.judge(self.value) if self.threshold is not None else State.OK

    def __str__(self) -> str:
        value = "U" if math.isnan(self.value) else _number(self.value) + self.unit
        if self.threshold is None:
            return f"{self.label}={value}"
        colon = ":" if self.threshold.below else ""
        limits = ("" if each is None else _number(each) + colon for each in (self.threshold.warn, self.threshold.crit))
        return ";".join([f"{self.label}={value}", *limits])


@dataclasses.dataclass(frozen=True)
class Result:
    """What one check found.

    Attributes:
        name: The check's.
        state: How it stands.
        summary: In a line.
        details: A line for each part, the worst ones first where there are many.
        measures: The figures.
        parts: The results that it was made of.
    """

    name: str
    state: State
    summary: str
    details: Sequence[str] = ()
    measures: Sequence[Measure] = ()
    parts: "Sequence[Result]" = ()


def judged(name: str, measures: Sequence[Measure], summary: str, details: Sequence[str] = ()) -> Result:
    """Returns a result whose state is the worst of its figures."""
    return Result(name, worst(measure.state for measure in measures), summary, details, measures)


def together(results: Sequence[Result]) -> Result:
    """Returns one result of several, which stands as the worst of them. Its figures have the checks' names in front."""
    wrong = [result for result in results if result.state is not State.OK]
    fine = ", ".join(result.name for result in results if result.state is State.OK)
    told = [f"{result.name} {result.state.name}: {result.summary}" for result in _by_severity(wrong)]
    summary = "; ".join([*told, *([f"{fine} ok"] if fine else [])])
    return Result(
        "orderflow",
        worst(result.state for result in results),
        summary,
        [f"{result.name} {result.state.name}: {result.summary}" for result in results],
        [
            dataclasses.replace(measure, label=f"{result.name}_{measure.label}")
            for result in results
            for measure in result.measures
        ],
        results,
    )


def shown(result: Result, form: Form) -> str:
    """Returns the answer. For Nagios it is one line, with the figures behind a bar."""
    if form is Form.JSON:
        return json.dumps(_as_dict(result), indent=2)
    line = f"{result.name.upper()} {result.state.name}"
    if form is Form.NAGIOS or not result.parts:
        line += f" {result.summary}"
    if form is Form.NAGIOS:
        figures = " ".join(map(str, result.measures))
        return _one_line(line) + (f" | {figures}" if figures else "")
    return "\n".join([line, *(f"  {detail}" for detail in result.details)])


def span(seconds: float) -> str:
    """Returns a time for people: 0.4 s, 12 s, 3 min, 5 h, 13 days."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def seconds(text: str) -> float:
    """Returns how many seconds a duration has: 500ms, 10s, 1.5h, 14d.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text)
    if match is None:
        raise ValueError("must be a number and ms, s, m, h or d, for example 10s")
    return float(match[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}[match[2]]


def _by_severity(results: Sequence[Result]) -> list[Result]:
    return sorted(results, key=lambda result: _SEVERITY.index(result.state), reverse=True)


def _as_dict(result: Result) -> dict[str, Any]:
    if result.parts:
        told = {"check": "all", "state": result.state.name, "code": int(result.state)}
        return {**told, "checks": [_as_dict(part) for part in result.parts]}
    return {
        "check": result.name,
        "state": result.state.name,
        "code": int(result.state),
        "summary": result.summary,
        "details": list(result.details),
        "measures": [
            {
                "label": measure.label,
                "value": None if math.isnan(measure.value) else measure.value,
                "unit": measure.unit,
                "warn": measure.threshold.warn if measure.threshold else None,
                "crit": measure.threshold.crit if measure.threshold else None,
            }
            for measure in result.measures
        ],
    }


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def _number(value: float) -> str:
    return f"{round(value, 3):.15g}"
