"""Traces: the W3C context that every call and record carries, and the spans that are recorded of them.

Spans are off unless telemetry.otlp turned them on. The context travels all the same, so that a caller's trace finds
every record and every log line.
"""

import contextlib
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from domain.failures import Failure

Headers = Sequence[tuple[str, bytes | None]]
Attributes = Mapping[str, str | int]

_FIELDS = ("traceparent", "tracestate", "baggage")
_W3C: Final = CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])
_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")

NO_TRACE: Final = "0" * 32
"""What `trace_id` returns outside a trace."""

_tracer: trace.Tracer | None = None
_follows_parent = True


def turn_on(tracer: trace.Tracer, *, follows_parent: bool) -> None:
    """Records spans with the tracer. `follows_parent`: it never samples what the caller's trace does not."""
    global _tracer, _follows_parent
    _tracer, _follows_parent = tracer, follows_parent


def turn_off() -> None:
    """Records no spans from now on."""
    global _tracer
    _tracer = None


def is_on() -> bool:
    """Whether spans are recorded at all."""
    return _tracer is not None


# -- context -----------------------------------------------------------------------------------------------------------


_told: tuple[Context | None, list[tuple[str, bytes | None]]] = None, []
"""The context that headers were made of last, and they: all orders of a batch are in one. Contexts do not change."""


def context_headers(span: "Span") -> list[tuple[str, bytes | None]]:
    """Returns the context of a span as headers; where none is recorded, the current one."""
    context = span.context or otel_context.get_current()
    global _told
    if context is not _told[0]:
        _told = context, _headers(context)
    return [*_told[1]]


def _headers(context: Context) -> list[tuple[str, bytes | None]]:
    own = trace.get_current_span(context).get_span_context()
    if len(context) == 1 and own.is_valid and not own.trace_state:  # every record comes by here: no more than it takes
        return [("traceparent", _traceparent(own).encode())]
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, context=context)
    return [(name, value.encode("ascii", "replace")) for name, value in carrier.items()]


def continued(headers: Headers) -> "contextlib.AbstractContextManager[None]":
    """Makes the trace context in `headers` the current one meanwhile.

    Where there is none a new trace is begun: by the next span, or here if spans are off.
    """
    return _Attached(_extracted(headers))


class _Attached:
    """Makes a context the current one meanwhile."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: Context) -> None:
        self._context = context

    def __enter__(self) -> None:
        self._token = otel_context.attach(self._context)

    def __exit__(self, *_: object) -> None:
        otel_context.detach(self._token)


def trace_id() -> str:
    """Returns the current trace's id, 32 hexadecimal digits; all zero outside a trace."""
    return trace.format_trace_id(trace.get_current_span().get_span_context().trace_id)


def trace_id_in(headers: Headers) -> str | None:
    """Returns the id of the trace that the headers are of, 32 hexadecimal digits; None if they are of none."""
    told = next((value for name, value in headers if name == "traceparent" and value is not None), b"")
    found = _span_context(told.decode("ascii", "replace"))
    return trace.format_trace_id(found.trace_id) if found is not None else None


def _extracted(headers: Headers) -> Context:
    carrier = {k: v.decode("ascii", "replace") for k, v in headers if k in _FIELDS and v is not None}
    if len(carrier) == 1 and (told := _span_context(carrier.get("traceparent", ""))) is not None:
        return trace.set_span_in_context(trace.NonRecordingSpan(told), Context())
    context = _W3C.extract(carrier, Context()) if carrier else Context()
    if _tracer is None and not trace.get_current_span(context).get_span_context().is_valid:
        context = trace.set_span_in_context(trace.NonRecordingSpan(_new_trace()), context)
    return context


def _new_trace() -> trace.SpanContext:
    # Identifiers, not secrets: the fast generator will do. Not sampled, since nothing records it.
    return trace.SpanContext(
        trace_id=random.getrandbits(128) or 1,
        span_id=random.getrandbits(64) or 1,
        is_remote=False,
    )


def may_record() -> bool:
    """Whether a span that is begun now can be recorded: they are on, and the current trace is not sampled out."""
    return _tracer is not None and _samples(otel_context.get_current())


def _samples(parent: Context) -> bool:
    """Whether the sampler is to be asked: where it follows the parent, it is known what it would say to some."""
    if not _follows_parent:
        return True
    above = trace.get_current_span(parent).get_span_context()
    return bool(above.trace_flags.sampled) or not above.is_valid


# -- spans -------------------------------------------------------------------------------------------------------------


class Span:
    """A span, or, where none is recorded, nothing that takes the same calls."""

    __slots__ = ("_span",)

    def __init__(self, span: trace.Span | None) -> None:
        self._span = span

    @property
    def context(self) -> Context | None:
        """What is sent along so that others become its children. None: the current context, whatever it is."""
        return trace.set_span_in_context(self._span) if self._span is not None else None

    @property
    def traceparent(self) -> str:
        """Returns how a link names it; empty if it is not recorded."""
        if self._span is None or not self._span.is_recording():
            return ""
        return _traceparent(self._span.get_span_context())

    def set(self, name: str, value: str | int) -> None:
        """Sets an attribute. Never personal data."""
        if self._span is not None:
            self._span.set_attribute(name, value)

    def failed(self, error_type: str) -> None:
        """Says that what it stands for failed, with a class of errors and no text, which may hold personal data."""
        if self._span is not None:
            self._span.set_attribute("error.type", error_type)
            self._span.set_status(trace.StatusCode.ERROR)

    def end(self) -> None:
        """Ends it. Without, it is never recorded."""
        if self._span is not None:
            self._span.end()

    def current(self) -> "contextlib.AbstractContextManager[None]":
        """Makes it the current one meanwhile. Must not span a `yield` of an asynchronous generator."""
        return _Attached(trace.set_span_in_context(self._span)) if self._span is not None else contextlib.nullcontext()


NOTHING: Final = Span(None)
"""Where no span is recorded."""

NO_SPAN: Final = contextlib.nullcontext(NOTHING)
"""Runs a body that is not recorded."""


def begin(
    name: str,
    kind: SpanKind,
    attributes: Attributes,
    *,
    headers: Headers | None = None,
    links: Iterable[str] = (),
    start_time: int | None = None,
) -> Span:
    """Begins a span: a child of the context in `headers`, or else of the current one; the first of a trace without.

    `links` are traceparents; what is none is left out. `start_time` is in nanoseconds since 1970, if it is not now.
    """
    if _tracer is None:
        return NOTHING
    parent = _extracted(headers) if headers is not None else otel_context.get_current()
    if not _samples(parent):
        return NOTHING
    linked = [trace.Link(each) for each in map(_span_context, links) if each is not None]
    return Span(
        _tracer.start_span(name, context=parent, kind=kind, attributes=attributes, links=linked, start_time=start_time)
    )


@contextlib.contextmanager
def ended(span: Span) -> Iterator[Span]:
    """Ends the span with the body. An exception of the body fails it."""
    try:
        yield span
    except BaseException as error:
        span.failed(error.error_class if isinstance(error, Failure) else type(error).__qualname__)
        raise
    finally:
        span.end()


def client(name: str, attributes: Attributes) -> "contextlib.AbstractContextManager[Span]":
    """Runs the body in a span of a call to somebody else, where there is a span that it belongs to."""
    if _tracer is None or not trace.get_current_span().is_recording():
        return NO_SPAN
    return ended(begin(name, SpanKind.CLIENT, attributes))


def exemplar() -> dict[str, str] | None:
    """Returns what a histogram shows an example of its values by: the current trace, if it is recorded."""
    if _tracer is None or not trace.get_current_span().is_recording():
        return None
    return {"trace_id": trace_id()}


def _traceparent(own: trace.SpanContext) -> str:
    return f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"


def _span_context(traceparent: str) -> trace.SpanContext | None:
    told = _TRACEPARENT.fullmatch(traceparent)
    if told is None:
        return None
    context = trace.SpanContext(
        int(told[1], 16), int(told[2], 16), is_remote=True, trace_flags=trace.TraceFlags(int(told[3], 16))
    )
    return context if context.is_valid else None
