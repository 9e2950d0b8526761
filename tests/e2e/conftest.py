"""One running system for all end-to-end tests; each test leaves it healthy."""

import pathlib
from collections.abc import AsyncIterator

import pytest

from devstack.system import ROLES, Ports
from orderflow_client import OrdersClient
from tests.e2e.observed import ObservedSystem


@pytest.fixture(scope="package")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ObservedSystem]:
    directory: pathlib.Path = tmp_path_factory.mktemp("system")
    # A breaker that opens for a moment only and short sessions keep the tests quick.
    quick = {
        "ORDERFLOW_GATEWAY_BREAKER_RESET_SECONDS": "1",
        "ORDERFLOW_KAFKA_SESSION_TIMEOUT": "3",
    }
    running = ObservedSystem(directory, Ports.chosen(), settings=quick)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


@pytest.fixture
async def healthy(system: ObservedSystem) -> AsyncIterator[ObservedSystem]:
    """The system, healthy before and after the test. What another one broke is mended: that one alone fails."""
    await system.mend()
    yield system
    await system.wait_healthy(ROLES)


@pytest.fixture
async def client(system: ObservedSystem) -> AsyncIterator[OrdersClient]:
    async with OrdersClient(system.server_address) as connected:
        yield connected
