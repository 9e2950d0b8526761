"""One running system for the guarantees, its payment processor behind a door that counts and misbehaves."""

import pathlib
from collections.abc import AsyncIterator

import pytest

from devstack.system import ROLES, Ports
from orderflow_client import OrdersClient
from tests.guarantees.front import Front
from tests.guarantees.fronted import FrontedSystem


@pytest.fixture(scope="package")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FrontedSystem]:
    directory: pathlib.Path = tmp_path_factory.mktemp("guarantees")
    ports, (front_port,) = Ports.chosen_beside(1)
    async with Front(front_port, ports.gateway).serving() as front:
        running = FrontedSystem(directory, ports, front)
        try:
            await running.start()
            yield running
        finally:
            await running.stop()


@pytest.fixture
async def healthy(system: FrontedSystem) -> AsyncIterator[FrontedSystem]:
    """The system, healthy before and after the test. What another one broke is mended: that one alone fails."""
    await system.mend()
    yield system
    await system.wait_healthy(ROLES)


@pytest.fixture
async def client(system: FrontedSystem) -> AsyncIterator[OrdersClient]:
    async with OrdersClient(system.server_address) as connected:
        yield connected
