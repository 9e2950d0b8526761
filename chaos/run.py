"""Runs the chaos test: starts the system, lets orders flow while it breaks it, waits, and checks what is left.

Exit code 0 when every invariant holds and every danger was met, else 1. A seed repeats its orders and its schedule.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import pathlib
import subprocess
import tempfile
import time
from typing import Any, Final

from chaos import checker, summary
from chaos.dump import dump
from chaos.faults import Faults
from chaos.journal import Journal
from chaos.load import CANARIES, SCARCE, SCARCE_PRICE, STOCK, Load, wishes
from chaos.oracle import rules
from chaos.probes import Observer
from chaos.schedule import Step, schedule, text
from chaos.settle import settled
from chaos.system import ATTEMPTS, DELAYS, ChaosSystem
from devstack.system import WORKERS, StripeStandIn

REQUIRED: Final = (
    "fenced producer",
    "aborted transaction",
    "replayed event",
    "unknown payment",
    "rebalance with work in flight",
    "breaker open",
    "breaker half-open",
    *(f"kill of {role} with work in flight" for role in ("server", *WORKERS)),
    "unpaid order cancelled",
    "paid order cancelled",
    "order refunded in part",
    "order refunded",
    "order expired",
    "command refused",
)
"""The dangers that every run has to meet."""

TOPICS: Final = [*rules.PROJECTED, *(f"{group}.retry.{delay}s" for group in rules.READS for delay in DELAYS)]
_SETTLE_SECONDS: Final = 60.0


async def chaos(
    folder: pathlib.Path, *, seed: int, seconds: float, orders: int, steps: list[Step], gateway: str = "remote"
) -> dict[str, Any]:
    """Runs the system under faults and writes the run's folder, run.json last. Returns what run.json says.

    `gateway` is `remote` or `stripe`, as in the settings. What it does wrong, and its journal, are the same.
    """
    (folder / "schedule.json").write_text(text(steps))
    journal = Journal(folder / "faults.jsonl")
    system = ChaosSystem(folder / "system", stripe=StripeStandIn() if gateway == "stripe" else None, note=_note)
    observer: Observer | None = None
    scarce = max(orders // 20, 2)
    try:
        await system.start()
        await system.add_stock({**STOCK, SCARCE: (scarce, SCARCE_PRICE)})
        async with asyncio.TaskGroup() as run:  # a supervisor that fails ends the run
            supervisor = run.create_task(system.supervise())
            observer = Observer(f"127.0.0.1:{system.ports.kafka}", system.postgres.dsn, TOPICS)
            initial = {row["sku"]: row["available"] for row in await observer.rows("select sku, available from stock")}
            _note(f"{orders} orders and {len(steps)} faults within {seconds:.0f} s")
            async with Load(system.server_address, folder / "clients.jsonl", wishes(seed), planned=orders) as load:
                faults = Faults(system, observer, load, journal)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(load.flow(seconds, reserve=orders * 2 // 3))
                    tasks.create_task(faults.run(steps))
                await load.finish()
                accepted = load.accepted
            _note(f"{accepted} answers OK; the faults are over, waiting until all is settled")
            is_settled, took, waits_for = await settled(system, observer, within=_SETTLE_SECONDS)
            unhealthy = await system.unhealthy()
            _note(f"settled after {took:.1f} s" if is_settled else f"NOT settled: {waits_for}")
            info = {
                "seed": seed,
                "seconds": seconds,
                "orders": orders,
                "gateway": gateway,
                "commit": _commit(),
                "time": time.time(),
                "initial_stock": initial,
                "canaries": list(CANARIES),
                "delays": list(DELAYS),
                "attempts": ATTEMPTS,
                "settled": is_settled,
                "settle_seconds": took,
                "settle_limit": _SETTLE_SECONDS,
                "waits_for": waits_for,
                "unhealthy": unhealthy,
                "ended_by_themselves": system.ended,
                "required_dangers": list(REQUIRED) if steps else [],
                **await dump(system, observer, folder),
            }
            (folder / "run.json").write_text(json.dumps(info, indent=1))
            supervisor.cancel()
        return info
    finally:
        journal.close()
        if observer is not None:
            await observer.close()
        _note("stopping the system")
        await system.stop()
        with contextlib.suppress(OSError):
            system.postgres.remove_data()


def _note(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)  # noqa: T201


def _commit() -> str:
    root = pathlib.Path(__file__).resolve().parent.parent
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except OSError:
        return ""
    return told.stdout.strip()


def main(arguments: list[str] | None = None) -> int:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="of orders and faults (1)")
    parser.add_argument("--minutes", type=float, default=10, help="how long faults strike (10)")
    parser.add_argument("--orders", type=int, default=5000, help="the fewest orders placed meanwhile (5000)")
    parser.add_argument("--folder", type=pathlib.Path, help="where the run is kept; a new folder in /tmp if not given")
    parser.add_argument("--gateway", choices=("remote", "stripe"), default="remote", help="which gateway (remote)")
    parser.add_argument("--only", help="faults of these kinds only, comma-separated; `none` for none")
    options = parser.parse_args(arguments)
    folder = options.folder or pathlib.Path(tempfile.mkdtemp(prefix=f"chaos-{options.seed}-"))
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "faults.jsonl").exists():
        parser.error(f"{folder} holds a run already")
    seconds = options.minutes * 60
    steps = schedule(options.seed, seconds)
    if options.only:
        steps = [step for step in steps if step.kind in options.only.split(",")]
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # the broker dies on purpose
    _note(f"seed {options.seed}; the run is kept in {folder}")
    info = asyncio.run(
        chaos(
            folder,
            seed=options.seed,
            seconds=seconds,
            orders=options.orders,
            steps=steps,
            gateway=options.gateway,
        )
    )
    if options.only:
        info["required_dangers"] = []
        (folder / "run.json").write_text(json.dumps(info, indent=1))
    verdict = checker.check(folder)
    told = summary.of(folder)
    (folder / "report.json").write_text(json.dumps({**told, **verdict.report()}, indent=1, default=str))
    _say(summary.text(told))
    _say(verdict.text())
    _say(f"{'PASSED' if verdict.passed else 'FAILED'}: seed {options.seed}, {folder}/report.json")
    return 0 if verdict.passed else 1


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201
