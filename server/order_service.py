"""The OrderService: each method is one line to the part that does it. Holds no state."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from orderflow.orders.v1 import order_service_pb2_grpc
from orderflow.orders.v1.order_service_pb2 import (
    BatchCreateOrdersRequest,
    BatchCreateOrdersResponse,
    BatchGetOrdersRequest,
    BatchGetOrdersResponse,
    CreateOrderRequest,
    CreateOrderResponse,
    GetOrderRequest,
    GetOrderResponse,
    ListOrderEventsRequest,
    ListOrderEventsResponse,
    ListOrdersRequest,
    ListOrdersResponse,
    WatchOrderRequest,
    WatchOrderResponse,
)
from server.order_intake import OrderIntake
from server.order_queries import OrderQueries
from server.order_watches import OrderWatches

if TYPE_CHECKING:
    from server.calls import Context


class OrderService(order_service_pb2_grpc.OrderServiceServicer):
    """Implements orderflow.orders.v1.OrderService. Methods raise CallError; an interceptor turns it into a status."""

    def __init__(self, *, intake: OrderIntake, queries: OrderQueries, watches: OrderWatches) -> None:
        """The parts are given."""
        self._intake = intake
        self._queries = queries
        self._watches = watches

    async def CreateOrder(self, request: CreateOrderRequest, context: "Context") -> CreateOrderResponse:  # noqa: N802
        """Accepts an order; OK means that it is durable."""
        return await self._intake.create(request, context)

    async def BatchCreateOrders(  # noqa: N802
        self, request: BatchCreateOrdersRequest, context: "Context"
    ) -> BatchCreateOrdersResponse:
        """Accepts many orders, each with its own result."""
        return await self._intake.create_batch(request, context)

    async def GetOrder(self, request: GetOrderRequest, context: "Context") -> GetOrderResponse:  # noqa: N802
        """Returns an order, no older than the token says."""
        return await self._queries.get(request, context)

    async def BatchGetOrders(self, request: BatchGetOrdersRequest, context: "Context") -> BatchGetOrdersResponse:  # noqa: N802
        """Returns many orders, all or none."""
        return await self._queries.get_batch(request, context)

    async def ListOrders(self, request: ListOrdersRequest, context: "Context") -> ListOrdersResponse:  # noqa: N802
        """Lists orders, newest first."""
        return await self._queries.list(request, context)

    async def ListOrderEvents(  # noqa: N802
        self, request: ListOrderEventsRequest, context: "Context"
    ) -> ListOrderEventsResponse:
        """Lists what happened to an order."""
        return await self._queries.history(request, context)

    async def WatchOrder(self, request: WatchOrderRequest, context: "Context") -> AsyncIterator[WatchOrderResponse]:  # noqa: N802
        """Follows an order until it is settled."""
        async for response in self._watches.watch(request, context):
            yield response
