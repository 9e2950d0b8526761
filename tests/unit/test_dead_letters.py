"""A dead letter keeps the record as it was and says where it comes from; what it says is not believed blindly."""

import dataclasses
import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.failures import Permanent
from domain.records import Coordinates
from messaging import dead_letters, topics
from messaging.envelope import Header
from messaging.retry import Provenance
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from tests.builders import a_record

FIRST = datetime.datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=datetime.UTC)
PAST = Provenance(Coordinates("orders", 1, 7), 1_700_000_000_123, attempts=1, first_failure=FIRST)


def letter_of(*headers: Header, value: bytes | None = b"v") -> DeadLetter:
    return dead_letters.parse(a_record(value, topic="dlq", partition=0, headers=headers))


@pytest.mark.parametrize(("key", "value"), [(b"key", b"value"), (None, None), (b"", b""), (b"\xff\x00", b"\x80" * 99)])
def test_there_and_back(key: bytes | None, value: bytes | None) -> None:
    headers: list[Header] = [("ce_id", b"1"), ("twice", b"a"), ("twice", b"\xff\xfe"), ("none", None)]
    record = a_record(value, key=key, headers=headers)
    past = Provenance(Coordinates("orders", 1, 7), record.timestamp, attempts=3, first_failure=FIRST, replay=2)
    outgoing = dead_letters.dead_letter(record, past=past, group="test", failure=Permanent("UNDECODABLE", "no"))
    assert outgoing.topic is topics.DEAD_LETTERS
    assert (outgoing.key, outgoing.value) == (key, value)
    assert outgoing.headers[: len(headers)] == headers

    letter = dead_letters.parse(a_record(value, key=key, topic="dlq", offset=99, headers=outgoing.headers))
    assert letter.HasField("key") == (key is not None)
    assert letter.HasField("value") == (value is not None)
    assert (letter.key, letter.value) == (key or b"", value or b"")
    assert [(each.name, each.value if each.HasField("value") else None) for each in letter.headers] == headers
    assert (letter.origin.topic, letter.origin.partition, letter.origin.offset) == ("orders", 1, 7)
    assert letter.origin.record_time.ToMilliseconds() == record.timestamp
    assert (letter.group, letter.error_class, letter.error_message) == ("test", "UNDECODABLE", "no")
    assert (letter.attempts, letter.replay) == (3, 2)
    assert letter.first_failure_time.ToDatetime(datetime.UTC) == FIRST


def test_headers_of_an_earlier_dead_letter_are_replaced() -> None:
    forged: list[Header] = [
        ("dlq_origin_topic", b"payments"),
        ("dlq_replay", b"9"),
        ("retry_tier", b"1"),
        ("mine", b"1"),
    ]
    outgoing = dead_letters.dead_letter(a_record(headers=forged), past=PAST, group="test", failure=Permanent("X", "y"))
    assert ("mine", b"1") in outgoing.headers
    assert not set(forged[:3]) & set(outgoing.headers)
    assert [value for name, value in outgoing.headers if name == "dlq_origin_topic"] == [b"orders"]


def test_a_long_message_is_cut_so_that_a_dead_letter_always_fits() -> None:
    outgoing = dead_letters.dead_letter(a_record(), past=PAST, group="test", failure=Permanent("X", "ü" * 100_000))
    assert sum(len(name) + len(value or b"") for name, value in outgoing.headers) < topics.HEADER_ROOM


def test_without_headers_everything_is_unset() -> None:
    letter = letter_of(value=None)
    letter.ClearField("key")
    letter.origin.ClearField("record_time")
    letter.ClearField("origin")
    assert letter == DeadLetter()


@pytest.mark.parametrize("number", ["", "-1", "1.5", "1e3", "\u0663", "9" * 19, "x", "0x10", " 1"])
def test_numbers_that_are_none_are_left_out(number: str) -> None:
    names = ("dlq_origin_partition", "dlq_origin_offset", "dlq_origin_timestamp", "dlq_attempts")
    letter = letter_of(*((name, number.encode()) for name in names))
    assert (letter.origin.partition, letter.origin.offset, letter.attempts) == (0, 0, 0)
    assert letter.origin.record_time.ToMilliseconds() == 0


def test_numbers_that_do_not_fit_are_left_out() -> None:
    letter = letter_of(
        ("dlq_origin_partition", b"2147483648"),
        ("dlq_attempts", b"999999999999"),
        ("dlq_origin_timestamp", b"9" * 18),
        ("dlq_origin_offset", b"9" * 18),
    )
    assert (letter.origin.partition, letter.attempts) == (0, 0)
    assert letter.origin.offset == int("9" * 18)
    assert letter.origin.record_time.ToDatetime().year == 9999


@pytest.mark.parametrize("time", ["", "yesterday", "2026-13-01", "2026-03-01T12:00:00+99:00", "0000-01-01", "\udcff"])
def test_a_time_that_is_none_is_left_out(time: str) -> None:
    letter = letter_of(("dlq_first_failure_time", time.encode("utf-8", "surrogateescape")))
    assert not letter.HasField("first_failure_time")


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
def test_a_time_outside_of_the_calendar_is_left_out(time: str) -> None:
    assert not letter_of(("dlq_first_failure_time", time.encode())).HasField("first_failure_time")


def test_text_that_is_not_utf8_is_replaced() -> None:
    assert letter_of(("dlq_group", b"a\xff"), ("dlq_error_class", None)).group == "a\ufffd"


@given(
    st.lists(
        st.tuples(
            st.text(max_size=5)
            | st.sampled_from(
                ["dlq_origin_topic", "dlq_origin_partition", "dlq_origin_offset", "dlq_origin_timestamp", "dlq_group",
                 "dlq_error_class", "dlq_error_message", "dlq_attempts", "dlq_first_failure_time", "dlq_"]
            ),
            st.none() | st.binary(max_size=40) | st.integers().map(lambda number: str(number).encode()),
        ),
        max_size=12,
    ),
    st.integers(-1, 2**62),
)  # fmt: skip
def test_any_headers_can_be_read(headers: list[Header], timestamp: int) -> None:
    record = dataclasses.replace(a_record(headers=headers), timestamp=timestamp)
    assert len(dead_letters.parse(record).SerializeToString()) > 0
