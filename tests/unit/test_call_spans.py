"""A call's span, over a real channel: whose child it is, what it says, and that a stream's is that of its opening."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import REGISTRY

from domain.failures import DependencyDown
from messaging import envelope
from orderflow.orders.v1 import order_service_pb2_grpc
from orderflow.orders.v1.order_service_pb2 import (
    CreateOrderRequest,
    CreateOrderResponse,
    GetOrderRequest,
    GetOrderResponse,
    WatchOrderRequest,
    WatchOrderResponse,
)
from server import errors
from server.interceptors import CallInterceptor
from tests.builders import order_created
from tests.spans import CALLER_ID, TRACE_ID, id_of, parent_of, recorded

LOOPBACK = (("grpc.enable_http_proxy", 0),)
TRACEPARENT = (("traceparent", f"00-{TRACE_ID:032x}-{CALLER_ID:016x}-01"),)
SERVICE = "orderflow.orders.v1.OrderService"


class Service(order_service_pb2_grpc.OrderServiceServicer):
    """Sends a record where it is asked to create, fails where it is asked to get, and watches twice."""

    def __init__(self) -> None:
        self.failure: Exception = errors.order_not_found()
        self.headers: list[dict[str, bytes | None]] = []

    def send(self) -> None:
        record = envelope.encode(order_created())
        record.span.end()
        self.headers.append(dict(record.headers))

    async def CreateOrder(self, request: CreateOrderRequest, context: Any) -> CreateOrderResponse:  # noqa: N802
        self.send()
        return CreateOrderResponse()

    async def GetOrder(self, request: GetOrderRequest, context: Any) -> GetOrderResponse:  # noqa: N802
        raise self.failure

    async def WatchOrder(self, request: WatchOrderRequest, context: Any) -> AsyncIterator[WatchOrderResponse]:  # noqa: N802
        for _ in range(2):
            self.send()
            yield WatchOrderResponse()


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[tuple[Service, Any]]:
    service = Service()
    server = grpc.aio.server(interceptors=(CallInterceptor(),))
    order_service_pb2_grpc.add_OrderServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=LOOPBACK) as channel:
            yield service, order_service_pb2_grpc.OrderServiceStub(channel)
    finally:
        await server.stop(1)


async def test_a_call_is_the_callers_child_and_the_parent_of_what_it_sends() -> None:
    with recorded() as seen:
        async with served() as (_, stub):
            await stub.CreateOrder(CreateOrderRequest(), metadata=TRACEPARENT)
    sent, call = seen.all
    assert (call.name, call.kind, parent_of(call)) == (f"{SERVICE}/CreateOrder", SpanKind.SERVER, CALLER_ID)
    assert parent_of(sent) == id_of(call)
    assert dict(call.attributes or {}) == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{SERVICE}/CreateOrder",
        "rpc.response.status_code": "OK",
    }


async def test_a_call_without_a_trace_begins_one() -> None:
    with recorded() as seen:
        async with served() as (_, stub):
            await stub.CreateOrder(CreateOrderRequest())
    sent, call = seen.all
    assert call.parent is None
    assert sent.context is not None
    assert call.context is not None
    assert sent.context.trace_id == call.context.trace_id != 0


@pytest.mark.parametrize(
    ("failure", "status", "error_type"),
    [
        (errors.order_not_found(), "NOT_FOUND", None),
        (DependencyDown("postgres", "ConnectionRefusedError"), "UNAVAILABLE", "UNAVAILABLE"),
        (ValueError("carla.customer@example.com"), "INTERNAL", "INTERNAL"),
    ],
)
async def test_only_what_the_server_is_to_blame_for_is_an_error(
    failure: Exception, status: str, error_type: str | None
) -> None:
    labels = {"rpc_system_name": "grpc", "rpc_method": f"{SERVICE}/GetOrder", "rpc_status_code": status}
    labels["error_type"] = error_type or ""
    before = REGISTRY.get_sample_value("rpc_server_call_duration_seconds_count", labels) or 0
    with recorded() as seen:
        async with served() as (service, stub):
            service.failure = failure
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.GetOrder(GetOrderRequest())
    [call] = seen.all
    attributes = dict(call.attributes or {})
    assert (attributes["rpc.response.status_code"], attributes.get("error.type")) == (status, error_type)
    assert (call.status.status_code == StatusCode.ERROR) == (error_type is not None)
    assert call.status.description is None
    assert REGISTRY.get_sample_value("rpc_server_call_duration_seconds_count", labels) == before + 1


async def test_a_streams_span_is_that_of_its_opening_and_later_steps_are_its_children() -> None:
    with recorded() as seen:
        async with served() as (_, stub):
            answers = stub.WatchOrder(WatchOrderRequest(), metadata=TRACEPARENT)
            assert await answers.read() is not grpc.aio.EOF
            assert await answers.read() is not grpc.aio.EOF
            assert await answers.read() is grpc.aio.EOF
    [call] = seen.named(f"{SERVICE}/WatchOrder")
    assert parent_of(call) == CALLER_ID
    assert [parent_of(each) for each in seen.named("send orders")] == [id_of(call)] * 2
    assert seen.names.index(call.name) == 1, "it ended with the first answer"


async def test_off_the_callers_context_travels_as_it_is() -> None:
    async with served() as (service, stub):
        await stub.CreateOrder(CreateOrderRequest(), metadata=TRACEPARENT)
        await stub.WatchOrder(WatchOrderRequest(), metadata=TRACEPARENT).read()
    assert [each["traceparent"] for each in service.headers[:2]] == [TRACEPARENT[0][1].encode()] * 2
