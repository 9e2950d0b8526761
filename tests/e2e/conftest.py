"""One running system for all end-to-end tests; each test leaves it healthy."""

import pathlib
from collections.abc import AsyncIterator

import pytest

from devstack.system import ROLES, Ports, System
from orderflow_client import OrdersClient


@pytest.fixture(scope="session")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    directory: pathlib.Path = tmp_path_factory.mktemp("system")
    # A breaker that opens for a moment only and short retry delays and sessions keep the tests quick.
    quick = {
        "ORDERFLOW_GATEWAY_BREAKER_RESET_SECONDS": "1",
        "ORDERFLOW_KAFKA_RETRY_DELAYS": "1,2",
        "ORDERFLOW_KAFKA_SESSION_TIMEOUT": "3",
    }
    running = System(directory, Ports.chosen(), settings=quick)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


@pytest.fixture
async def healthy(system: System) -> AsyncIterator[System]:
    """The system, healthy before and after the test."""
    await system.wait_healthy(ROLES)
    yield system
    await system.wait_healthy(ROLES)


@pytest.fixture
async def client(system: System) -> AsyncIterator[OrdersClient]:
    async with OrdersClient(system.server_address) as connected:
        yield connected
