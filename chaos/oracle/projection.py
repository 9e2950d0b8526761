"""The read model is what the topics say, row by row (I14)."""

from collections.abc import Iterator

from chaos.oracle import rules
from chaos.oracle.facts import Facts
from chaos.oracle.folder import octets
from chaos.oracle.violations import Violation
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_pb2 import Order


def folded(facts: Facts) -> Iterator[Violation]:
    """I14: orders, history, failures and positions are those that a fold of the topics gives."""
    yield from _views(facts)
    yield from _history(facts)
    yield from _failures(facts)
    positions = {(row["topic"], row["partition"]): row["position"] for row in facts.run.table("projection_positions")}
    for topic in rules.PROJECTED:
        for partition, ends in facts.run.info["ends"].get(topic, {}).items():
            if positions.get((topic, int(partition))) != ends["stable"]:
                yield Violation(
                    "I14",
                    f"the projector stands at {positions.get((topic, int(partition)))}, the end is {ends['stable']}",
                    {"topic": topic, "partition": partition},
                )


def _views(facts: Facts) -> Iterator[Violation]:
    rows = {row["order_id"]: row for row in facts.run.table("order_views")}
    for order_id in sorted(rows.keys() | facts.lives.keys()):
        row, life = rows.get(order_id), facts.lives.get(order_id)
        if row is None or life is None:
            where = "an order that is not in the read model" if row is None else "a view of no order"
            yield Violation("I14", where, {"order": order_id})
            continue
        last = life[-1]
        view = Order.FromString(octets(row["snapshot"]) or b"")
        if (row["revision"], row["status"]) != (last.revision, last.order.status):
            yield Violation(
                "I14",
                f"the view has {rules.status_name(row['status'])} at {row['revision']}, the topics "
                f"{rules.status_name(last.order.status)} at {last.revision}",
                {"order": order_id},
            )
        elif not any(view == told.event.order for told in facts.copies[last.event_id]):
            yield Violation("I14", "the view is not the order of the last event", {"order": order_id})
        if row["caller"] != last.metadata.caller or row["user_id"] != last.order.user_id:
            yield Violation("I14", "the view belongs to somebody else", {"order": order_id})


def _history(facts: Facts) -> Iterator[Violation]:
    rows = {row["event_id"]: row for row in facts.run.table("order_events")}
    for event_id in sorted(rows.keys() ^ facts.copies.keys()):
        where = "in the history, and not on the topics" if event_id in rows else "on the topics, and not in the history"
        yield Violation("I14", f"an event is {where}", {"event": event_id})
    for event_id in sorted(rows.keys() & facts.copies.keys()):
        row = rows[event_id]
        at = (row["topic"], row["partition"], row["record_offset"])
        stored = OrderEvent.FromString(octets(row["event"]) or b"")
        if not any(told.record.at == at and told.event == stored for told in facts.copies[event_id]):
            yield Violation("I14", "the history has an event that is not on the topics there", {"event": event_id})


def _failures(facts: Facts) -> Iterator[Violation]:
    recorded = {
        (row["topic"], row["partition"], row["record_offset"]) for row in facts.run.table("projection_failures")
    }
    unreadable = {
        record.at
        for record in facts.on("orders", "payments", "notifications")
        if isinstance(Facts.reading(record, record.topic), str)
    }
    for at in sorted(recorded ^ unreadable):
        where = "recorded by the projector, and readable" if at in recorded else "not recorded by the projector"
        yield Violation("I14", f"an unreadable record is {where}", {"at": at})
