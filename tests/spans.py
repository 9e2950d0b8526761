"""Spans as tests see them: recorded in memory, all of them."""

import contextlib
from collections.abc import Iterator

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased

from telemetry import tracing

CALLER = ("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
TRACE_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736
CALLER_ID = 0x00F067AA0BA902B7


class Recorded:
    """The spans that have ended, oldest first."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    @property
    def all(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    @property
    def names(self) -> list[str]:
        return [each.name for each in self.all]

    def named(self, name: str) -> list[ReadableSpan]:
        return [each for each in self.all if each.name == name]


@contextlib.contextmanager
def recorded(*, sampled: bool = True) -> Iterator[Recorded]:
    """Records spans meanwhile; without `sampled` only those of a trace that the caller has decided to record."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(ALWAYS_ON if sampled else ALWAYS_OFF), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.turn_on(provider.get_tracer("tests"), follows_parent=True)
    try:
        yield Recorded(exporter)
    finally:
        tracing.turn_off()


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent is not None else None


def linked_to(span: ReadableSpan) -> list[int]:
    return [each.context.span_id for each in span.links]
