"""The dead letter: a record that could not be processed, bytes untouched, with where it came from and why."""

import datetime
from typing import Final

from aiokafka import ConsumerRecord

from domain.failures import Failure
from messaging import retry, spans
from messaging.envelope import Header, OutgoingRecord
from messaging.retry import Provenance
from messaging.topics import DEAD_LETTERS
from orderflow.events.v1.dead_letter_pb2 import DeadLetter

_PREFIX: Final = "dlq_"
_MOST: Final = 512  # characters of an error message, so that a dead letter always fits


def dead_letter(record: ConsumerRecord, *, past: Provenance, group: str, failure: Failure) -> OutgoingRecord:
    """Returns the record for `dlq`. Headers of an earlier dead letter are replaced: they could be forged."""
    told = {
        "origin_topic": past.origin.topic,
        "origin_partition": str(past.origin.partition),
        "origin_offset": str(past.origin.offset),
        "origin_timestamp": str(past.origin_timestamp),
        "group": group,
        "error_class": failure.error_class,
        "error_message": failure.message[:_MOST],
        "attempts": str(past.attempts),
        "first_failure_time": past.first_failure.isoformat() if past.first_failure else "",
        "replay": str(past.replay),
    }
    if past.links:
        told["traceparent"] = past.links[0]  # of the handling that gave up
    headers: list[Header] = [
        header for header in record.headers if not header[0].startswith((_PREFIX, retry.HEADER_PREFIX))
    ]
    headers += [(_PREFIX + name, value.encode()) for name, value in told.items()]
    span = spans.sending(DEAD_LETTERS.name, record.key)
    return OutgoingRecord(DEAD_LETTERS, record.key, record.value, headers, span=span)


def parse(record: ConsumerRecord) -> DeadLetter:
    """Returns what stands on `dlq`. Headers that are missing or malformed leave their fields unset."""
    letter = DeadLetter(key=record.key, value=record.value)
    told: dict[str, str] = {}
    for name, value in record.headers:
        if name.startswith(_PREFIX):
            # Anybody who may write to dlq chooses these: only what can be stored and shown goes on.
            text = (value or b"").decode("utf-8", "replace").replace("\x00", "\ufffd")
            told[name.removeprefix(_PREFIX)] = text[:_MOST]
        else:
            letter.headers.add(name=name, value=value)
    letter.origin.topic = told.get("origin_topic", "")
    letter.origin.partition = _int32(told.get("origin_partition"))
    letter.origin.offset = _int(told.get("origin_offset"))
    letter.origin.record_time.FromMilliseconds(min(max(_int(told.get("origin_timestamp")), 0), 253402300799999))
    letter.group = told.get("group", "")
    letter.error_class = told.get("error_class", "")
    letter.error_message = told.get("error_message", "")
    letter.attempts = _int32(told.get("attempts"))
    letter.replay = _int32(told.get("replay"))
    letter.traceparent = told.get("traceparent", "")
    try:
        letter.first_failure_time.FromDatetime(datetime.datetime.fromisoformat(told.get("first_failure_time", "")))
    except (ValueError, OverflowError):
        letter.ClearField("first_failure_time")
    return letter


def links(record: ConsumerRecord) -> list[str]:
    """Returns the traceparent of the handling that made the record a dead letter, if it is one and that is known."""
    return [
        (value or b"").decode("ascii", "replace") for name, value in record.headers if name == f"{_PREFIX}traceparent"
    ]


def _int(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else 0


def _int32(text: str | None) -> int:
    number = _int(text)
    return number if number < 2**31 else 0
