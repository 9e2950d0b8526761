"""Which dangers a run met: one that met less than it was to proves less than it says."""

import collections
import json
from collections.abc import Iterator

from chaos.oracle import rules
from chaos.oracle.facts import Facts
from chaos.oracle.violations import Violation
from orderflow.orders.v1.order_pb2 import OrderStatus

_BY_LOG = {
    "worker.partition.fenced": "fenced producer",
    "order.replayed": "replayed event",
    "payment.unknown": "unknown payment",
}


def met(facts: Facts) -> dict[str, int]:
    """Returns how often each danger was met, by the logs, the topics and the journal of faults."""
    found: collections.Counter[str] = collections.Counter()
    for _, line in facts.run.log_lines():
        if not line.startswith("{"):
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        event = entry.get("event")
        if event in _BY_LOG:
            found[_BY_LOG[event]] += 1
        elif event == "gateway.breaker":
            found[f"breaker {str(entry.get('new')).replace('_', '-')}"] += 1
    committed = {record.at for record in facts.run.committed}
    found["aborted transaction"] += len({record.at for record in facts.run.uncommitted} - committed)
    found.update(_lived(facts))
    for fault in facts.run.faults:
        if fault.kind in ("scale-down", "scale-up") and fault.details.get("in_flight", 0) > 0:
            found["rebalance with work in flight"] += 1
        if fault.kind == "kill" and fault.details.get("counts"):
            found[f"kill of {fault.target.removesuffix('-2')} with work in flight"] += 1
    return dict(found)


def _lived(facts: Facts) -> Iterator[str]:
    """What became of orders after they were placed: each is a race that somebody has won."""
    for life in facts.lives.values():
        was_paid = False
        for event in life:
            match rules.name(event.type):
                case "ORDER_PAID":
                    was_paid = True
                case "ORDER_CANCELLED":
                    yield "paid order cancelled" if was_paid else "unpaid order cancelled"
                case "ORDER_EXPIRED":
                    yield "order expired"
                case "PAYMENT_REFUNDED" if not was_paid:
                    if event.order.status == OrderStatus.ORDER_STATUS_CANCELLED:
                        yield "order cancelled while it was charged"
                case "PAYMENT_REFUNDED" if event.order.status != OrderStatus.ORDER_STATUS_CANCELLED:
                    yield "order refunded" if event.payment_refunded.whole else "order refunded in part"
    for row in facts.run.table("command_answers"):
        if row["refusal"]:
            yield "command refused"


def sometimes(facts: Facts) -> Iterator[Violation]:
    """The run met every danger that it was to meet."""
    found = met(facts)
    for danger in facts.run.info["required_dangers"]:
        if not found.get(danger):
            yield Violation("sometimes", f"the run never met: {danger}", {})
