"""Results as pictures: one SVG for each workload, bars with the spread of the runs or a line for each run."""

import html
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Final

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 44, 48
_COLOURS: Final = ("#1f6fb4", "#d95f0e", "#2b8a3e", "#7b3fa0", "#a61e4d", "#5c5f66")
_LOG_FROM: Final = 30
"""How many times the least the most is from where an axis is logarithmic."""
_BAR_HEIGHT: Final = 30
_LEGEND_HEIGHT: Final = 17
_MARKED: Final = 10
"""Of a line with so few points each is shown."""

Scale = Callable[[float], float]


def draw(results: dict[str, Any], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes `bench-WORKLOAD.svg` for each workload that has something to show, and returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, workload in results["workloads"].items():
        if workload.get("lines"):
            picture = _lines(name, workload)
        elif workload.get("bars"):
            picture = _bars(name, workload)
        else:
            continue
        path = folder / f"bench-{name}.svg"
        path.write_text(picture)
        written.append(path)
    return written


def _lines(name: str, workload: dict[str, Any]) -> str:
    runs = workload["points"]
    points = [point for run in runs for line in run.values() for point in line]
    top = _TOP + _LEGEND_HEIGHT * len(runs[0])
    is_even = workload["lines"]["is_even"]
    x, x_ticks = _scale([each[0] for each in points], _LEFT, _WIDTH - _RIGHT, zero=is_even, is_even=is_even)
    y, y_ticks = _scale([each[1] for each in points], _HEIGHT - _BOTTOM, top, zero=True, is_even=is_even)
    parts = [
        _text(_WIDTH / 2, _HEIGHT - 8, workload["lines"]["x"], anchor="middle"),
        _text(8, top - 10, workload["lines"]["y"]),
    ]
    for tick in x_ticks:
        parts += [
            _rule(x(tick), top, x(tick), _HEIGHT - _BOTTOM),
            _text(x(tick), _HEIGHT - 28, _short(tick), "middle"),
        ]
    for tick in y_ticks:
        parts += [_rule(_LEFT, y(tick), _WIDTH - _RIGHT, y(tick)), _text(_LEFT - 6, y(tick) + 4, _short(tick), "end")]
    for number, line in enumerate(runs[0]):
        colour = _COLOURS[number % len(_COLOURS)]
        for run in runs:
            places = [(x(each[0]), y(each[1])) for each in run.get(line, ())]
            path = " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
            if len(places) <= _MARKED:
                parts += [
                    f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{colour}"/>' for across, down in places
                ]
        parts.append(_text(_LEFT + 70, 34 + _LEGEND_HEIGHT * number, line, colour=colour))
    return _picture(name, _HEIGHT, parts)


def _bars(name: str, workload: dict[str, Any]) -> str:
    figures = [workload["figures"][each] for each in workload["bars"]]
    left = 330
    x, _ = _scale([0, *(max(each["values"]) for each in figures)], left, _WIDTH - 90, zero=True)
    parts = []
    for number, figure in enumerate(figures):
        top = _TOP + _BAR_HEIGHT * number
        middle, colour = top + _BAR_HEIGHT / 2, _COLOURS[number % len(_COLOURS)]
        width, low, high = x(figure["median"]) - left, x(min(figure["values"])), x(max(figure["values"]))
        parts += [
            _text(left - 8, middle + 4, f"{figure['text']}, {figure['unit']}", "end"),
            f'<rect x="{left}" y="{top + 6}" width="{width:.1f}" height="{_BAR_HEIGHT - 12}" fill="{colour}"/>',
            f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="#000" stroke-width="1.6"/>',
            _text(high + 8, middle + 4, _short(figure["median"])),
        ]
    return _picture(name, _TOP + _BAR_HEIGHT * len(figures) + 12, parts)


def _scale(
    values: Sequence[float], start: float, end: float, *, zero: bool, is_even: bool = False
) -> tuple[Scale, list[float]]:
    """Returns where a value stands between two places, and the values to mark.

    Far apart ones stand by their powers, unless `is_even`.
    """
    least, most = min(values), max(values)
    if not is_even and least > 0 and most / least >= _LOG_FROM:
        low, high = math.log10(least), math.log10(most)
        powers = range(math.ceil(low - 0.01), math.floor(high + 0.01) + 1)
        return lambda value: start + (math.log10(value) - low) / (high - low) * (end - start), [10.0**n for n in powers]
    least = 0.0 if zero else least
    width = (most - least) or 1.0
    step = _step(width)
    ticks = [step * number for number in range(math.ceil(least / step), math.floor(most / step + 0.001) + 1)]
    return lambda value: start + (value - least) / width * (end - start), ticks


def _step(width: float) -> float:
    """Returns a round number of which four to eight make the width."""
    power = 10.0 ** math.floor(math.log10(width / 4))
    return max(power * factor for factor in (1, 2, 5) if power * factor <= width / 4)


def _short(value: float) -> str:
    for limit, sign in ((1_000_000, "M"), (10_000, "k")):
        if abs(value) >= limit:
            return f"{value / (1000 if sign == 'k' else limit):.3g} {sign}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", *, colour: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{html.escape(text)}</text>'


def _picture(name: str, height: int, parts: list[str]) -> str:
    size = f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    background = f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>'
    title = f'<text x="8" y="16" font-size="14" font-weight="bold">{html.escape(name)}</text>'
    return "\n".join([head, background, title, *parts, "</svg>"]) + "\n"
