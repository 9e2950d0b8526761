"""What goes along with each call: the caller's metadata, its token, its trace."""

from __future__ import annotations

from collections.abc import Sequence

try:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:  # OpenTelemetry is the calling service's choice
    _PROPAGATOR = None
else:
    _PROPAGATOR = TraceContextTextMapPropagator()

Metadata = Sequence[tuple[str, str | bytes]]


def call_metadata(given: Metadata, token: str | None) -> tuple[tuple[str, str | bytes], ...]:
    """Returns a call's metadata: what the caller gives, and beside it the token and the current W3C trace context."""
    added: dict[str, str] = {}
    if _PROPAGATOR is not None:
        _PROPAGATOR.inject(added)
    if token is not None:
        added["authorization"] = f"Bearer {token}"
    names = {name for name, _ in given}
    return (*given, *((name, value) for name, value in added.items() if name not in names))
