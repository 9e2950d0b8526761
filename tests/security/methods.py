"""Every method of the server, from the descriptors, so that a new one cannot be forgotten."""

import asyncio
import dataclasses
import inspect
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from server.app import SERVICES
from server.order_intake import OrderIntake
from server.order_queries import OrderQueries
from server.order_watches import OrderWatches

_DEADLINE = 10.0


@dataclasses.dataclass(frozen=True)
class Method:
    """`path` is `package.Service/Method`."""

    path: str
    request: type[Message]
    response: type[Message]
    streams: bool

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a call ended with. `status` are the bytes of the google.rpc.Status, so that two can be told apart."""

    code: grpc.StatusCode
    text: str = ""
    status: bytes = b""
    response: Any = None

    @property
    def details(self) -> list[Message]:
        """The error's details, each as its own type."""
        found: list[Message] = []
        for packed in status_pb2.Status.FromString(self.status).details:
            kinds = (
                error_details_pb2.ErrorInfo,
                error_details_pb2.RetryInfo,
                error_details_pb2.BadRequest,
                error_details_pb2.PreconditionFailure,
            )
            found.append(next(kind() for kind in kinds if packed.Is(kind.DESCRIPTOR)))
            packed.Unpack(found[-1])
        return found

    @property
    def info(self) -> Any:
        """The ErrorInfo."""
        return next(each for each in self.details if isinstance(each, error_details_pb2.ErrorInfo))

    @property
    def reason(self) -> str:
        return str(self.info.reason)


def _methods() -> list[Method]:
    pool = descriptor_pool.Default()
    return [
        Method(
            f"{service}/{method.name}",
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
            method.server_streaming,
        )
        for service in SERVICES
        for method in pool.FindServiceByName(service).methods
    ]


METHODS = _methods()
_PARTS = {
    "BatchCreateOrders": OrderIntake.create_batch,
    "BatchGetOrders": OrderQueries.get_batch,
    "ListOrders": OrderQueries.list,
    "ListOrderEvents": OrderQueries.history,
    "WatchOrder": OrderWatches.watch,
}
THERE = [
    each
    for each in METHODS
    if each.name not in _PARTS or "raise NotImplementedError" not in inspect.getsource(_PARTS[each.name])
]
"""Without those whose code says that it is not there yet."""


def named(name: str) -> Method:
    return next(each for each in METHODS if each.name == name)


async def call(
    channel: grpc.aio.Channel,
    method: Method,
    request: Message | bytes = b"",
    metadata: tuple[tuple[str, str | bytes], ...] = (),
    *,
    deadline: float | None = _DEADLINE,
    compression: grpc.Compression | None = None,
) -> Answer:
    """Calls a method; of a stream, up to its first answer. Whatever the bytes, they are sent as they are."""
    data = request if isinstance(request, bytes) else request.SerializeToString()
    kind = channel.unary_stream if method.streams else channel.unary_unary
    stub: Any = kind(f"/{method.path}", response_deserializer=method.response.FromString)
    started = stub(data, timeout=deadline, metadata=metadata, compression=compression)
    try:
        if not method.streams:
            return Answer(grpc.StatusCode.OK, response=await started)
        response = await started.read()
        if response is not grpc.aio.EOF:
            started.cancel()
            return Answer(grpc.StatusCode.OK, response=response)
        trailers = await started.trailing_metadata() or ()
        return Answer(await started.code(), await started.details() or "", _status(trailers))
    except grpc.aio.AioRpcError as error:
        return Answer(error.code(), error.details() or "", _status(error.trailing_metadata() or ()))
    except asyncio.CancelledError:
        started.cancel()
        raise


def _status(trailers: Any) -> bytes:
    return dict(trailers).get("grpc-status-details-bin", b"")
