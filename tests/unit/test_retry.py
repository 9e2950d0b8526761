"""Parked records: when they are due, and what they carry of their past."""

import dataclasses
import datetime

import pytest
from aiokafka import ConsumerRecord

from domain.failures import Permanent, Transient
from domain.records import Coordinates
from messaging import dead_letters, retry
from messaging.retry import Provenance
from messaging.topics import DEAD_LETTERS, ORDERS, all_topics, retry_topics

TIERS = retry_topics("payment-processor", (10, 300))
PAST = Provenance(
    Coordinates("orders", 2, 41),
    1_700_000_000_000,
    attempts=3,
    first_failure=datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
    tier=1,
    replay=2,
)


def a_record(topic: str, headers: list[tuple[str, bytes | None]], offset: int = 7) -> ConsumerRecord:
    return ConsumerRecord(
        topic=topic, partition=0, offset=offset, timestamp=1_800_000_000_000, timestamp_type=1, key=b"k", value=b"v",
        checksum=None, serialized_key_size=1, serialized_value_size=1, headers=tuple(headers),
    )  # fmt: skip


def test_topics_are_the_groups_own_and_due_by_the_brokers_time() -> None:
    assert [topic.name for topic in TIERS] == ["payment-processor.retry.10s", "payment-processor.retry.300s"]
    assert TIERS[0].config(min_insync_replicas=1)["message.timestamp.type"] == "LogAppendTime"
    assert ORDERS.max_message_bytes < TIERS[0].max_message_bytes < DEAD_LETTERS.max_message_bytes
    assert len(all_topics((10, 300))) == 12


def test_the_most_attempts_that_are_believed_are_still_believed_after_another() -> None:
    past = dataclasses.replace(PAST, attempts=2**31)
    parked = a_record(TIERS[1].name, retry.parked(a_record("orders", []), past, TIERS[1]).headers)
    assert retry.provenance_of(parked, TIERS) == dataclasses.replace(PAST, attempts=2**31 - 1)


def test_a_parked_record_is_due_its_delay_after_its_append_and_others_at_once() -> None:
    assert retry.delay_of(TIERS[0].name, TIERS) == 10
    assert retry.delay_of(TIERS[1].name, TIERS) == 300
    assert retry.delay_of("orders", TIERS) == 0


def test_the_past_travels_with_the_record_and_its_bytes_stay() -> None:
    outgoing = retry.parked(a_record("orders", [("ce_id", b"x"), ("retry_attempts", b"99")]), PAST, TIERS[0])
    assert (outgoing.topic, outgoing.key, outgoing.value) == (TIERS[0], b"k", b"v")
    assert ("ce_id", b"x") in outgoing.headers
    assert [value for name, value in outgoing.headers if name == "retry_attempts"] == [b"3"]
    assert retry.provenance_of(a_record(TIERS[0].name, outgoing.headers), TIERS) == PAST


def test_the_past_is_believed_on_the_groups_own_retry_topics_only() -> None:
    forged = a_record("orders", PAST.headers())
    own = Provenance(Coordinates("orders", 0, 7), 1_800_000_000_000)
    assert retry.provenance_of(forged, TIERS) == own
    other_group = a_record("order-processor.retry.10s", PAST.headers())
    assert retry.provenance_of(other_group, TIERS).origin == Coordinates("order-processor.retry.10s", 0, 7)


@pytest.mark.parametrize(
    "broken",
    [
        [],
        [("retry_origin_topic", b"orders")],
        [(name, b"-1" if name == "retry_tier" else value) for name, value in PAST.headers()],
        [(name, b"\xff" if name == "retry_origin_topic" else value) for name, value in PAST.headers()],
        [(name, b"9" * 40 if name == "retry_attempts" else value) for name, value in PAST.headers()],
        [(name, b"soon" if name == "retry_first_failure_time" else value) for name, value in PAST.headers()],
        [(name, "٣".encode() if name == "retry_replay" else value) for name, value in PAST.headers()],
    ],
)
def test_headers_that_cannot_be_read_are_no_past(broken: list[tuple[str, bytes | None]]) -> None:
    record = a_record(TIERS[0].name, broken)
    assert retry.provenance_of(record, TIERS) == Provenance(Coordinates(TIERS[0].name, 0, 7), record.timestamp)


def test_a_dead_letter_of_a_parked_record_names_its_origin_and_a_replay_counts_up() -> None:
    parked = retry.parked(a_record("orders", [("ce_id", b"x")]), PAST, TIERS[1])
    failed = dead_letters.dead_letter(
        a_record(TIERS[1].name, parked.headers), past=PAST, group="payment-processor", failure=Transient("X", "y")
    )
    letter = dead_letters.parse(a_record("dlq", failed.headers))
    assert (letter.origin.topic, letter.origin.partition, letter.origin.offset) == ("orders", 2, 41)
    assert (letter.attempts, letter.replay, letter.group) == (3, 2, "payment-processor")
    assert [header.name for header in letter.headers] == ["ce_id"]

    replayed = retry.replayed(letter, TIERS)
    again = retry.provenance_of(a_record(replayed.topic.name, replayed.headers), TIERS)
    assert replayed.topic == TIERS[0]
    assert (again.origin, again.replay, again.attempts, again.tier) == (PAST.origin, 3, 0, 0)


def test_null_keys_values_and_headers_survive_a_replay() -> None:
    record = a_record("orders", [("empty", None)])
    record = ConsumerRecord(**{**vars_of(record), "key": None, "value": None})
    letter_record = dead_letters.dead_letter(record, past=PAST, group="g", failure=Permanent("X", "y"))
    stored = ConsumerRecord(**{**vars_of(record), "topic": "dlq", "headers": tuple(letter_record.headers)})
    replayed = retry.replayed(dead_letters.parse(stored), TIERS)
    assert (replayed.key, replayed.value) == (None, None)
    assert ("empty", None) in replayed.headers


def vars_of(record: ConsumerRecord) -> dict[str, object]:
    import dataclasses

    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
