from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateways.process import GatewayProcess


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    running = GatewayProcess(tmp_path)
    try:
        yield running
    finally:
        await running.aclose()
