"""Results as Markdown: the ratios first, then every figure."""

from collections.abc import Iterable
from typing import Any

from bench import machine


def text(results: dict[str, Any]) -> str:
    """Returns the tables of the results."""
    workloads = results["workloads"]
    machines = [each for workload in workloads.values() for each in workload.get("machines", ())]
    lines = [machine.line(machines), ""] if machines else []
    lines += [f"Size {results['size']}; medians of {_runs(workloads)}.", ""]
    ratios = [
        (name, ratio["text"], f"{ratio['median']:.2f}", _spread(ratio), _wanted(ratio), _verdict(ratio))
        for name, workload in workloads.items()
        for ratio in workload.get("ratios", {}).values()
    ]
    lines += _table(("workload", "ratio", "median", "spread", "wanted", ""), ratios)
    figures = [
        (name, figure["text"], _number(figure["median"]), figure["unit"], _spread(figure))
        for name, workload in workloads.items()
        for figure in workload.get("figures", {}).values()
    ]
    lines += ["", *_table(("workload", "figure", "median", "unit", "spread"), figures)]
    lines += [f"\n{name} FAILED: {error}" for name, each in workloads.items() for error in each.get("errors", ())]
    return "\n".join(lines)


def _runs(workloads: dict[str, Any]) -> str:
    """Returns how many runs there were, of each workload where they differ."""
    counts = {name: len(each["points"]) for name, each in workloads.items() if "points" in each}
    if len({*counts.values()}) == 1:
        return _run_count(next(iter(counts.values())))
    return ", ".join(f"{_run_count(count)} of {name}" for name, count in counts.items()) or "no run"


def _run_count(count: int) -> str:
    return "one run" if count == 1 else f"{count} runs"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, tuple("---" for _ in head), *rows)]


def _spread(values: dict[str, Any]) -> str:
    return f"{values['spread']:.0%}"


def _wanted(ratio: dict[str, Any]) -> str:
    bounds = [f"{word} {ratio[key]:.3g}" for word, key in (("at least", "least"), ("at most", "most")) if ratio[key]]
    return ", ".join([*bounds, *([f"aim {ratio['aim']:.3g}"] if ratio["aim"] else [])])


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
