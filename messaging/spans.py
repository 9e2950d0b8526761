"""The spans of Kafka: one for each record that is sent, one for each time that a record is handled.

Names and attributes are OpenTelemetry's for messaging.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final

from aiokafka import ConsumerRecord
from opentelemetry.trace import SpanKind

from domain.identifiers import is_canonical_uuid
from telemetry import tracing
from telemetry.tracing import Span

_KAFKA: Final = {"messaging.system": "kafka"}


def sending(topic: str, key: bytes | None, *, links: Sequence[str] = ()) -> Span:
    """Begins the span of a record on its way to Kafka; it ends when Kafka has acknowledged the record."""
    if not tracing.may_record():
        return tracing.NOTHING
    attributes = {
        **_KAFKA,
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": topic,
        **_key(key),
    }
    return tracing.begin(f"send {topic}", SpanKind.PRODUCER, attributes, links=links)


def processing(
    record: ConsumerRecord, group: str, *, attempt: int, links: Sequence[str]
) -> "contextlib.AbstractContextManager[Span]":
    """Runs one handling of a record in its span, a child of the current one. `links` are the handlings before."""
    if not tracing.may_record():
        return tracing.NO_SPAN
    return _processing(record, group, attempt, links)


@contextlib.contextmanager
def _processing(record: ConsumerRecord, group: str, attempt: int, links: Sequence[str]) -> Iterator[Span]:
    span = tracing.begin(f"process {record.topic}", SpanKind.CONSUMER, _processed(record, group), links=links)
    if attempt > 1:
        span.set("orderflow.attempt", attempt)
    with span.current(), tracing.ended(span):
        yield span


def processed(record: ConsumerRecord, group: str, *, start_time: int, links: Sequence[str] = ()) -> None:
    """Records that a record was handled, among others, since `start_time` (nanoseconds since 1970) and by now."""
    if not tracing.is_on():
        return
    tracing.begin(
        f"process {record.topic}",
        SpanKind.CONSUMER,
        _processed(record, group),
        headers=record.headers,
        links=links,
        start_time=start_time,
    ).end()


def _processed(record: ConsumerRecord, group: str) -> tracing.Attributes:
    return {
        **_KAFKA,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": record.topic,
        "messaging.destination.partition.id": str(record.partition),
        "messaging.consumer.group.name": group,
        "messaging.kafka.offset": record.offset,
        **_key(record.key),
    }


def _key(key: bytes | None) -> tracing.Attributes:
    # Ours are order ids. What others write may be anything, and is not shown.
    text = (key or b"").decode("ascii", "replace")
    return {"messaging.kafka.message.key": text} if is_canonical_uuid(text) else {}
