"""The standard gRPC health service, and reflection."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

LIVE: Final = "live"
"""The service that is SERVING as long as the process answers at all, whatever it needs is away: for liveness probes."""

_INTERVAL_SECONDS: Final = 0.25
_SET_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 0.5


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

    @contextlib.asynccontextmanager
    async def listening(self, address: str, *, reflects: bool) -> AsyncIterator[str]:
        """Serves health, in plaintext, on `host:port` meanwhile; port 0 chooses one. Yields the address.

        Raises:
            OSError: the address cannot be listened on.
        """
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        if reflects:
            self.add_to(server)
        else:
            health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        host, _, _ = address.rpartition(":")
        try:
            port = server.add_insecure_port(address)
        except RuntimeError:
            port = 0
        if not port:
            raise OSError(f"cannot listen on {address}; is the port in use?")
        await server.start()
        try:
            yield f"{host}:{port}"
        finally:
            await server.stop(_STOP_SECONDS)

    async def run(self) -> None:
        """Keeps the answers up to date until cancelled."""
        await self._servicer.set(LIVE, health_pb2.HealthCheckResponse.SERVING)
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
