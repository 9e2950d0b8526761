"""An OrderService that answers as a test tells it to."""

from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from orderflow.orders.v1 import order_history_pb2, order_pb2, order_service_pb2, order_service_pb2_grpc

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass
class Seen:
    request: Message
    metadata: dict[str, Any]
    time_remaining: float | None


@dataclass
class Refusal:
    """A status as the server sends it; `metadata` is trailing metadata beside the details."""

    code: grpc.StatusCode
    message: str = "because"
    details: tuple[Message, ...] = ()
    metadata: Metadata = ()

    def status(self) -> status_pb2.Status:
        packed = []
        for detail in self.details:
            packed.append(any_pb2.Any())
            packed[-1].Pack(detail)
        return status_pb2.Status(code=self.code.value[0], message=self.message, details=packed)

    async def __call__(self, context: grpc.aio.ServicerContext) -> None:
        trailing = self.metadata
        if self.details:
            trailing += rpc_status.to_status(self.status()).trailing_metadata
        await context.abort(self.code, self.message, trailing)


def error_info(reason: str, domain: str = "orderflow", **metadata: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)


def bad_request(**violations: str) -> error_details_pb2.BadRequest:
    kind = error_details_pb2.BadRequest.FieldViolation
    return error_details_pb2.BadRequest(
        field_violations=[kind(field=name, description=text) for name, text in violations.items()]
    )


def retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    delay = Duration()
    delay.FromMilliseconds(int(seconds * 1000))
    return error_details_pb2.RetryInfo(retry_delay=delay)


Step = Callable[[grpc.aio.ServicerContext], Awaitable[None]]


LIFE = (order_pb2.ORDER_STATUS_CREATED, order_pb2.ORDER_STATUS_PROCESSING, order_pb2.ORDER_STATUS_PAID)


@dataclass
class ScriptedOrders(order_service_pb2_grpc.OrderServiceServicer):
    """Takes the next step of the script before each answer; without any left it answers."""

    script: deque[Step] = field(default_factory=deque)
    seen: list[Seen] = field(default_factory=list)
    refused: dict[str, deque[Refusal]] = field(default_factory=lambda: defaultdict(deque))
    """What becomes of orders in batches, by request_id and try."""
    stored: list[order_pb2.Order] = field(default_factory=list)
    """What there is to list, newest first."""
    found: dict[str, list[str]] = field(default_factory=dict)
    """The orders that an identifier leads to."""
    life: tuple[int, ...] = LIFE
    """The states that a watched order goes through, revisions 1, 2 ..."""
    stream_script: deque[Step] = field(default_factory=deque)
    """A step before each message of a watch and before its end."""

    async def CreateOrder(self, request, context):  # noqa: N802
        await self._step(request, context)
        return _created(request)

    async def BatchCreateOrders(self, request, context):  # noqa: N802
        await self._step(request, context)
        return order_service_pb2.BatchCreateOrdersResponse(
            results=[
                order_service_pb2.BatchCreateOrdersResult(error=self.refused[each.request_id].popleft().status())
                if self.refused[each.request_id]
                else order_service_pb2.BatchCreateOrdersResult(created=_created(each))
                for each in request.requests
            ]
        )

    async def CancelOrder(self, request, context):  # noqa: N802
        await self._step(request, context)
        order = order_pb2.Order(status=order_pb2.ORDER_STATUS_CANCELLED, failure_reason=request.reason)
        return _decided(order_service_pb2.CancelOrderResponse, request, order)

    async def ShipOrder(self, request, context):  # noqa: N802
        await self._step(request, context)
        shipment = order_pb2.Shipment(carrier=request.carrier, tracking_code=request.tracking_code)
        order = order_pb2.Order(status=order_pb2.ORDER_STATUS_SHIPPED, shipment=shipment)
        return _decided(order_service_pb2.ShipOrderResponse, request, order)

    async def CompleteOrder(self, request, context):  # noqa: N802
        await self._step(request, context)
        order = order_pb2.Order(status=order_pb2.ORDER_STATUS_COMPLETED)
        return _decided(order_service_pb2.CompleteOrderResponse, request, order)

    async def RefundOrder(self, request, context):  # noqa: N802
        await self._step(request, context)
        order = order_pb2.Order(status=order_pb2.ORDER_STATUS_REFUNDED, refunded=request.amount)
        return _decided(order_service_pb2.RefundOrderResponse, request, order)

    async def GetOrder(self, request, context):  # noqa: N802
        await self._step(request, context)
        return _found(request)

    async def BatchGetOrders(self, request, context):  # noqa: N802
        await self._step(request, context)
        return order_service_pb2.BatchGetOrdersResponse(orders=[_found(each) for each in request.requests])

    async def ListOrders(self, request, context):  # noqa: N802
        await self._step(request, context)
        start, end = _page(request, default=2)
        token = str(end) if end < len(self.stored) else ""
        return order_service_pb2.ListOrdersResponse(orders=self.stored[start:end], next_page_token=token)

    async def FindOrders(self, request, context):  # noqa: N802
        await self._step(request, context)
        kind = order_service_pb2.IDENTIFIER_KIND_GATEWAY
        return order_service_pb2.FindOrdersResponse(
            orders=[
                order_service_pb2.FoundOrder(order_id=order_id, kind=kind)
                for order_id in self.found.get(request.id, [])
            ]
        )

    async def ListOrderEvents(self, request, context):  # noqa: N802
        await self._step(request, context)
        kinds = ("ORDER_CREATED", "ORDER_PROCESSING", "NOTIFICATION_SENT", "ORDER_PAID", "DEAD_LETTER")
        start, end = _page(request, default=2)
        entries = [
            order_history_pb2.OrderHistoryEntry(entry_id=f"{request.order_id}/{kind}", type=kind) for kind in kinds
        ]
        for number, each in enumerate(entries):
            each.occur_time.FromJsonString(f"2026-07-01T09:12:0{number}.250Z")
        token = str(end) if end < len(kinds) else ""
        return order_service_pb2.ListOrderEventsResponse(entries=entries[start:end], next_page_token=token)

    async def WatchOrder(self, request, context):  # noqa: N802
        await self._step(request, context)
        seen = int(request.resume_token.removeprefix("token-") or 0)
        for revision in range(seen + 1, len(self.life) + 1):
            await self._stream_step(context)
            order = order_pb2.Order(order_id=request.order_id, status=self.life[revision - 1], revision=revision)
            order.update_time.FromJsonString(f"2026-07-01T09:12:0{revision}.250Z")
            yield order_service_pb2.WatchOrderResponse(order=order, resume_token=str(revision))
        await self._stream_step(context)

    async def _step(self, request: Message, context: grpc.aio.ServicerContext) -> None:
        self.seen.append(Seen(request, dict(context.invocation_metadata()), context.time_remaining()))
        if self.script:
            await self.script.popleft()(context)

    async def _stream_step(self, context: grpc.aio.ServicerContext) -> None:
        if self.stream_script:
            await self.stream_script.popleft()(context)


async def proceed(_context: grpc.aio.ServicerContext) -> None:
    """The step that does nothing."""


def _created(request):
    order_id = "" if request.validate_only else f"order-of-{request.request_id}"
    token = "" if request.validate_only else "token-1"
    order = order_pb2.Order(order_id=order_id, items=request.items, status=order_pb2.ORDER_STATUS_CREATED)
    return order_service_pb2.CreateOrderResponse(order=order, consistency_token=token)


def _decided(response, request, order):
    order.order_id = request.order_id
    return response(order=order, consistency_token="token-2")


def _found(request):
    order = order_pb2.Order(order_id=request.order_id, status=order_pb2.ORDER_STATUS_PAID)
    return order_service_pb2.GetOrderResponse(order=order, consistency_token=request.consistency_token)


def _page(request, default: int) -> tuple[int, int]:
    start = int(request.page_token or 0)
    return start, start + (request.page_size or default)


@asynccontextmanager
async def serving(
    orders: ScriptedOrders, address: str = "127.0.0.1:0", credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[str]:
    """Serves on loopback, on a free port unless told, and gives the address."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    order_service_pb2_grpc.add_OrderServiceServicer_to_server(orders, server)
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
