from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateways.process import GatewayProcess
from tests.gateways.stripe_process import StripeProcess


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    running = GatewayProcess(tmp_path)
    try:
        yield running
    finally:
        await running.aclose()


@pytest.fixture
async def stripe(tmp_path: Path) -> AsyncIterator[StripeProcess]:
    running = StripeProcess(tmp_path)
    try:
        yield running
    finally:
        await running.aclose()
