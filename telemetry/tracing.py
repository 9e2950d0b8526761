"""W3C trace context: accepted from the caller, carried in every Kafka header.

Without an OpenTelemetry SDK there are no spans; the context still travels, so that a caller's trace finds every record.
"""

import contextlib
import random
from collections.abc import Iterator, Sequence

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace

Headers = Sequence[tuple[str, bytes | None]]

_FIELDS = ("traceparent", "tracestate", "baggage")


def inject(headers: Headers) -> list[tuple[str, bytes | None]]:
    """Returns the headers with the current trace context in place of any that they had."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return [h for h in headers if h[0] not in _FIELDS] + [(k, v.encode("ascii", "replace")) for k, v in carrier.items()]


@contextlib.contextmanager
def continued(headers: Headers) -> Iterator[None]:
    """Makes the trace context in `headers` the current one; a new trace is begun where there is none."""
    carrier = {k: v.decode("ascii", "replace") for k, v in headers if k in _FIELDS and v is not None}
    context = propagate.extract(carrier)
    if not trace.get_current_span(context).get_span_context().is_valid:
        context = trace.set_span_in_context(trace.NonRecordingSpan(_new_trace()), context)
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)


def trace_id() -> str:
    """Returns the current trace's id, 32 hexadecimal digits; all zero outside a trace."""
    return trace.format_trace_id(trace.get_current_span().get_span_context().trace_id)


def _new_trace() -> trace.SpanContext:
    # Identifiers, not secrets: the fast generator will do. Not sampled, since nothing records it.
    return trace.SpanContext(
        trace_id=random.getrandbits(128) or 1,
        span_id=random.getrandbits(64) or 1,
        is_remote=False,
    )
