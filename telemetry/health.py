"""The standard gRPC health service, and reflection."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

LIVE: Final = "live"
"""The service that is SERVING as long as the process answers at all, whatever it needs is away: for liveness probes."""

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_INTERVAL_SECONDS: Final = 0.25
_STOP_SECONDS: Final = 0.5


class Health:
    """Answers for "" and for each service by one condition. NOT_SERVING until it is first met."""

    def __init__(self, services: Sequence[str], is_serving: Callable[[], bool]) -> None:
        """`is_serving` is asked four times a second; it must not wait."""
        self._services = ("", *services)
        self._is_serving = is_serving
        self._servicer = _Servicer()

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
        self._servicer.tell({LIVE: _SERVING})
        while True:
            status = _SERVING if self._is_serving() else _NOT_SERVING
            self._servicer.tell(dict.fromkeys(self._services, status))
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def stop(self) -> None:
        """Answers NOT_SERVING from now on."""
        self._servicer.end()


class _Servicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The library's own writes to a watcher under the lock that the next change needs.

    So one that does not read, and nobody has to prove who they are to watch, would keep everybody's answer as it is.
    """

    def __init__(self) -> None:
        self._known: dict[str, int] = {"": _NOT_SERVING}
        self._changed = asyncio.Event()
        self._has_ended = False

    def tell(self, known: Mapping[str, int]) -> None:
        """Answers with these from now on."""
        if not self._has_ended and not known.items() <= self._known.items():
            self._known |= known
            self._wake()

    def end(self) -> None:
        """Answers NOT_SERVING for all, whatever comes."""
        self._has_ended = True
        self._known = dict.fromkeys(self._known, _NOT_SERVING)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: "grpc.aio.ServicerContext[object, object]"
    ) -> health_pb2.HealthCheckResponse:
        """Returns the status of a service."""
        if request.service not in self._known:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return health_pb2.HealthCheckResponse(status=self._known[request.service])

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, _: "grpc.aio.ServicerContext[object, object]"
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Yields the status of a service, then each new one but those that come while the watcher does not read."""
        told = None
        while True:
            changed = self._changed
            status = self._known.get(request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != told:
                yield health_pb2.HealthCheckResponse(status=status)
                told = status
            await changed.wait()


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
