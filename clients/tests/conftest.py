"""Both clients, and a scripted server on loopback."""

import os
from collections.abc import AsyncIterator

import pytest

from clients.tests.caller import Caller
from clients.tests.scripted_server import ScriptedOrders, serving
from orderflow_client import OrdersClient, SyncOrdersClient


@pytest.fixture
def orders() -> ScriptedOrders:
    return ScriptedOrders()


@pytest.fixture
async def target(orders: ScriptedOrders) -> AsyncIterator[str]:
    async with serving(orders) as address:
        yield address


@pytest.fixture
async def live_target(target: str) -> str:
    """The system that orders are placed with: the one that ORDERFLOW_TEST_TARGET names, else the scripted server."""
    return os.environ.get("ORDERFLOW_TEST_TARGET", target)


@pytest.fixture(params=[OrdersClient, SyncOrdersClient])
def flavour(request: pytest.FixtureRequest) -> type[OrdersClient | SyncOrdersClient]:
    chosen: type[OrdersClient | SyncOrdersClient] = request.param
    return chosen


@pytest.fixture
async def caller(flavour: type[OrdersClient | SyncOrdersClient], target: str) -> AsyncIterator[Caller]:
    """Calls either client, connected to the scripted server."""
    made = Caller(flavour(target))
    yield made
    await made.close()
