"""The standard gRPC health service, and reflection."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

_INTERVAL_SECONDS: Final = 0.25
_SET_SECONDS: Final = 1.0


class Health:
    """Answers for "" and for each service by one condition. NOT_SERVING until it is first met."""

    def __init__(self, services: Sequence[str], is_serving: Callable[[], bool]) -> None:
        """`is_serving` is asked four times a second; it must not wait."""
        self._services = ("", *services)
        self._is_serving = is_serving
        self._servicer = health.aio.HealthServicer()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the service, and reflection of it and of the services it answers for."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        names = (*self._services[1:], health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        _add_reflection_v1(server, names)

    async def run(self) -> None:
        """Keeps the answers up to date until cancelled."""
        known: bool | None = None
        while True:
            serving = self._is_serving()
            if serving != known and await self._set(serving=serving):
                known = serving
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def stop(self) -> None:
        """Answers NOT_SERVING from now on."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SET_SECONDS):
                await self._servicer.enter_graceful_shutdown()

    async def _set(self, *, serving: bool) -> bool:
        """Tells whether all could be set; what could not is to be tried again."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        all_set = True
        for service in self._services:
            # A watcher that does not read holds the lock that set() needs.
            try:
                async with asyncio.timeout(_SET_SECONDS):
                    await self._servicer.set(service, status)
            except TimeoutError:
                all_set = False
        return all_set


def _add_reflection_v1(server: grpc.aio.Server, names: Sequence[str]) -> None:
    """Serves grpc.reflection.v1 too: the messages are those of v1alpha, which grpcio alone brings."""
    servicer = reflection.aio.ReflectionServicer(names)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "grpc.reflection.v1.ServerReflection", {"ServerReflectionInfo": handler}
            ),
        )
    )
