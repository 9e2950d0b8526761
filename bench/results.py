"""What workloads are and what comes of them: figures of each run, their medians and spreads, and ratios."""

import dataclasses
import statistics
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from bench.system import BenchSystem

Size = TypeVar("Size")
Line = list[tuple[float, float]]


class WrongResultError(Exception):
    """What was measured did not do its work: something was lost, doubled or ended otherwise than it had to."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """Something that a workload measures once in a run."""

    name: str
    text: str
    unit: str


@dataclasses.dataclass(frozen=True)
class Ratio:
    """One figure over another, of the same run."""

    name: str
    text: str
    over: str
    under: str
    least: float | None = None
    """What it has to reach, and `aim` what it should; None where nothing is asked."""
    most: float | None = None
    aim: float | None = None


@dataclasses.dataclass(frozen=True)
class Lines:
    """What a plot of lines shows. Values that are far apart stand by their powers, unless `is_even`."""

    x: str
    y: str
    is_even: bool = False


@dataclasses.dataclass
class Measured:
    """What one run has come to. `lines` are points (x, y) by name, for the plot.

    `also` is what the run has measured for other workloads, by their names.
    """

    figures: dict[str, float]
    lines: dict[str, Line] = dataclasses.field(default_factory=dict)
    also: dict[str, "Measured"] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meaning:
    """What figures mean, and what is shown of them: `bars` in a plot that has no `lines`."""

    about: str
    figures: tuple[Figure, ...]
    ratios: tuple[Ratio, ...] = ()
    bars: tuple[str, ...] = ()
    lines: Lines | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload(Meaning, Generic[Size]):
    """A workload: what it is, and how it runs at a size."""

    name: str
    measure: Callable[["BenchSystem", Size], Awaitable[Measured]]
    full: Size
    short: Size


def report(meaning: Meaning, runs: Sequence[Measured]) -> dict[str, Any]:
    """Returns a workload's part of the results."""
    return {
        "about": meaning.about,
        "figures": {
            each.name: {"text": each.text, "unit": each.unit, **_summary([run.figures[each.name] for run in runs])}
            for each in meaning.figures
        },
        "ratios": {
            each.name: {
                "text": each.text,
                "least": each.least,
                "most": each.most,
                "aim": each.aim,
                **_summary([_over(run.figures[each.over], run.figures[each.under]) for run in runs]),
            }
            for each in meaning.ratios
        },
        "bars": meaning.bars,
        "lines": None if meaning.lines is None else dataclasses.asdict(meaning.lines),
        "points": [run.lines for run in runs],
    }


def measured_before(meaning: Meaning, part: dict[str, Any]) -> list[Measured]:
    """Returns the runs that a part of results is of; none where it has other figures than the workload has now."""
    figures = part.get("figures", {})
    if figures.keys() != {each.name for each in meaning.figures}:
        return []
    return [
        Measured({name: figure["values"][number] for name, figure in figures.items()}, lines)
        for number, lines in enumerate(part["points"])
    ]


def _over(over: float, under: float) -> float:
    return over / under if under else 0.0


def _summary(values: list[float]) -> dict[str, Any]:
    median = statistics.median(values)
    spread = (max(values) - min(values)) / median if median else 0.0
    return {"values": [float(f"{value:.5g}") for value in values], "median": float(f"{median:.5g}"), "spread": spread}


def percentile(ordered: Sequence[float], share: float) -> float:
    """Returns the value below which a share of the values lies. They are in order, and there is one."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def percentiles(values: Sequence[float]) -> Line:
    """Returns points (percent, value) that show a distribution, its end in more detail."""
    ordered = sorted(values)
    shares = (*(number / 100 for number in range(1, 100)), 0.995, 0.999)
    return [(100 * share, percentile(ordered, share)) for share in shares] if ordered else []
