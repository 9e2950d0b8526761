"""The health service, on a port of its own."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server import listener
from settings import SettingsError
from telemetry.health import LIVE, Health
from tests import engines

SERVICE = "orderflow.orders.v1.OrderService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Serving:
    """What a process thinks of itself, for a test to change."""

    def __init__(self) -> None:
        self.value = False


@pytest.fixture
async def serving() -> Serving:
    return Serving()


@pytest.fixture
async def address(serving: Serving) -> AsyncIterator[str]:
    health = Health((SERVICE,), lambda: serving.value)
    async with health.listening("127.0.0.1:0", reflects=False) as address:
        running = asyncio.create_task(health.run())
        yield address
        running.cancel()


@pytest.fixture
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel


async def first(channel: grpc.aio.Channel, service: str, wanted: int) -> None:
    """Returns when the service's answer is the wanted one."""
    async with asyncio.timeout(30):
        async for answer in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service)):
            if answer.status == wanted:
                return


async def test_a_process_lives_though_it_does_not_serve(channel: grpc.aio.Channel, serving: Serving) -> None:
    await first(channel, LIVE, SERVING)
    await first(channel, SERVICE, NOT_SERVING)
    serving.value = True
    await first(channel, SERVICE, SERVING)
    serving.value = False
    await first(channel, SERVICE, NOT_SERVING)
    stub = health_pb2_grpc.HealthStub(channel)
    assert (await stub.Check(health_pb2.HealthCheckRequest(service=LIVE), timeout=30)).status == SERVING


async def test_a_watcher_that_does_not_read_holds_nobody_up(serving: Serving) -> None:
    """Its stream ends one day; until then others must be told the truth."""
    health = Health((SERVICE,), lambda: serving.value)
    running = asyncio.create_task(health.run())
    request, context = health_pb2.HealthCheckRequest(service=SERVICE), cast(Any, None)
    unread = health._servicer.Watch(request, context)
    await anext(unread)  # it is not asked for another: what it told is never read

    async def status() -> int:
        return (await health._servicer.Check(request, context)).status

    serving.value = True
    await engines.eventually(lambda: health._servicer._known.get(SERVICE) == SERVING, "it serves")
    assert await status() == SERVING
    await health.stop()
    assert await status() == NOT_SERVING
    running.cancel()
    await asyncio.wait([running])


async def test_the_port_for_probes_reflects_nothing(channel: grpc.aio.Channel) -> None:
    reflect = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    # Nothing is sent: to send while the answer comes ends in INTERNAL now and then.
    assert await reflect(timeout=30).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_an_address_in_use_is_named(address: str) -> None:
    with pytest.raises(SettingsError, match=f"ORDERFLOW_SERVER_HEALTH_LISTEN: cannot listen on {address}"):
        await listener.listen_for_probes(Health((), lambda: True), address)
