"""Results as Markdown: the ratios first, then every figure."""

from collections.abc import Iterable
from typing import Any

from bench import machine


def text(results: dict[str, Any]) -> str:
    """Returns the tables of the results."""
    lines = [machine.line(results["machine"]), f"Size {results['size']}, median of {results['runs']}.", ""]
    ratios = [
        (name, ratio["text"], f"{ratio['median']:.2f}", _spread(ratio), _wanted(ratio), _verdict(ratio))
        for name, workload in results["workloads"].items()
        for ratio in workload.get("ratios", {}).values()
    ]
    lines += _table(("workload", "ratio", "median", "spread", "wanted", ""), ratios)
    figures = [
        (name, figure["text"], _number(figure["median"]), figure["unit"], _spread(figure))
        for name, workload in results["workloads"].items()
        for figure in workload.get("figures", {}).values()
    ]
    lines += ["", *_table(("workload", "figure", "median", "unit", "spread"), figures)]
    lines += [f"\n{name} FAILED: {each['error']}" for name, each in results["workloads"].items() if "error" in each]
    return "\n".join(lines)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, tuple("---" for _ in head), *rows)]


def _spread(values: dict[str, Any]) -> str:
    return f"{values['spread']:.0%}"


def _wanted(ratio: dict[str, Any]) -> str:
    bounds = [f"{word} {ratio[key]:g}" for word, key in (("at least", "least"), ("at most", "most")) if ratio[key]]
    return ", ".join([*bounds, *([f"aim {ratio['aim']:g}"] if ratio["aim"] else [])])


def _verdict(ratio: dict[str, Any]) -> str:
    if ratio["least"] is None and ratio["most"] is None:
        return ""
    median, aim = ratio["median"], ratio["aim"]
    if ratio["least"] is not None:
        is_met, is_aim = median >= ratio["least"], aim is not None and median >= aim
    else:
        is_met, is_aim = median <= ratio["most"], aim is not None and median <= aim
    return "aim" if is_aim else "met" if is_met else "MISSED"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"
