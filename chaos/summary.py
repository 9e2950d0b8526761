"""What a person wants to know of a run: what was done to it how often, and how long anybody had to wait."""

import collections
import pathlib
from typing import Any

from chaos.oracle.facts import Facts
from chaos.oracle.folder import Fault, load
from chaos.oracle.rules import OPEN
from orderflow.events.v1.order_event_pb2 import OrderEventType


def of(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the summary of a saved run."""
    facts = Facts(load(folder))
    info = facts.run.info
    spans = _spans(facts)
    waits = sorted(end - begin for begin, end in spans)
    faults = collections.Counter(f"{fault.kind} {fault.target}" for fault in facts.run.faults)
    counted = sum(bool(fault.details.get("counts")) for fault in facts.run.faults if fault.kind == "kill")
    recoveries = [
        (_recovery(fault, spans), fault) for fault in facts.run.faults if fault.kind not in ("poison", "gateway")
    ]
    slowest, culprit = max(recoveries, default=(0.0, None), key=lambda each: each[0])
    return {
        "seed": info["seed"],
        "commit": info["commit"],
        "seconds": info["seconds"],
        "faults": dict(sorted(faults.items())),
        "kills_with_work_in_flight": counted,
        "settle_seconds": round(info["settle_seconds"], 1),
        "ended_by_themselves": info["ended_by_themselves"],
        "order_seconds": {
            name: round(waits[min(int(len(waits) * share), len(waits) - 1)], 3) if waits else 0.0
            for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        },
        "slowest_recovery": {
            "seconds": round(slowest, 1),
            "after": f"{culprit.kind} {culprit.target}" if culprit is not None else "",
        },
    }


def text(told: dict[str, Any]) -> str:
    """Returns it for people."""
    waits = told["order_seconds"]
    lines = [f"seed {told['seed']} at {told['commit']}, {told['seconds']:.0f} s of faults:"]
    lines += [f"  {count:4} x {what}" for what, count in told["faults"].items()]
    lines += [
        f"{told['kills_with_work_in_flight']} kills hit a process that held a record between fetch and commit",
        f"from ORDER_CREATED until it is settled: p50 {waits['p50']} s, p99 {waits['p99']} s, max {waits['max']} s",
        f"slowest recovery: {told['slowest_recovery']['seconds']} s after {told['slowest_recovery']['after']}",
        f"settled {told['settle_seconds']} s after the last fault",
    ]
    if told["ended_by_themselves"]:
        lines.append(f"ended by themselves, and were started again: {told['ended_by_themselves']}")
    return "\n".join(lines)


def _recovery(fault: Fault, spans: list[tuple[float, float]]) -> float:
    """Returns how long after a fault began the last order that it may have held up ended."""
    held_up = [end for begin, end in spans if begin <= fault.end and end >= fault.start]
    return max(held_up, default=fault.start) - fault.start


def _spans(facts: Facts) -> list[tuple[float, float]]:
    """Returns when each settled order began and was first settled, by the timestamps of its records."""
    begun: dict[str, float] = {}
    ended: dict[str, float] = {}
    for copies in facts.copies.values():
        event, moment = copies[0].event, copies[0].record.timestamp / 1000
        if event.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_CREATED:
            begun[event.order.order_id] = moment
        elif event.revision and event.order.status not in OPEN:
            ended[event.order.order_id] = min(moment, ended.get(event.order.order_id, moment))
    return [(begun[order_id], ended[order_id]) for order_id in begun.keys() & ended.keys()]
