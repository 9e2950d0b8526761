"""Connections and calls that are not meant to end well."""

import asyncio
import contextlib
import random

import grpc
import grpc.aio
import pytest

from domain.projection import ProjectionBatch
from domain.records import Coordinates
from orderflow.orders.v1.order_service_pb2 import GetOrderRequest, WatchOrderRequest, WatchOrderResponse
from orderflow.orders.v1.order_service_pb2_grpc import OrderServiceStub
from server.channel_options import channel_options
from settings import DatabaseSettings, ServerSettings
from storage.database import Database
from storage.projection import Projection
from telemetry import metrics
from tests import engines
from tests.builders import a_group, a_request, an_id, order_created
from tests.e2e import observer
from tests.security.ingress import plain, serving
from tests.security.issuer import Issuer, bearer
from tests.security.methods import call, named

# gRPC itself cuts off calls past some thousand that wait to be taken (grpc.server.max_pending_requests).
_AT_ONCE = 500
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


async def test_who_connects_and_does_not_shake_hands_is_cut_off(
    guarded: str, channel: grpc.aio.Channel, issuer: Issuer
) -> None:
    host, _, port = guarded.rpartition(":")
    said = (b"", _PREFACE[:10], _PREFACE, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    sockets = [await asyncio.open_connection(host, int(port)) for _ in range(100)]
    try:
        for number, (_, writer) in enumerate(sockets):
            writer.write(said[number % len(said)])
        answer = await call(channel, named("GetOrder"), GetOrderRequest(order_id=an_id()), bearer(issuer.token()))
        assert answer.code is grpc.StatusCode.NOT_FOUND, "a neighbour is served meanwhile"
        async with asyncio.timeout(10):
            await asyncio.gather(*(_closed(reader) for reader, _ in sockets))
    finally:
        for _, writer in sockets:
            writer.close()


async def _closed(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(1024):
            pass
    except ConnectionError:
        pass


def test_a_connection_has_a_limit_of_streams() -> None:
    """Past what one caller may have at all, which is refused with an answer: tests/unit/test_admission.py."""
    settings = ServerSettings()
    most = dict(channel_options(settings))["grpc.max_concurrent_streams"]
    assert most == settings.max_streams_per_caller + 2 * settings.max_concurrent_calls


async def test_idle_streams_are_capped_and_harm_no_neighbour(
    database: Database, database_settings: DatabaseSettings
) -> None:
    await idle_streams(database, database_settings, count=400, most=250)


@pytest.mark.heavy
@pytest.mark.timeout(300)
async def test_10_000_idle_streams(database: Database, database_settings: DatabaseSettings) -> None:
    await idle_streams(database, database_settings, count=10_000, most=5_000)


async def idle_streams(database: Database, database_settings: DatabaseSettings, *, count: int, most: int) -> None:
    """Watches an order that stays as it is, never to read again; the server lets one caller have so many."""
    event, topic = order_created(), a_group()
    event.metadata.caller = "local"
    projection = Projection(database)
    await projection.begin(topic, 0, 0)
    await projection.apply(ProjectionBatch(topic, 0, 0, 1, events=[(Coordinates(topic, 0, 0), event)]))
    watched = WatchOrderRequest(order_id=event.order.order_id)
    server = ServerSettings(listen="127.0.0.1:0", max_streams_per_caller=most, max_streams=2 * most)
    async with serving(database_settings, server=server) as address, contextlib.AsyncExitStack() as channels:
        stubs = [OrderServiceStub(await channels.enter_async_context(plain(address))) for _ in range(10)]
        streams: list[grpc.aio.UnaryStreamCall[WatchOrderRequest, WatchOrderResponse]] = []
        answers: list[object] = []
        while len(streams) < count:
            opened = [stubs[number % 10].WatchOrder(watched) for number in range(min(_AT_ONCE, count - len(streams)))]
            streams += opened
            answers += await asyncio.gather(*(stream.read() for stream in opened), return_exceptions=True)
        refused = [each for each in answers if isinstance(each, grpc.aio.AioRpcError)]
        assert {each.code() for each in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert len(refused) == count - most
        got = await stubs[0].GetOrder(GetOrderRequest(order_id=event.order.order_id), timeout=5)
        assert got.order == event.order, "a neighbour is served meanwhile"
        for stream in streams:
            stream.cancel()

        async def has_room() -> bool:
            with contextlib.suppress(grpc.aio.AioRpcError):
                return isinstance(await stubs[0].WatchOrder(watched).read(), WatchOrderResponse)
            return False

        await observer.eventually(has_room, within=30, what="what was closed counts no more")


async def test_calls_that_are_cancelled_at_any_time_leave_nothing_behind(
    placing: grpc.aio.Channel, issuer: Issuer
) -> None:
    """Whatever became of the order: no task goes on for ever, and the gauge of open calls goes back."""
    credential = bearer(issuer.token("canceller"))
    method = named("CreateOrder")
    gauge = metrics.RPC_IN_FLIGHT.labels(method.path)
    before, tasks_before = gauge._value.get(), len(asyncio.all_tasks())
    chance = random.Random(1)

    async def cancelled(after: float) -> None:
        calling = asyncio.create_task(call(placing, method, a_request(request_id=an_id()), credential))
        await asyncio.wait([calling], timeout=after)
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)

    for _ in range(10):
        await asyncio.gather(*(cancelled(chance.random() * 0.03) for _ in range(20)))
    await engines.eventually(
        lambda: gauge._value.get() <= before and len(asyncio.all_tasks()) <= tasks_before, "nothing is left behind"
    )
    assert (await call(placing, method, a_request(), credential)).code is grpc.StatusCode.OK


async def test_an_order_whose_caller_hung_up_is_placed_once(placing: grpc.aio.Channel, issuer: Issuer) -> None:
    """The caller does not know; its repeat with the same request_id finds the same order."""
    credential, request = bearer(issuer.token("canceller")), a_request(request_id=an_id())
    calling = asyncio.create_task(call(placing, named("CreateOrder"), request, credential))
    await asyncio.wait([calling], timeout=0.005)
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    placed = {(await call(placing, named("CreateOrder"), request, credential)).response.order.order_id for _ in "12"}
    assert len(placed) == 1
