"""A collector of OpenTelemetry spans: takes OTLP over HTTP, as protobuf, and keeps what it was sent."""

import contextlib
import gzip
import http.server
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Received:
    """A span, and the process that sent it."""

    def __init__(self, span: Span, service: str) -> None:
        self.service = service
        self.name = span.name
        self.kind = Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_")
        self.trace_id = span.trace_id.hex()
        self.span_id = span.span_id.hex()
        self.parent_id = span.parent_span_id.hex()
        self.links = [(each.trace_id.hex(), each.span_id.hex()) for each in span.links]
        self.attributes = _attributes(span.attributes)
        self.failed = span.status.code == span.status.STATUS_CODE_ERROR
        self.told = span.status.message, len(span.events)

    def __repr__(self) -> str:
        return f"{self.service}: {self.name} {self.attributes}"


def _attributes(attributes: Iterable[KeyValue]) -> dict[str, str | int]:
    return {
        each.key: each.value.string_value if each.value.HasField("string_value") else each.value.int_value
        for each in attributes
    }


class Collector:
    """Keeps spans in the order in which they came."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = str(_attributes(resource.resource.attributes)["service.name"])
            self.spans += [Received(span, service) for scope in resource.scope_spans for span in scope.spans]

    def of_trace(self, trace_id: str) -> list[Received]:
        return [each for each in self.spans if each.trace_id == trace_id]

    def below(self, trace_id: str, root: str) -> "list[Node]":
        """Returns the trace below the span `root`, and beside it what has a parent that is not there: nothing must."""
        spans = self.of_trace(trace_id)
        known = {root, *(each.span_id for each in spans)}
        children: dict[str, list[Received]] = defaultdict(list)
        for each in spans:
            children[each.parent_id if each.parent_id in known else ""].append(each)

        def nodes(parent: str) -> list[Node]:
            return [node(describe(each), *nodes(each.span_id)) for each in children[parent]]

        return [*nodes(root), *(node(f"without a parent: {text}", *below) for text, below in nodes(""))]


Node = tuple[str, tuple["Node", ...]]
"""A span and what is below it, siblings in the order of their texts."""


def node(text: str, *below: Node) -> Node:
    return text, tuple(sorted(below))


def drawn(nodes: Iterable[Node], depth: int = 0) -> list[str]:
    """Returns trees as indented lines, for a comparison that can be read when it fails."""
    return [line for text, below in sorted(nodes) for line in ("  " * depth + text, *drawn(below, depth + 1))]


def describe(span: Received) -> str:
    """Returns what tells a span from its siblings."""
    service = span.service.removeprefix("orderflow-")
    marks = f" attempt {span.attributes['orderflow.attempt']}" if "orderflow.attempt" in span.attributes else ""
    marks += f" failed {span.attributes['error.type']}" if span.failed else ""
    marks += " linked" * len(span.links)
    return f"{service}: {span.kind} {span.name}{marks}"


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """Serves on a free port of loopback meanwhile."""
    collector = Collector()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces", self.path
            assert self.headers["content-type"] == "application/x-protobuf"
            collector.take(body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        collector.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
