"""Limits on what callers have of a server at once, over a real channel: refused at once, told why, given back."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from orderflow.orders.v1 import order_service_pb2_grpc
from orderflow.orders.v1.order_service_pb2 import (
    BatchCreateOrdersRequest,
    BatchCreateOrdersResponse,
    CreateOrderRequest,
    CreateOrderResponse,
    GetOrderRequest,
    GetOrderResponse,
    WatchOrderRequest,
    WatchOrderResponse,
)
from server.admission import Admission
from server.interceptors import CallInterceptor
from settings import ServerSettings
from telemetry import metrics
from telemetry.health import Health
from tests import engines

LOOPBACK = (("grpc.enable_http_proxy", 0),)


class Held(order_service_pb2_grpc.OrderServiceServicer):
    """Answers when the test lets it."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.under_way = 0

    async def CreateOrder(self, request: CreateOrderRequest, context: Any) -> CreateOrderResponse:  # noqa: N802
        self.under_way += 1
        try:
            await self.let_go.wait()
        finally:
            self.under_way -= 1
        return CreateOrderResponse()

    async def BatchCreateOrders(self, request: BatchCreateOrdersRequest, context: Any) -> BatchCreateOrdersResponse:  # noqa: N802
        return BatchCreateOrdersResponse()

    async def GetOrder(self, request: GetOrderRequest, context: Any) -> GetOrderResponse:  # noqa: N802
        self.under_way += 1
        try:
            await self.let_go.wait()
        finally:
            self.under_way -= 1
        return GetOrderResponse()

    async def WatchOrder(self, request: WatchOrderRequest, context: Any) -> AsyncIterator[WatchOrderResponse]:  # noqa: N802
        self.under_way += 1
        try:
            yield WatchOrderResponse()
            await self.let_go.wait()
        finally:
            self.under_way -= 1


class Served:
    def __init__(self, address: str, channel: grpc.aio.Channel, service: Held) -> None:
        self.address = address
        self.channel = channel
        self.service = service
        self.stub = order_service_pb2_grpc.OrderServiceStub(channel)

    async def under_way(self, count: int) -> None:
        await engines.eventually(lambda: self.service.under_way == count, f"{count} calls are under way")


@contextlib.asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[Served]:
    service = Held()
    server = grpc.aio.server(interceptors=(CallInterceptor(), Admission(ServerSettings(**settings))))
    order_service_pb2_grpc.add_OrderServiceServicer_to_server(service, server)
    health = Health((), lambda: True)
    health.add_to(server)
    health._servicer.tell({"": health_pb2.HealthCheckResponse.SERVING})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=LOOPBACK) as channel:
            yield Served(f"127.0.0.1:{port}", channel, service)
    finally:
        service.let_go.set()
        await server.stop(1)


async def refusal(call: Any) -> dict[str, Any]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return told(caught.value)


def told(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    status = rpc_status.from_call(error)
    assert status is not None
    found: dict[str, Any] = {"code": error.code()}
    for packed in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.QuotaFailure, error_details_pb2.RetryInfo):
            if packed.Is(kind.DESCRIPTOR):
                found[kind.__name__] = detail = kind()
                packed.Unpack(detail)
    trailers = dict(error.trailing_metadata() or ())
    found["pushback"] = trailers.get("grpc-retry-pushback-ms")
    found["reason"] = found["ErrorInfo"].reason
    found["outcome"] = found["ErrorInfo"].metadata.get("outcome", "")
    return found


def shed(reason: str) -> float:
    return metrics.SHED.labels(reason)._value.get()


async def test_calls_over_the_limit_are_refused_at_once_and_those_under_way_end_well() -> None:
    async with served(max_concurrent_calls=2) as server:
        before = shed("TOO_MANY_CALLS")
        let_in = [asyncio.ensure_future(server.stub.CreateOrder(CreateOrderRequest())) for _ in range(2)]
        await server.under_way(2)

        refused = await refusal(server.stub.CreateOrder(CreateOrderRequest(), timeout=5))
        assert refused["code"] is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (refused["reason"], refused["outcome"]) == ("TOO_MANY_CALLS", "NOT_ACCEPTED")
        assert refused["RetryInfo"].retry_delay.ToMilliseconds() == 500
        assert refused["pushback"] == "500"
        assert "2" in refused["QuotaFailure"].violations[0].description
        assert shed("TOO_MANY_CALLS") == before + 1

        let_in += [asyncio.ensure_future(server.stub.GetOrder(GetOrderRequest())) for _ in range(2)]
        await server.under_way(4)  # reads are counted apart: those that wait leave room for orders, and the reverse
        read = await refusal(server.stub.GetOrder(GetOrderRequest(), timeout=5))
        assert (read["reason"], read["outcome"]) == ("TOO_MANY_CALLS", "")
        assert shed("TOO_MANY_CALLS") == before + 2

        server.service.let_go.set()
        await asyncio.gather(*let_in)
        await server.stub.CreateOrder(CreateOrderRequest(), timeout=5)


async def test_a_burst_does_not_slip_past_the_limit() -> None:
    async with served(max_concurrent_calls=10) as server:
        burst = [asyncio.ensure_future(server.stub.CreateOrder(CreateOrderRequest())) for _ in range(200)]
        await engines.eventually(lambda: sum(each.done() for each in burst) == 190, "190 are refused")
        assert server.service.under_way == 10
        server.service.let_go.set()
        await asyncio.gather(*burst, return_exceptions=True)


async def test_a_call_that_its_caller_gives_up_makes_room() -> None:
    async with served(max_concurrent_calls=1) as server:
        call = server.stub.CreateOrder(CreateOrderRequest())
        await server.under_way(1)
        call.cancel()
        await server.under_way(0)
        server.service.let_go.set()
        await server.stub.CreateOrder(CreateOrderRequest(), timeout=5)


async def test_a_repeat_that_is_refused_does_not_say_that_nothing_was_accepted() -> None:
    retries = {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 2,
                    "initialBackoff": "0.01s",
                    "maxBackoff": "0.01s",
                    "backoffMultiplier": 1,
                    "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
                },
            }
        ]
    }
    async with served(max_concurrent_calls=1) as server:
        call = server.stub.CreateOrder(CreateOrderRequest())
        await server.under_way(1)
        options = (*LOOPBACK, ("grpc.service_config", json.dumps(retries)))
        async with grpc.aio.insecure_channel(server.address, options=options) as channel:
            stub = order_service_pb2_grpc.OrderServiceStub(channel)
            before = shed("TOO_MANY_CALLS")
            refused = await refusal(stub.CreateOrder(CreateOrderRequest(), timeout=5))
        assert shed("TOO_MANY_CALLS") == before + 2
        assert refused["outcome"] == "UNKNOWN"
        call.cancel()


async def test_open_streams_are_limited_and_given_back() -> None:
    async with served(max_streams=3, max_streams_per_caller=2, max_concurrent_calls=1) as server:
        streams = [server.stub.WatchOrder(WatchOrderRequest()) for _ in range(2)]
        for stream in streams:
            await stream.read()
        refused = await refusal(server.stub.WatchOrder(WatchOrderRequest(), timeout=5).read())
        assert refused["code"] is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (refused["reason"], refused["outcome"]) == ("TOO_MANY_STREAMS", "")
        assert "each caller" in refused["QuotaFailure"].violations[0].description
        assert refused["pushback"] == "1000"
        call = server.stub.CreateOrder(CreateOrderRequest(), timeout=5)  # streams take no room from calls
        await server.under_way(3)

        call.cancel()
        streams[0].cancel()
        await server.under_way(1)
        again = server.stub.WatchOrder(WatchOrderRequest())
        await again.read()
        server.service.let_go.set()
        assert await again.read() == grpc.aio.EOF


async def test_the_server_limits_streams_of_all_callers() -> None:
    async with served(max_streams=1, max_streams_per_caller=2) as server:
        await server.stub.WatchOrder(WatchOrderRequest()).read()
        refused = await refusal(server.stub.WatchOrder(WatchOrderRequest(), timeout=5).read())
        assert "each caller" not in refused["QuotaFailure"].violations[0].description


async def test_the_rate_of_a_caller_counts_each_order_of_a_batch() -> None:
    # A window of a day, so that the time a test takes frees nothing: windows begin by the clock, not with the test.
    async with served(rate_limit="10/day") as server:
        server.service.let_go.set()
        batch = BatchCreateOrdersRequest(requests=[CreateOrderRequest()] * 7)
        await server.stub.CreateOrder(CreateOrderRequest(), timeout=5)
        await server.stub.BatchCreateOrders(batch, timeout=5)
        refused = await refusal(server.stub.BatchCreateOrders(batch, timeout=5))
        assert refused["code"] is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (refused["reason"], refused["outcome"]) == ("RATE_LIMITED", "NOT_ACCEPTED")
        assert "10/day" in refused["QuotaFailure"].violations[0].description
        assert 0 < refused["RetryInfo"].retry_delay.ToMilliseconds() <= 86_400_000
        assert refused["pushback"] == "-1", "the deadline of the call comes first"
        for _ in range(2):  # what was refused has cost nothing
            await server.stub.CreateOrder(CreateOrderRequest(), timeout=5)
        assert (await refusal(server.stub.GetOrder(GetOrderRequest(), timeout=5)))["outcome"] == ""
        # Nothing is left, so this one is not even parsed.
        raw = server.channel.unary_unary("/orderflow.orders.v1.OrderService/BatchCreateOrders")
        assert (await refusal(raw(b"\xff", timeout=5)))["reason"] == "RATE_LIMITED"


async def test_a_batch_that_no_wait_would_let_in_is_told_so() -> None:
    async with served(rate_limit="10/second") as server:
        batch = BatchCreateOrdersRequest(requests=[CreateOrderRequest()] * 11)
        refused = await refusal(server.stub.BatchCreateOrders(batch, timeout=5))
        assert refused["reason"] == "RATE_LIMITED"
        assert "RetryInfo" not in refused
        assert refused["pushback"] is None


async def test_bytes_that_are_no_message_are_the_callers_fault() -> None:
    async with served() as server:
        raw = server.channel.unary_unary("/orderflow.orders.v1.OrderService/CreateOrder")
        refused = await refusal(raw(b"\xff\xff", timeout=5))
        assert refused["code"] is grpc.StatusCode.INVALID_ARGUMENT
        assert (refused["reason"], refused["outcome"]) == ("UNDECODABLE", "NOT_ACCEPTED")


async def test_health_is_never_limited() -> None:
    async with served(max_concurrent_calls=1, rate_limit="1/hour") as server:
        call = server.stub.CreateOrder(CreateOrderRequest())
        await server.under_way(1)
        health = health_pb2_grpc.HealthStub(server.channel)
        for _ in range(20):
            answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        call.cancel()
