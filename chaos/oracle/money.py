"""Money: one outcome per order, one charge per paid order, the same sums everywhere, one key each (I4 to I7)."""

import collections
from collections.abc import Iterator
from typing import Any

from chaos.oracle import rules
from chaos.oracle.facts import Facts
from chaos.oracle.violations import Violation
from orderflow.events.v1.order_event_pb2 import OrderEventType

Amount = tuple[str, int]


def one_outcome(facts: Facts) -> Iterator[Violation]:
    """I4: an order that went through payment has one outcome, another none."""
    for order_id, life in facts.lives.items():
        outcomes = [event for event in life if event.type in rules.PAYMENT]
        due = any(event.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING for event in life)
        wanted = 1 if due and order_id not in facts.unknown_payments else 0
        if len(outcomes) != wanted:
            yield Violation(
                "I4",
                f"{len(outcomes)} outcomes of payment, and not {wanted}",
                {"order": order_id, "events": [event.event_id for event in outcomes]},
            )


def money_per_order(facts: Facts) -> Iterator[Violation]:
    """I5: the gateway, PostgreSQL and the topics agree on what each order was charged."""
    captures = _captures(facts)
    booked = _booked(facts)
    for order_id, life in facts.lives.items():
        total = (life[0].order.total.currency_code, life[0].order.total.amount_minor)
        charged = [(line["currency_code"], line["amount_minor"]) for line in captures.get(order_id, [])]
        ids = {"order": order_id}
        if len(charged) > 1:
            yield Violation("I5", f"charged {len(charged)} times", ids)
            continue
        if order_id in facts.unknown_payments:
            wanted, known = charged, []  # nobody can tell: an operator has to look
        elif life[-1].order.status in rules.PAID:
            wanted = known = [total]
        else:
            wanted = known = []
        if charged != wanted:
            status = rules.status_name(life[-1].order.status)
            yield Violation("I5", f"{status}, total {total}, and the gateway holds {charged}", ids)
        if booked.get(order_id, []) != known:
            yield Violation("I5", f"total {total}, and PostgreSQL has booked {booked.get(order_id, [])}", ids)
        told = [
            (event.order_paid.amount.currency_code, event.order_paid.amount.amount_minor)
            for event in life
            if event.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID
        ]
        if any(amount != total for amount in told):
            yield Violation("I5", f"total {total}, and ORDER_PAID says {told}", ids)


def money_in_total(facts: Facts) -> Iterator[Violation]:
    """I6: per currency the gateway's captures, PostgreSQL's entries and the topics' ORDER_PAID add up to the same."""
    gateway: collections.Counter[str] = collections.Counter()
    for order_id, lines in _captures(facts).items():
        if order_id not in facts.unknown_payments:
            for line in lines:
                gateway[line["currency_code"]] += line["amount_minor"]
    for line in facts.run.journal:
        if line["kind"] == "refund":
            gateway[line["currency_code"]] -= line["amount_minor"]
    entries: collections.Counter[str] = collections.Counter()
    for row in facts.run.table("payment_entries"):
        entries[row["currency_code"]] += row["amount_minor"] * (1 if row["kind"] == "capture" else -1)
    topics: collections.Counter[str] = collections.Counter()
    for life in facts.lives.values():
        for event in life:
            if event.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID:
                topics[event.order.total.currency_code] += event.order.total.amount_minor
            elif event.type == OrderEventType.ORDER_EVENT_TYPE_PAYMENT_REFUNDED:
                refund = event.payment_refunded.amount
                topics[refund.currency_code] -= refund.amount_minor
    for currency in sorted(gateway.keys() | entries.keys() | topics.keys()):
        if not gateway[currency] == entries[currency] == topics[currency]:
            yield Violation(
                "I6",
                f"the gateway holds {gateway[currency]}, PostgreSQL {entries[currency]}, the topics {topics[currency]}",
                {"currency": currency},
            )


def keys(facts: Facts) -> Iterator[Violation]:
    """I7: one idempotency key per order with one payload, and no charge left open."""
    by_order: dict[str, set[str]] = collections.defaultdict(set)
    payloads: dict[str, set[tuple[Any, ...]]] = collections.defaultdict(set)
    for line in facts.run.journal:
        if line["kind"] == "charge":
            by_order[line["order_id"]].add(line["key"])
            payload = (line["order_id"], line["amount_minor"], line["currency_code"], line["payment_method"])
            payloads[line["key"]].add(payload)
    for row in facts.run.table("payments"):
        by_order[row["order_id"]].add(row["idempotency_key"])
        if row["state"] == "intended":
            yield Violation("I7", "a charge was intended and never ended", {"order": row["order_id"]})
        if row["state"] == "unknown" and row["order_id"] not in facts.unknown_payments:
            yield Violation("I7", "a charge is unknown and no dead letter tells", {"order": row["order_id"]})
    for order_id, used in by_order.items():
        if len(used) > 1:
            yield Violation("I7", "several idempotency keys", {"order": order_id, "keys": sorted(used)})
    for key, different in payloads.items():
        if len(different) > 1:
            yield Violation("I7", "one key with several payloads", {"key": key})


def _captures(facts: Facts) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for line in facts.run.journal:
        if line["kind"] == "charge" and line["approved"]:
            found[line["order_id"]].append(line)
    return found


def _booked(facts: Facts) -> dict[str, list[Amount]]:
    found: dict[str, list[Amount]] = collections.defaultdict(list)
    for row in facts.run.table("payment_entries"):
        if row["kind"] == "capture":
            found[row["order_id"]].append((row["currency_code"], row["amount_minor"]))
    return found
