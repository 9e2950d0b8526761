"""Sends spans to a collector by OTLP, as OpenTelemetry's own environment variables say. Off where they name none."""

import contextlib
import importlib.metadata
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from telemetry import tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

DEFAULT_SHARE: Final = 0.01
"""Share of traces recorded of those that no caller has decided on, unless OTEL_TRACES_SAMPLER says otherwise."""

_FLUSH_SECONDS: Final = 5.0


class OtlpError(Exception):
    """An OTEL_* variable asks for what there is not. The text names it."""


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether the variables ask for traces.

    Raises:
        OtlpError: for another exporter than OTLP.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if exporter not in ("otlp", "none"):
        raise OtlpError(f"OTEL_TRACES_EXPORTER: {exporter!r} is not one of: otlp, none")
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return exporter == "otlp" and any(environment.get(name, "").strip() for name in endpoints)


@contextlib.contextmanager
def exporting(process: str) -> Iterator[None]:
    """Records the process's spans meanwhile, if wanted, and in the end sends what is left, for 5 s at the most.

    Raises:
        OtlpError: an OTEL_* variable asks for what there is not.
    """
    if not is_wanted(os.environ):
        yield
        return
    # Imported where it is needed: it takes a while, and most of what is imported does nothing for who has it off.
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased

    provider = _provider(process)
    provider.add_span_processor(BatchSpanProcessor(_exporter(os.environ)))
    tracer = provider.get_tracer("orderflow", importlib.metadata.version("orderflow-server"))
    tracing.turn_on(tracer, follows_parent=isinstance(provider.sampler, ParentBased))
    try:
        yield
    finally:
        tracing.turn_off()
        # A thread that nobody waits for any longer: a collector that does not answer must not hold the process.
        flushing = threading.Thread(target=provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(_FLUSH_SECONDS)


def _provider(process: str) -> "TracerProvider":
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    attributes = {
        "service.version": importlib.metadata.version("orderflow-server"),
        "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
    }
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        attributes["service.name"] = f"orderflow-{process}"
    # Without one the SDK reads OTEL_TRACES_SAMPLER by itself.
    sampler = None if os.environ.get("OTEL_TRACES_SAMPLER") else ParentBasedTraceIdRatio(DEFAULT_SHARE)
    return TracerProvider(sampler=sampler, resource=Resource.create(attributes), shutdown_on_exit=False)


def _exporter(environment: Mapping[str, str]) -> "SpanExporter":
    protocol = (
        environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "").strip()
        or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL", "").strip()
        or "http/protobuf"
    )
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        return HttpExporter()
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter()
    raise OtlpError(f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol!r} is not one of: http/protobuf, grpc")
