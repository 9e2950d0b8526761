"""Money: one outcome per order, one charge and what is due of it given back, the same sums everywhere (I4 to I7)."""

import collections
from collections.abc import Iterator
from typing import Any

from chaos.oracle import rules
from chaos.oracle.facts import Facts
from chaos.oracle.violations import Violation
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import Money, Order, OrderStatus, PaymentStatus

Amount = tuple[str, int]
Ledger = dict[tuple[str, str], list[Amount]]
"""Order id and `capture` or `refund` -> amounts, the smallest first."""


def one_outcome(facts: Facts) -> Iterator[Violation]:
    """I4: an order that went through payment has one outcome, another, or one that was called off before, none."""
    for order_id, life in facts.lives.items():
        outcomes = [event for event in life if event.type in rules.PAYMENT]
        due = any(event.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING for event in life)
        wanted = 1 if due and order_id not in facts.unknown_payments and not _called_off_unpaid(life) else 0
        if len(outcomes) != wanted:
            yield Violation(
                "I4",
                f"{len(outcomes)} outcomes of payment, and not {wanted}",
                {"order": order_id, "events": [event.event_id for event in outcomes]},
            )


def money_per_order(facts: Facts) -> Iterator[Violation]:
    """I5: the gateway, PostgreSQL and the topics agree on what each order was charged and given back."""
    gateway, booked = _at_gateway(facts), _booked(facts)
    for order_id, life in facts.lives.items():
        charged, back = gateway[order_id, "capture"], gateway[order_id, "refund"]
        if len(charged) > 1:
            yield Violation("I5", f"charged {len(charged)} times", {"order": order_id})
            continue
        yield from _charged(facts, life, charged, booked[order_id, "capture"])
        yield from _given_back(life, back, booked[order_id, "refund"])
        yield from _said(life)
        left = _sum(charged) - _sum(back)
        if left < 0:
            yield Violation("I5", f"charged {charged}, and given back {back}", {"order": order_id})
        last = life[-1].order.status
        if last in _ALL_BACK and left and order_id not in facts.open_refunds:
            yield Violation("I5", f"{rules.status_name(last)}, and {left} is not given back", {"order": order_id})


def _charged(facts: Facts, life: list[OrderEvent], charged: list[Amount], booked: list[Amount]) -> Iterator[Violation]:
    last, ids = life[-1].order, {"order": life[-1].order.order_id}
    total = _amount(life[0].order.total)
    if last.order_id in facts.unknown_payments:
        wanted, known = charged, []  # nobody can tell: an operator has to look
    elif _was_paid(life) or (_called_off_unpaid(life) and charged):
        wanted = known = [total]  # a charge that was on its way when the order was called off is booked, and given back
    else:
        wanted = known = []
    if charged != wanted:
        yield Violation("I5", f"{rules.status_name(last.status)}, total {total}, and the gateway holds {charged}", ids)
    if booked != known:
        yield Violation("I5", f"total {total}, and PostgreSQL has booked {booked}", ids)
    told = [_amount(event.order_paid.amount) for event in life if _is(event, "ORDER_PAID")]
    if any(amount != total for amount in told):
        yield Violation("I5", f"total {total}, and ORDER_PAID says {told}", ids)


def _given_back(life: list[OrderEvent], back: list[Amount], booked: list[Amount]) -> Iterator[Violation]:
    told = sorted(_amount(event.payment_refunded.amount) for event in life if _is(event, "PAYMENT_REFUNDED"))
    if not back == booked == told:
        yield Violation(
            "I5",
            f"the gateway gave back {back}, PostgreSQL has booked {booked}, PAYMENT_REFUNDED says {told}",
            {"order": life[0].order.order_id},
        )


def _said(life: list[OrderEvent]) -> Iterator[Violation]:
    """Each event says of the order's money what follows from the events up to it."""
    total, so_far = life[0].order.total.amount_minor, 0
    for number, event in enumerate(life, 1):
        if _is(event, "PAYMENT_REFUNDED"):
            so_far += event.payment_refunded.amount.amount_minor
        said = (event.order.refunded.amount_minor, event.order.payment_status)
        wanted = (so_far, _payment_status(event.order, was_paid=_was_paid(life[:number])))
        if said != wanted or (_is(event, "PAYMENT_REFUNDED") and event.payment_refunded.whole != (so_far == total)):
            yield Violation(
                "I5",
                f"{rules.name(event.type)} says of the money {said}, after {so_far} of {total} given back",
                {"order": event.order.order_id, "event": event.event_id},
            )


def _payment_status(order: Order, *, was_paid: bool) -> PaymentStatus:
    if order.refunded.amount_minor:
        whole = order.refunded.amount_minor == order.total.amount_minor
        return PaymentStatus.PAYMENT_STATUS_REFUNDED if whole else PaymentStatus.PAYMENT_STATUS_PARTIALLY_REFUNDED
    if was_paid:
        return PaymentStatus.PAYMENT_STATUS_CAPTURED
    return {
        OrderStatus.ORDER_STATUS_PROCESSING: PaymentStatus.PAYMENT_STATUS_PENDING,
        OrderStatus.ORDER_STATUS_PAYMENT_FAILED: PaymentStatus.PAYMENT_STATUS_DECLINED,
    }.get(order.status, PaymentStatus.PAYMENT_STATUS_NONE)


def money_in_total(facts: Facts) -> Iterator[Violation]:
    """I6: per currency the gateway's, PostgreSQL's and the topics' payments less refunds add up to the same.

    Left out are orders of which nobody can tell, and of those that were called off unpaid no event tells of a charge.
    """
    left_out = facts.unknown_payments | {order_id for order_id, life in facts.lives.items() if _called_off_unpaid(life)}
    gateway, entries = _left(_at_gateway(facts), left_out), _left(_booked(facts), left_out)
    topics: collections.Counter[str] = collections.Counter()
    for order_id, life in facts.lives.items():
        for event in life if order_id not in left_out else ():
            if _is(event, "ORDER_PAID"):
                topics[event.order.total.currency_code] += event.order.total.amount_minor
            elif _is(event, "PAYMENT_REFUNDED"):
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
    """I7: one idempotency key per order with one payload, and no charge and no refund left open."""
    by_order: dict[str, set[str]] = collections.defaultdict(set)
    payloads: dict[str, set[tuple[Any, ...]]] = collections.defaultdict(set)
    closed = {line["key"] for line in facts.run.journal if line["kind"] == "close"}
    for line in facts.run.journal:
        if line["kind"] == "charge":
            by_order[line["order_id"]].add(line["key"])
            payload = (line["order_id"], line["amount_minor"], line["currency_code"], line["payment_method"])
            payloads[line["key"]].add(payload)
        elif line["kind"] == "refund":
            payloads[line["key"]].add((line["charge_reference"], line["amount_minor"], line["reference"]))
    for row in facts.run.table("payments"):
        ids = {"order": row["order_id"]}
        by_order[row["order_id"]].add(row["idempotency_key"])
        if row["state"] == "intended":
            yield Violation("I7", "a charge was intended and never ended", ids)
        if row["state"] == "unknown" and row["order_id"] not in facts.unknown_payments:
            yield Violation("I7", "a charge is unknown and no dead letter tells", ids)
        is_cancelled = facts.status(row["order_id"]) == OrderStatus.ORDER_STATUS_CANCELLED
        # Where nothing was made at the gateway that could be confirmed, the mark alone closes the key.
        is_closed = row["idempotency_key"] in closed or (row["gateway_closed"] and row["gateway_intent"] is None)
        if is_cancelled and not is_closed:
            yield Violation("I7", "cancelled, and the gateway may still charge", ids)
        if row["refund_due"]:
            yield Violation("I7", "money is due to be given back, and nobody has asked for it", ids)
    for row in facts.run.table("refunds"):
        if row["state"] == "intended" and row["order_id"] not in facts.open_refunds:
            yield Violation("I7", "a refund was intended and never ended", {"order": row["order_id"]})
    for order_id, used in by_order.items():
        if len(used) > 1:
            yield Violation("I7", "several idempotency keys", {"order": order_id, "keys": sorted(used)})
    for key, different in payloads.items():
        if len(different) > 1:
            yield Violation("I7", "one key with several payloads", {"key": key})


_ALL_BACK = (
    OrderStatus.ORDER_STATUS_CANCELLED, OrderStatus.ORDER_STATUS_EXPIRED, OrderStatus.ORDER_STATUS_REFUNDED,
)  # fmt: skip
"""What was charged for an order that ends so goes back to the minor unit."""


def _at_gateway(facts: Facts) -> Ledger:
    orders = {line["reference"]: line["order_id"] for line in facts.run.journal if line["kind"] == "charge"}
    found: Ledger = collections.defaultdict(list)
    for line in facts.run.journal:
        amount = (line.get("currency_code", ""), line.get("amount_minor", 0))
        if line["kind"] == "charge" and line["approved"]:
            found[line["order_id"], "capture"].append(amount)
        elif line["kind"] == "refund":
            found[orders.get(line["charge_reference"], ""), "refund"].append(amount)
    return _sorted(found)


def _booked(facts: Facts) -> Ledger:
    found: Ledger = collections.defaultdict(list)
    for row in facts.run.table("payment_entries"):
        found[row["order_id"], row["kind"]].append((row["currency_code"], row["amount_minor"]))
    return _sorted(found)


def _sorted(ledger: Ledger) -> Ledger:
    for amounts in ledger.values():
        amounts.sort()
    return ledger


def _left(ledger: Ledger, without: set[str]) -> collections.Counter[str]:
    """Returns captures less refunds per currency, without those of some orders."""
    left: collections.Counter[str] = collections.Counter()
    for (order_id, kind), amounts in ledger.items():
        if order_id not in without:
            for currency, amount_minor in amounts:
                left[currency] += amount_minor if kind == "capture" else -amount_minor
    return left


def _sum(amounts: list[Amount]) -> int:
    return sum(amount_minor for _, amount_minor in amounts)


def _amount(money: Money) -> Amount:
    return (money.currency_code, money.amount_minor)


def _is(event: OrderEvent, name: str) -> bool:
    return rules.name(event.type) == name


def _was_paid(life: list[OrderEvent]) -> bool:
    return any(_is(event, "ORDER_PAID") for event in life)


def _called_off_unpaid(life: list[OrderEvent]) -> bool:
    for event in life:
        if _is(event, "ORDER_PAID") or event.type in rules.CALLED_OFF:
            return event.type in rules.CALLED_OFF
    return False
