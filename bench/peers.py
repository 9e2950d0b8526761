"""The rows over other implementations, from what a driver prints that measures them side by side with this one.

The driver takes bench/peer.json for how to run the project. It prints a JSON line for each implementation and workload;
the n-th line of one is compared with the n-th of another, so a run is one start of the driver.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, Final

from bench import machine
from bench.results import Figure, Meaning, Measured, Ratio, report

OURS: Final = "orderflow"
_PROJECTED: Final = "orderflow-projector"
_TUNED: Final = "go-tuned"
_ORIGINAL: Final = "go-seed-256"
_FASTSTREAM: Final = "py-faststream-batch"
_NAMES: Final = {
    OURS: "orderflow",
    _PROJECTED: "orderflow with the projector",
    _TUNED: "Go tuned",
    _ORIGINAL: "Go original, 256 at once",
    "go-seed": "Go original",
    _FASTSTREAM: "FastStream, batches",
    "py-faststream": "FastStream",
}
_BATCH: Final = "batch"

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Workload:
    """A workload of the driver: what it measures of each implementation, and what is asked of which of them.

    `fields` are names in a line, texts and units, of which the plot shows one; a ratio is of what is called
    IMPLEMENTATION.FIELD.
    """

    name: str
    about: str
    shown: str
    fields: dict[str, tuple[str, str]]
    ratios: Sequence[Ratio]


def _over(field: str, text: str, ours: str, other: str, **bounds: float) -> Ratio:
    words = f"{text}, {_NAMES[ours]} over {_NAMES[other]}"
    return Ratio(f"{ours}.{field}.{other}", words, f"{ours}.{field}", f"{other}.{field}", **bounds)


_WORKLOADS: Final = {
    "w1": _Workload(
        "peers-ingress",
        "CreateOrder, closed loop, 64 callers.",
        "orders_per_s",
        {
            "orders_per_s": ("orders placed", "orders/s"),
            "p50_ms": ("latency of CreateOrder, median", "ms"),
            "p99_ms": ("latency of CreateOrder, p99", "ms"),
            "cpu_s_per_1000_orders": ("CPU", "ms/order"),
        },
        [
            _over("orders_per_s", "CreateOrder", OURS, _TUNED),
            Ratio(
                "batch",
                f"BatchCreateOrders of 200 (make bench) over CreateOrder of {_NAMES[_TUNED]}",
                f"{_BATCH}.orders_per_s",
                f"{_TUNED}.orders_per_s",
                least=1.0,
                aim=1.5,
            ),
        ],
    ),
    "w2": _Workload(
        "peers-drain",
        "Drain of orders that wait; the rate from the first tenth to the last.",
        "steady_per_s",
        {
            "steady_per_s": ("drain", "orders/s"),
            "cpu_s_per_1000_orders": ("CPU", "ms/order"),
            "first_s": ("from the start of the processes to the first end", "s"),
            "notified_s": ("to the last notification", "s"),
        },
        [
            _over("steady_per_s", "drain", OURS, _TUNED, least=0.8, aim=1.0),
            _over("steady_per_s", "drain", OURS, _ORIGINAL, least=1.2),
            _over("steady_per_s", "drain", OURS, _FASTSTREAM, least=4.0),
            _over("cpu_s_per_1000_orders", "CPU of an order", OURS, _TUNED, most=6.0, aim=4.0),
            _over("steady_per_s", "drain", _PROJECTED, _TUNED, least=0.4, aim=0.7),
        ],
    ),
    "w3": _Workload(
        "peers-latency",
        "Created to paid at 100 orders/s, open loop, gateway 50 ms.",
        "p50_ms",
        {
            "p50_ms": ("created to paid, median", "ms"),
            "p99_ms": ("created to paid, p99", "ms"),
            "cpu_s_per_1000_orders": ("CPU", "ms/order"),
        },
        [
            _over("p50_ms", "created to paid, median", OURS, _TUNED, most=1.2, aim=0.85),
            Ratio("tail", "created to paid, p99 over p50", f"{OURS}.p99_ms", f"{OURS}.p50_ms", most=2.0, aim=1.5),
        ],
    ),
}


def compared(files: Iterable[pathlib.Path], batch: pathlib.Path | None) -> dict[str, Any]:
    """Returns results, as the bench's own are, of what the driver printed. `batch` are results with that workload.

    Raises:
        ValueError: a file is not what it should be, or implementations have different numbers of runs.
    """
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines() if line.strip()]
    if strange := {each["workload"] for each in lines} - _WORKLOADS.keys():
        raise ValueError(f"no such workload: {', '.join(sorted(strange))}")
    batches = [] if batch is None else _batches(batch)
    facts = {**machine.facts(), "load": None}  # that of now says nothing of then
    results: dict[str, Any] = {"size": "of the driver", "workloads": {}}
    for word, workload in _WORKLOADS.items():
        told = [each for each in lines if each["workload"] == word]
        part: dict[str, Any] = {"machines": [facts]}
        if runs := _runs(told):
            if word == "w1":
                for values, rate in zip(runs, batches, strict=False):
                    values[f"{_BATCH}.orders_per_s"] = rate
            part |= report(_meaning(workload, runs), [Measured(values) for values in runs])
        if errors := [_words(each) for each in told if each.get("error") or each["errors"]]:
            part["errors"] = errors
        if told:
            results["workloads"][workload.name] = part
    return results


def _runs(lines: Sequence[Line]) -> list[dict[str, float]]:
    """Returns the figures of each run, by IMPLEMENTATION.FIELD."""
    found: dict[str, list[Line]] = {}
    for each in lines:
        if "error" not in each:
            found.setdefault(each["impl"], []).append(each)
    counts = {name: len(each) for name, each in found.items()}
    if len({*counts.values()}) > 1:
        raise ValueError(f"not as many runs of each: {counts}")
    return [
        {
            f"{name}.{field}": value
            for name, each in found.items()
            for field, value in each[number].items()
            if isinstance(value, int | float)
        }
        for number in range(max(counts.values(), default=0))
    ]


def _meaning(workload: _Workload, runs: Sequence[dict[str, float]]) -> Meaning:
    """Returns what the figures mean that every run has."""
    known = set.intersection(*(set(each) for each in runs))
    figures = [
        Figure(f"{name}.{field}", f"{text}, {words}", unit)
        for field, (text, unit) in workload.fields.items()
        for name, words in _NAMES.items()
        if f"{name}.{field}" in known
    ]
    if f"{_BATCH}.orders_per_s" in known:
        figures.append(Figure(f"{_BATCH}.orders_per_s", "orders placed, orderflow by BatchCreateOrders", "orders/s"))
    return Meaning(
        about=workload.about,
        figures=tuple(figures),
        ratios=tuple(each for each in workload.ratios if {each.over, each.under} <= known),
        bars=tuple(each.name for each in figures if each.name.endswith(f".{workload.shown}")),
    )


def _words(line: Line) -> str:
    told = line["error"] if "error" in line else f"{line['errors']} errors"
    return f"{line['impl']}: {told}"


def _batches(file: pathlib.Path) -> list[float]:
    try:
        values: list[float] = json.loads(file.read_text())["workloads"]["batch"]["figures"]["orders_per_s"]["values"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} has no results of the workload `batch`") from error
    return values
