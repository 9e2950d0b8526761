"""The OrderService: each method is one line to the part that does it. Holds no state."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from orderflow.orders.v1 import order_service_pb2_grpc
from orderflow.orders.v1.order_service_pb2 import (
    BatchCreateOrdersRequest,
    BatchCreateOrdersResponse,
    BatchGetOrdersRequest,
    BatchGetOrdersResponse,
    CancelOrderRequest,
    CancelOrderResponse,
    CompleteOrderRequest,
    CompleteOrderResponse,
    CreateOrderRequest,
    CreateOrderResponse,
    FindOrdersRequest,
    FindOrdersResponse,
    GetOrderRequest,
    GetOrderResponse,
    ListOrderEventsRequest,
    ListOrderEventsResponse,
    ListOrdersRequest,
    ListOrdersResponse,
    RefundOrderRequest,
    RefundOrderResponse,
    ShipOrderRequest,
    ShipOrderResponse,
    WatchOrderRequest,
    WatchOrderResponse,
)
from server.order_commands import OrderCommands
from server.order_intake import OrderIntake
from server.order_queries import OrderQueries
from server.order_watches import OrderWatches

if TYPE_CHECKING:
    from server.calls import Context


class OrderService(order_service_pb2_grpc.OrderServiceServicer):
    """Implements orderflow.orders.v1.OrderService. Methods raise CallError; an interceptor turns it into a status."""

    def __init__(
        self, *, intake: OrderIntake, order_commands: OrderCommands, queries: OrderQueries, watches: OrderWatches
    ) -> None:
        """The parts are given."""
        self._intake = intake
        self._commands = order_commands
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

    async def FindOrders(self, request: FindOrdersRequest, context: "Context") -> FindOrdersResponse:  # noqa: N802
        """Finds orders by any identifier."""
        return await self._queries.find(request, context)

    async def ListOrderEvents(  # noqa: N802
        self, request: ListOrderEventsRequest, context: "Context"
    ) -> ListOrderEventsResponse:
        """Lists what happened to an order."""
        return await self._queries.history(request, context)

    async def WatchOrder(self, request: WatchOrderRequest, context: "Context") -> AsyncIterator[WatchOrderResponse]:  # noqa: N802
        """Follows an order until it is settled."""
        async for response in self._watches.watch(request, context):
            yield response

    async def CancelOrder(self, request: CancelOrderRequest, context: "Context") -> CancelOrderResponse:  # noqa: N802
        """Calls an order off that is not shipped."""
        return await self._commands.cancel(request, context)

    async def ShipOrder(self, request: ShipOrderRequest, context: "Context") -> ShipOrderResponse:  # noqa: N802
        """Records that a paid order was handed to the carrier."""
        return await self._commands.ship(request, context)

    async def CompleteOrder(self, request: CompleteOrderRequest, context: "Context") -> CompleteOrderResponse:  # noqa: N802
        """Records that a shipped order was delivered."""
        return await self._commands.complete(request, context)

    async def RefundOrder(self, request: RefundOrderRequest, context: "Context") -> RefundOrderResponse:  # noqa: N802
        """Pays back a part of what was charged, or all that is left of it."""
        return await self._commands.refund(request, context)
