"""The ceiling of a call: a gRPC server that does nothing, `python -m bench.empty_server ADDRESS`.

It has the server's event loop, options and message types; its handlers answer at once, and nothing intercepts them.
"""

import asyncio
import sys
from typing import Any

import grpc.aio

from orderflow.orders.v1.order_service_pb2 import (
    CreateOrderRequest,
    CreateOrderResponse,
    GetOrderRequest,
    GetOrderResponse,
)
from orderflow.orders.v1.order_service_pb2_grpc import OrderServiceServicer, add_OrderServiceServicer_to_server
from server.channel_options import channel_options
from settings import ServerSettings
from telemetry import process


class EmptyService(OrderServiceServicer):
    """Answers."""

    async def CreateOrder(self, request: CreateOrderRequest, context: Any) -> CreateOrderResponse:  # noqa: ARG002, N802
        """Takes any order."""
        return CreateOrderResponse()

    async def GetOrder(self, request: GetOrderRequest, context: Any) -> GetOrderResponse:  # noqa: ARG002, N802
        """Finds any order."""
        return GetOrderResponse()


async def _serve(address: str, stop: asyncio.Event) -> None:
    server = grpc.aio.server(options=channel_options(ServerSettings()))
    add_OrderServiceServicer_to_server(EmptyService(), server)  # type: ignore[abstract]
    server.add_insecure_port(address)
    await server.start()
    await stop.wait()
    await server.stop(1)


if __name__ == "__main__":
    sys.exit(process.run(lambda stop: _serve(sys.argv[1], stop)))
