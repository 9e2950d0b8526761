"""The command line of the bench: run workloads, and make the table and the plots of what came of them."""

import argparse
import asyncio
import json
import logging
import pathlib
import sys
import tempfile
import time
from typing import Any, Final

import grpc
import uvloop
from aiokafka.errors import KafkaError

from bench import machine, peers, plot, table
from bench.kept import Kept
from bench.results import WrongResultError
from bench.system import BenchSystem
from bench.workloads import ALL
from devstack.errors import DevstackError

_FAILURES: Final = (WrongResultError, DevstackError, KafkaError, grpc.RpcError, TimeoutError)


async def run(names: list[str], *, size: str, runs: int, kept: Kept) -> None:
    """Runs workloads until there are so many runs of each. One that fails has an error, and the others go on."""
    with tempfile.TemporaryDirectory(prefix="orderflow-bench-") as folder:
        system = BenchSystem(pathlib.Path(folder), lambda _: None)
        async with system.engines():
            for name in names:
                try:
                    for number in range(len(kept.runs(name)) + 1, runs + 1):
                        began = time.monotonic()
                        _note(f"{name}, run {number} of {runs}")
                        before = machine.facts()
                        measured = await ALL[name].measure(system, getattr(ALL[name], size))
                        kept.add(name, measured, before)
                        for other, part in measured.also.items():
                            if len(kept.runs(other)) < runs:
                                kept.add(other, part, before)
                        _note(f"{name}, run {number} of {runs}: {time.monotonic() - began:.0f} s")
                except _FAILURES as error:
                    _note(f"{name} FAILED: {error!r}\n{system.last_words()}")
                    kept.fail(name, repr(error))


def _note(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)  # noqa: T201


def main(arguments: list[str] | None = None) -> int:
    """Runs from the command line and returns the exit code: 1 if a workload failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["table"]:
        return _table(arguments[1:])
    if arguments[:1] == ["plot"]:
        return _plot(arguments[1:])
    if arguments[:1] == ["peers"]:
        return _peers(arguments[1:])
    return _run(arguments)


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").strip())
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(ALL)}; all if none is given")
    parser.add_argument("--runs", type=int, default=3, help="of each workload (3), those in the output counted")
    parser.add_argument("--size", choices=("full", "short"), default="full", help="short only shows that it works")
    parser.add_argument(
        "--output", type=pathlib.Path, help="JSON file for the results; one that is there is gone on with"
    )
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.workloads if name not in ALL]:
        parser.error(f"no such workload: {', '.join(unknown)}")
    try:
        kept = Kept(options.size, options.output)
    except ValueError as error:
        parser.error(str(error))
    names = options.workloads or list(ALL)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(names, size=options.size, runs=options.runs, kept=kept))
    return _tell(kept.results)


def _tell(results: dict[str, Any]) -> int:
    """Prints the tables. Returns the exit code: 1 if anything failed."""
    print(table.text(results))  # noqa: T201
    return int(any("errors" in each for each in results["workloads"].values()))


def _table(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench table", description="Print results as Markdown.")
    parser.add_argument("results", type=pathlib.Path)
    options = parser.parse_args(arguments)
    print(table.text(json.loads(options.results.read_text())))  # noqa: T201
    return 0


def _plot(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench plot", description="Draw results, an SVG for each workload.")
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    options = parser.parse_args(arguments)
    for path in plot.draw(json.loads(options.results.read_text()), options.folder):
        print(path)  # noqa: T201
    return 0


def _peers(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench peers",
        description="Compare the runs of a driver that measures implementations side by side, started anew each time.",
    )
    parser.add_argument("lines", type=pathlib.Path, nargs="+", metavar="JSONL", help="what the driver printed")
    parser.add_argument("--batch", type=pathlib.Path, help="results of this bench with the workload `batch`")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file for the comparison, for `table` and `plot`")
    options = parser.parse_args(arguments)
    try:
        results = peers.compared(options.lines, options.batch)
    except ValueError as error:
        parser.error(str(error))
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    return _tell(results)
