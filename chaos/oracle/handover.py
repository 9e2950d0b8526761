"""Hand-over: each record leads to one thing, once, in each group; parked ones lose nothing (I10, I11)."""

import collections
import itertools
from collections.abc import Iterator
from typing import Any, Final

from chaos.oracle import rules
from chaos.oracle.facts import Facts, Letter, Parked
from chaos.oracle.folder import At, octets, seconds
from chaos.oracle.violations import Violation
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import Order

_SKEW: Final = 0.25
"""Seconds by which two clocks of one machine, read at different moments, may seem to disagree."""


def atomic(facts: Facts) -> Iterator[Violation]:
    """I10: per group and record one decision, whose events are on the topics once each; nothing else is."""
    outcomes = {(row["group_name"], row["event_id"]): row for row in facts.run.table("outcomes")}
    dead = {(letter.group, letter.origin) for letter in facts.letters}
    for group, topics in rules.READS.items():
        committed = facts.run.info["committed"].get(group, {})
        for told in facts.told:
            record, event = told.record, told.event
            if record.topic not in topics or event.type not in rules.HANDLES[group]:
                continue
            if record.offset >= committed.get(record.topic, {}).get(str(record.partition), 0):
                continue  # not passed yet: ending.live tells
            if (group, event.event_id) not in outcomes and (group, record.at) not in dead:
                yield Violation(
                    "I10",
                    f"{group} passed {rules.name(event.type)} and left nothing behind",
                    {"order": event.order.order_id, "event": event.event_id, "at": record.at},
                )
    decided: dict[str, bytes] = {}
    for (group, event_id), row in outcomes.items():
        for text in row["events"]:
            event = OrderEvent.FromString(octets(text) or b"")
            _add_who_for(facts, event.order)
            decided[event.event_id] = event.SerializeToString(deterministic=True)
            if event.event_id not in facts.copies:
                yield Violation(
                    "I10",
                    f"{group} decided on {rules.name(event.type)}, which is not on the topics",
                    {"order": event.order.order_id, "event": event.event_id, "cause": event_id},
                )
    yield from _emitted(facts, decided)


def _add_who_for(facts: Facts, order: Order) -> None:
    """Adds what an outcome does not keep, from the order as it was placed: nothing of it ever changes."""
    created = facts.created.get(order.order_id)
    if created and not order.user_id:
        placed = created[0].order
        order.user_id, order.email, order.phone = placed.user_id, placed.email, placed.phone
        order.external_reference = placed.external_reference
        order.labels.update(placed.labels)


def _emitted(facts: Facts, decided: dict[str, bytes]) -> Iterator[Violation]:
    for event_id, copies in facts.copies.items():
        event = copies[0].event
        if event.type in (OrderEventType.ORDER_EVENT_TYPE_ORDER_CREATED, rules.REPORTED, *rules.COMMANDS):
            continue  # nothing led to it, and a repeated call writes it again
        ids = {"order": event.order.order_id, "event": event_id}
        own = [told for told in copies if told.record.at not in facts.poison]
        if len(own) > 1:
            yield Violation(
                "I10",
                f"{len(own)} records of {rules.name(event.type)}",
                ids | {"at": [told.record.at for told in own]},
            )
        if event.metadata.causation_id not in facts.copies:
            yield Violation("I10", f"{rules.name(event.type)} without its cause", ids)
        elif decided.get(event_id) != event.SerializeToString(deterministic=True):
            yield Violation("I10", f"{rules.name(event.type)} on the topics is not what was decided", ids)


def retries(facts: Facts) -> Iterator[Violation]:
    """I11: a parked record goes on to the next topic, to dlq, or is done: one of these, not early, attempts rising."""
    chains: dict[tuple[str, At, int], list[Parked]] = collections.defaultdict(list)
    for parked in facts.parked:
        chains[parked.group, parked.origin, parked.replay].append(parked)
    letters = {(letter.group, letter.origin, letter.replay): letter for letter in facts.letters}
    done = {
        (row["group_name"], (row["topic"], row["partition"], row["record_offset"])): row
        for row in facts.run.table("outcomes")
    }
    most = facts.run.info["attempts"] * (len(facts.run.info["delays"]) + 1)
    for (group, origin, replay), chain in chains.items():
        chain.sort(key=lambda parked: parked.tier)
        ids = {"group": group, "origin": origin, "replay": replay}
        source = facts.records.get(origin)
        if source is None or any((each.record.key, each.record.value) != (source.key, source.value) for each in chain):
            yield Violation("I11", "a parked record is not what it stems from", ids)
        if [parked.tier for parked in chain] != list(range(1, len(chain) + 1)):
            yield Violation("I11", f"parked on tiers {[parked.tier for parked in chain]}", ids)
        attempts = [parked.attempts for parked in chain]
        letter, outcome = letters.get((group, origin, replay)), done.get((group, origin))
        if letter is not None:
            attempts.append(letter.attempts)
        if any(later <= earlier for earlier, later in itertools.pairwise(attempts)) or max(attempts) > most:
            yield Violation("I11", f"attempts {attempts}, {most} at the most", ids)
        if letter is None and outcome is None and not _is_copy(facts, group, origin):
            yield Violation("I11", "parked, and never heard of again", ids)
        yield from _early(chain, letter, outcome, ids)


def _is_copy(facts: Facts, group: str, origin: At) -> bool:
    """Tells whether the record there has the event_id of one that is decided elsewhere."""
    source = facts.records.get(origin)
    event = Facts.reading(source, origin[0]) if source is not None else ""
    known = {(row["group_name"], row["event_id"]) for row in facts.run.table("outcomes")}
    return isinstance(event, OrderEvent) and (group, event.event_id) in known


def _early(
    chain: list[Parked], letter: Letter | None, outcome: dict[str, Any] | None, ids: dict[str, Any]
) -> Iterator[Violation]:
    handled = [parked.record.timestamp / 1000 for parked in chain[1:]]
    if letter is not None:
        handled.append(letter.record.timestamp / 1000)
    elif outcome is not None:
        handled.append(seconds(outcome["stored_time"]))
    for parked, moment in zip(chain, handled, strict=False):
        due = parked.record.timestamp / 1000 + parked.delay
        if moment < due - _SKEW:
            yield Violation("I11", f"handled {due - moment:.1f} s before it was due", ids | {"at": parked.record.at})
