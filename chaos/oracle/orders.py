"""Orders: acknowledged ones exist, no others do, each ends, in sequence, once per request (I1, I2, I3, I13, I15)."""

import collections
from collections.abc import Iterator

from chaos.oracle import rules
from chaos.oracle.facts import Facts
from chaos.oracle.folder import Call
from chaos.oracle.violations import Violation
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_pb2 import Order, OrderStatus

_COPIED = (
    "user_id", "email", "phone", "items", "payment_method", "labels", "external_reference", "language",
    "muted_channels",
)  # fmt: skip
"""What goes from a request into its order as it is."""


def durable(facts: Facts) -> Iterator[Violation]:
    """I1: every acknowledged order is on the topic, as it was acknowledged."""
    for call in facts.run.calls:
        if call.order is None:
            continue
        order_id = call.order.order_id
        found = [event for event in facts.created.get(order_id, []) if event.revision == 1]
        if not found:
            yield Violation("I1", "an acknowledged order is not on the topic", {"order": order_id, "call": call.number})
        elif not any(_content(event.order) == _content(call.order) for event in found):
            yield Violation("I1", "an order is on the topic with other content than acknowledged", {"order": order_id})
        elif not _is_of(call.order, call):
            yield Violation("I1", "an order was acknowledged with other content than asked for", {"order": order_id})


def nothing_invented(facts: Facts) -> Iterator[Violation]:
    """I2: every order was asked for by a client that did not hear a refusal, and no table knows another one."""
    asked: dict[tuple[str, str], list[Call]] = collections.defaultdict(list)
    for call in facts.run.calls:
        asked[call.caller, call.request.request_id].append(call)
    for order_id, copies in facts.created.items():
        details = copies[0].order_created
        calls = [
            call for call in asked[details.caller, details.request_id] if _is_of(copies[0].order, call)
        ]  # the same request may have been sent several times
        if not calls:
            yield Violation(
                "I2", "an order that no client asked for", {"order": order_id, "request": details.request_id}
            )
        elif all(call.outcome == "refused" for call in calls):
            yield Violation("I2", "an order whose client was told that there is none", {"order": order_id})
    for table in ("orders", "payments", "order_views"):
        for row in facts.run.table(table):
            if row["order_id"] not in facts.created:
                yield Violation("I2", f"a row of {table} without an order", {"order": row["order_id"]})


def terminates(facts: Facts) -> Iterator[Violation]:
    """I3: every order is settled or parked with an open dead letter, and PostgreSQL says the same as the topics."""
    rows = {row["order_id"]: row for row in facts.run.table("orders")}
    for order_id, life in facts.lives.items():
        if order_id not in facts.created:
            continue  # nothing_invented tells
        last, row = life[-1].order, rows.get(order_id)
        if last.status in rules.OPEN and order_id not in facts.unknown_payments:
            yield Violation("I3", f"stuck in {rules.status_name(last.status)}", {"order": order_id})
        if row is None:
            yield Violation("I3", "an order without a row", {"order": order_id})
        elif (row["status"], row["revision"]) != (last.status, life[-1].revision):
            yield Violation(
                "I3",
                f"the topics say {rules.status_name(last.status)} at revision {life[-1].revision}, "
                f"PostgreSQL {rules.status_name(row['status'])} at {row['revision']}",
                {"order": order_id},
            )


def in_sequence(facts: Facts) -> Iterator[Violation]:
    """I13: revisions are 1..n, every step is allowed, and no reader ever saw an order go back."""
    for order_id, life in facts.lives.items():
        revisions = [event.revision for event in life]
        if revisions != list(range(1, len(life) + 1)):
            yield Violation("I13", f"revisions {revisions}", {"order": order_id})
        yield from _steps(order_id, life)
    latest: dict[tuple[str, str], int] = {}
    for seen in facts.run.seen:
        who = (seen.client, seen.order_id)
        if seen.revision < max(seen.least, latest.get(who, 0)):
            yield Violation(
                "I13",
                f"a reader saw revision {seen.revision} after {max(seen.least, latest.get(who, 0))}",
                {"order": seen.order_id, "client": seen.client},
            )
        latest[who] = max(seen.revision, latest.get(who, 0))
    for watched in facts.run.watched:
        if watched.revisions != list(range(watched.after + 1, watched.after + 1 + len(watched.revisions))):
            yield Violation(
                "I13",
                f"a watch from revision {watched.after} on showed {watched.revisions}",
                {"order": watched.order_id, "client": watched.client},
            )


def _steps(order_id: str, life: list[OrderEvent]) -> Iterator[Violation]:
    stands: OrderStatus | None = None
    for event in life:
        leads = rules.leads_to(event, stands)
        if leads is None or event.order.status != leads:
            yield Violation(
                "I13",
                f"{rules.name(event.type)} in {'nothing' if stands is None else rules.status_name(stands)} "
                f"led to {rules.status_name(event.order.status)}",
                {"order": order_id, "event": event.event_id},
            )
        stands = event.order.status
        if event.order.revision != event.revision:
            yield Violation(
                "I13",
                f"the event has revision {event.revision}, its order {event.order.revision}",
                {"order": order_id, "event": event.event_id},
            )


def one_per_request(facts: Facts) -> Iterator[Violation]:
    """I15: one request is one order, however often it is sent, and one request_id at most one that is not rejected."""
    answers: dict[tuple[str, str, bytes], set[str]] = collections.defaultdict(set)
    for call in facts.run.calls:
        if call.order is not None:
            answers[call.caller, call.request.request_id, call.content].add(call.order.order_id)
    for (_, request_id, _), order_ids in answers.items():
        if len(order_ids) > 1:
            yield Violation("I15", "one request, several orders", {"request": request_id, "orders": sorted(order_ids)})
    alive: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
    for order_id, copies in facts.created.items():
        details = copies[0].order_created
        if details.request_id and facts.status(order_id) != OrderStatus.ORDER_STATUS_REJECTED:
            alive[details.caller, details.request_id].add(order_id)
    for (_, request_id), order_ids in alive.items():
        if len(order_ids) > 1:
            yield Violation(
                "I15", "one request_id, several orders alive", {"request": request_id, "orders": sorted(order_ids)}
            )


def _content(order: Order) -> bytes:
    """What never changes in an order. Copies of ORDER_CREATED by a repeated call may differ in times."""
    content = Order()
    content.CopyFrom(order)
    for field in (
        "status", "payment_status", "revision", "create_time", "update_time", "expire_time", "etag", "failure_reason",
        "shipment", "refunded",
    ):  # fmt: skip
        content.ClearField(field)
    return content.SerializeToString(deterministic=True)


def _is_of(order: Order, call: Call) -> bool:
    return all(getattr(order, field) == getattr(call.request, field) for field in _COPIED)
