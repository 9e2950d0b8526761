"""Spans leave the process by OTLP, as OpenTelemetry's own variables say, and only if they say so."""

import concurrent.futures
import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.trace import SpanKind

from devstack.ports import free_ports
from telemetry import otlp, tracing
from tests.collector import Collector, collecting
from tests.spans import CALLER, TRACE_ID

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import os

    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    yield
    assert not tracing.is_on()


def one_span(name: str = "a call") -> None:
    with tracing.continued([CALLER]):
        tracing.begin(name, SpanKind.SERVER, {}).end()


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({_ENDPOINT: ""}, False),
        ({_ENDPOINT: "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({_ENDPOINT: "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({_ENDPOINT: "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({_ENDPOINT: "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "TRUE"}, False),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:4318"}, False),
    ],
)
def test_spans_are_on_where_an_endpoint_is_named(variables: dict[str, str], wanted: bool) -> None:
    assert otlp.is_wanted(variables) == wanted


def test_what_there_is_not_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(otlp.OtlpError, match="OTEL_TRACES_EXPORTER: 'zipkin'"):
        otlp.is_wanted({_ENDPOINT: "x", "OTEL_TRACES_EXPORTER": "zipkin"})
    monkeypatch.setenv(_ENDPOINT, "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(otlp.OtlpError, match="OTEL_EXPORTER_OTLP_PROTOCOL: 'http/json'"), otlp.exporting("server"):
        pass


def test_off_nothing_is_recorded() -> None:
    with otlp.exporting("server"):
        assert not tracing.is_on()


def test_the_end_sends_what_is_left_with_who_sent_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv(_ENDPOINT, collector.endpoint)
        with otlp.exporting("payment-processor"):
            one_span()
        assert [(each.service, each.name, each.trace_id) for each in collector.spans] == [
            ("orderflow-payment-processor", "a call", f"{TRACE_ID:032x}")
        ]


def test_the_name_of_the_service_may_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv(_ENDPOINT, collector.endpoint)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-payments")
        with otlp.exporting("payment-processor"):
            one_span()
        monkeypatch.delenv("OTEL_SERVICE_NAME")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.name=other")
        with otlp.exporting("payment-processor"):
            one_span()
        assert [each.service for each in collector.spans] == ["shop-payments", "other"]


def traces(collector: Collector, count: int) -> int:
    """Begins so many traces and returns how many are recorded."""
    with otlp.exporting("server"):
        for _ in range(count):
            with tracing.continued([]):
                tracing.begin("a call", SpanKind.SERVER, {}).end()
    return len(collector.spans)


def test_of_what_no_caller_decides_a_hundredth_is_recorded_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with collecting() as collector:
        monkeypatch.setenv(_ENDPOINT, collector.endpoint)
        assert 10 < traces(collector, 4_000) < 100
    with collecting() as collector:
        monkeypatch.setenv(_ENDPOINT, collector.endpoint)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
        assert traces(collector, 100) == 100
    with collecting() as collector:
        monkeypatch.setenv(_ENDPOINT, collector.endpoint)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
        assert traces(collector, 100) == 0


def test_by_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[trace_service_pb2.ExportTraceServiceRequest] = []

    class Service(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
            received.append(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            monkeypatch.setenv(_ENDPOINT, f"http://127.0.0.1:{port}")
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
            with otlp.exporting("server"):
                one_span()
        finally:
            server.stop(None).wait()
    [request] = received
    assert request.resource_spans[0].scope_spans[0].spans[0].name == "a call"


def test_a_collector_that_is_away_does_not_hold_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    [port] = free_ports(1)
    monkeypatch.setenv(_ENDPOINT, f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "6")
    monkeypatch.setattr(otlp, "_FLUSH_SECONDS", 0.1)
    before = set(threading.enumerate())
    began = time.monotonic()
    with otlp.exporting("server"):
        one_span()
    assert time.monotonic() - began < 4
    for thread in set(threading.enumerate()) - before:  # a process would end now; the next test must not meet them
        thread.join(60)
        assert not thread.is_alive()
