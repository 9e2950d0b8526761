"""One running system for all faults; each test ends what it raises."""

import pathlib
from collections.abc import AsyncIterator

import pytest

from orderflow_client import OrdersClient
from tests.faults.watched import WatchedSystem
from tools import fetch_tools


@pytest.fixture(scope="package")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WatchedSystem]:
    program = fetch_tools.find("prometheus")
    if program is None:
        pytest.skip("prometheus is not on this machine; `make tools` fetches it on Debian")
    directory: pathlib.Path = tmp_path_factory.mktemp("faults")
    running = WatchedSystem(directory, program)
    try:
        await running.start()
        await running.quiet()
        yield running
    finally:
        await running.stop()


@pytest.fixture
async def watched(system: WatchedSystem) -> AsyncIterator[WatchedSystem]:
    """The system, without an alert before the test."""
    await system.quiet()
    try:
        yield system
    finally:
        await system.mend()


@pytest.fixture
async def client(system: WatchedSystem) -> AsyncIterator[OrdersClient]:
    async with OrdersClient(system.server_address) as connected:
        yield connected
