"""Dead letters: exactly what the checker itself calls invalid, byte for byte, once per group (I12)."""

import collections
from collections.abc import Iterator
from typing import Final

from chaos.oracle import rules
from chaos.oracle.facts import Facts, retry_topic
from chaos.oracle.folder import At, octets
from chaos.oracle.violations import Violation
from orderflow.events.v1.dead_letter_pb2 import DeadLetter

_GATEWAY_FAULTS: Final = "gateway"


def dead_letters(facts: Facts) -> Iterator[Violation]:
    """I12: one dead letter per invalid record and group that reads it, bytes untouched, and no others."""
    wanted = invalid(facts)
    found = collections.Counter((letter.group, letter.origin) for letter in facts.letters if not letter.replay)
    for (group, origin), why in wanted.items():
        if found[group, origin] != 1:
            yield Violation(
                "I12", f"{found[group, origin]} dead letters of a record: {why}", {"group": group, "origin": origin}
            )
    seen: set[tuple[str, At, int]] = set()
    for letter in facts.letters:
        ids = {"group": letter.group, "origin": letter.origin, "at": letter.record.at}
        source = facts.records.get(letter.origin)
        if source is None or (letter.record.key, letter.record.value) != (source.key, source.value):
            yield Violation("I12", "a dead letter is not the record that it stems from", ids)
        if (letter.group, letter.origin, letter.replay) in seen and (letter.group, letter.origin) not in wanted:
            yield Violation("I12", "a dead letter twice", ids)
        seen.add((letter.group, letter.origin, letter.replay))
        if (letter.group, letter.origin) not in wanted and not _is_excused(facts, letter.error_class):
            yield Violation("I12", f"a valid record is a dead letter: {letter.error_class}", ids)
    own = {letter.record.at for letter in facts.letters}
    for record in facts.on("dlq"):
        if record.at not in own | facts.poison:
            yield Violation("I12", "a record on dlq that says nothing of its origin", {"at": record.at})
    yield from _listed(facts)


def invalid(facts: Facts) -> dict[tuple[str, At], str]:
    """Returns what has to be on dlq: group and place of each record that no group can read, and why."""
    moved = {parked.record.at for parked in facts.parked}
    wanted: dict[tuple[str, At], str] = {}
    for record in facts.run.committed:
        place = retry_topic(record.topic)
        if place is not None and record.at in moved:
            continue
        groups = (place[0],) if place else tuple(g for g, topics in rules.READS.items() if record.topic in topics)
        reading = Facts.reading(record, record.topic)
        if isinstance(reading, str):
            wanted |= {(group, record.at): reading for group in groups}
    return wanted


def _is_excused(facts: Facts, error_class: str) -> bool:
    """A charge or a refund that a broken gateway leaves open is an operator's to settle."""
    is_open = error_class in ("PAYMENT_UNKNOWN", "GATEWAY_CHARGE_UNKNOWN")
    return is_open and any(fault.target == _GATEWAY_FAULTS for fault in facts.run.faults)


def _listed(facts: Facts) -> Iterator[Violation]:
    rows = {(row["partition"], row["record_offset"]): row for row in facts.run.table("dead_letters")}
    records = {(record.partition, record.offset): record for record in facts.on("dlq")}
    for at in sorted(rows.keys() ^ records.keys()):
        where = "listed, and not on dlq" if at in rows else "on dlq, and not listed"
        yield Violation("I12", f"a dead letter is {where}", {"partition": at[0], "offset": at[1]})
    for at in rows.keys() & records.keys():
        listed = DeadLetter.FromString(octets(rows[at]["dead_letter"]) or b"")
        kept = (
            listed.key if listed.HasField("key") else None,
            listed.value if listed.HasField("value") else None,
        )
        if kept != (records[at].key, records[at].value):
            yield Violation("I12", "a dead letter is listed with other bytes", {"partition": at[0], "offset": at[1]})
