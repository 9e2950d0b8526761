"""The OrderService's reads over a real server on a loopback port, and a read model that a test fills by itself."""

import contextlib
import datetime
from collections.abc import AsyncIterator, Iterable
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from domain.orders import etag_of
from domain.projection import ProjectionBatch
from domain.records import Coordinates
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1 import order_service_pb2_grpc
from orderflow.orders.v1.order_pb2 import Order, OrderStatus
from server import calls
from server.interceptors import CallInterceptor
from server.order_commands import OrderCommands
from server.order_intake import OrderIntake
from server.order_queries import OrderQueries
from server.order_service import OrderService
from server.order_watches import OrderWatches
from settings import DatabaseSettings, ServerSettings
from storage.database import Database
from storage.order_history import OrderHistory
from storage.order_notices import OrderNotices
from storage.order_views import OrderViews
from storage.projection import Projection
from tests.builders import NOW, a_group, an_id, an_order, order_created, order_event

E = OrderEventType
S = OrderStatus
LOCAL = "local"

_STATUS_AFTER = {
    E.ORDER_EVENT_TYPE_ORDER_PROCESSING: S.ORDER_STATUS_PROCESSING,
    E.ORDER_EVENT_TYPE_ORDER_PAID: S.ORDER_STATUS_PAID,
    E.ORDER_EVENT_TYPE_ORDER_SHIPPED: S.ORDER_STATUS_SHIPPED,
    E.ORDER_EVENT_TYPE_ORDER_COMPLETED: S.ORDER_STATUS_COMPLETED,
}


def order_life(order: Order | None = None, *, caller: str = LOCAL) -> list[OrderEvent]:
    """Returns the lifecycle of an order up to COMPLETED: revisions 1 to 5, a second apart."""
    order = order or an_order()
    events = [order_created(order, caller=caller)]
    for revision, (event_type, status) in enumerate(_STATUS_AFTER.items(), start=2):
        now = order.create_time.ToDatetime(datetime.UTC) + datetime.timedelta(seconds=revision)
        event = order_event(event_type, order, revision=revision, now=now)
        event.order.status = status
        event.order.etag = etag_of(order.order_id, revision)
        event.metadata.caller = caller
        events.append(event)
    return events


def orders_of(count: int, *, caller: str = LOCAL, every: float = 1.0, **fields: Any) -> list[OrderEvent]:
    """Returns ORDER_CREATED of so many orders, each created `every` seconds after the one before."""
    return [
        order_created(an_order(now=NOW + datetime.timedelta(seconds=number * every), **fields), caller=caller)
        for number in range(count)
    ]


class ReadModel:
    """Projects what it is given, as from a topic of its own."""

    def __init__(self, database: Database) -> None:
        self._projection = Projection(database)
        self._topic = a_group()
        self._position: int | None = None

    async def add(self, *events: OrderEvent, dead_letters: Iterable[DeadLetter] = (), trace_id: str = "") -> None:
        if self._position is None:
            self._position = 0
            await self._projection.begin(self._topic, 0, 0)
        batch = ProjectionBatch(self._topic, 0, self._position, self._position + max(len(events), 1))
        batch.events = [(Coordinates(self._topic, 0, self._position + n), event) for n, event in enumerate(events)]
        batch.traces = {at: trace_id for at, _ in batch.events} if trace_id else {}
        batch.dead_letters = [(Coordinates("dlq", 0, int(an_id()[:7], 16)), letter) for letter in dead_letters]
        await self._projection.apply(batch)
        self._position = batch.ends


class Served:
    """A server, and the stub of a caller on one channel."""

    def __init__(self, database: Database, settings: DatabaseSettings, **fields: Any) -> None:
        self.settings = ServerSettings(**fields)
        self.application = a_group()
        views, history = OrderViews(database), OrderHistory(database)
        self.queries = OrderQueries(views=views, history=history, settings=self.settings)
        self.watches = OrderWatches(
            views=views,
            history=history,
            notices=OrderNotices(settings, application=self.application),
            settings=self.settings,
        )
        self.server = grpc.aio.server(interceptors=(CallInterceptor(),))
        service = OrderService(
            intake=cast(OrderIntake, None),
            order_commands=cast(OrderCommands, None),
            queries=self.queries,
            watches=self.watches,
        )
        order_service_pb2_grpc.add_OrderServiceServicer_to_server(service, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[Any]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            yield order_service_pb2_grpc.OrderServiceStub(channel)


@contextlib.asynccontextmanager
async def served(database: Database, settings: DatabaseSettings, **fields: Any) -> AsyncIterator[Served]:
    server = Served(database, settings, **fields)
    await server.server.start()
    try:
        yield server
    finally:
        await server.server.stop(None)


def called_as(monkeypatch: pytest.MonkeyPatch, *, sees_all: bool = False) -> None:
    """Has the metadata `caller` say who calls, as a credential would."""

    def caller(context: "calls.Context") -> str:
        return calls.metadata(context).get("caller", LOCAL)

    monkeypatch.setattr(calls, "caller", caller)
    monkeypatch.setattr(calls, "may_see", lambda context, owner: sees_all or owner == caller(context))
    monkeypatch.setattr(calls, "visible_owner", lambda context: None if sees_all else caller(context))


def refusal(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str, list[str]]:
    """Returns what the caller can act on: the code, the reason, wrong fields, seconds to wait."""
    status = status_pb2.Status()
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            status.ParseFromString(value)
    info = error_details_pb2.ErrorInfo()
    more: list[str] = []
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            more += [violation.field for violation in bad.field_violations]
        if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            more.append(str(retry.retry_delay.ToMilliseconds() / 1000))
    return error.code(), info.reason, more
