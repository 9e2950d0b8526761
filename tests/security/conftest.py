"""One server with tokens for all tests that do it no harm, and orders of two tenants."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import pytest
import structlog

from domain.projection import ProjectionBatch
from domain.records import Coordinates
from orderflow.orders.v1.order_pb2 import Order
from server import order_commands
from settings import DatabaseSettings, KafkaSettings, TokenSettings
from storage.database import Database
from storage.projection import Projection
from tests.builders import a_group, an_order, order_created
from tests.security import ingress
from tests.security.issuer import AUDIENCE, ISSUER, Issuer


@pytest.fixture(scope="session", autouse=True)
def _short_log_lines() -> Iterator[None]:
    """The default of a test process shows every local variable of a traceback, which takes a second for each."""
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()])
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _no_wait_for_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody here asks something of an order that was just placed."""
    monkeypatch.setattr(order_commands, "_ROW_SECONDS", 0.02)


@pytest.fixture(scope="session")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="session")
def tokens(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> TokenSettings:
    """The settings of a server that takes the issuer's tokens."""
    path: Path = tmp_path_factory.mktemp("keys") / "jwks.json"
    path.write_text(issuer.jwks)
    return TokenSettings(issuer=ISSUER, audience=AUDIENCE, jwks_file=str(path))


@pytest.fixture(scope="session")
async def guarded(database_settings: DatabaseSettings, tokens: TokenSettings) -> AsyncIterator[str]:
    """Where a server listens that wants tokens. It has no Kafka: nothing can be placed."""
    async with ingress.serving(database_settings, tokens=tokens) as address:
        yield address


@pytest.fixture
async def channel(guarded: str) -> AsyncIterator[grpc.aio.Channel]:
    async with ingress.plain(guarded) as channel:
        yield channel


@pytest.fixture(scope="session")
async def placing(
    kafka: KafkaSettings, database_settings: DatabaseSettings, tokens: TokenSettings
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server that wants tokens and has all that it needs."""
    async with ingress.serving(database_settings, kafka, tokens=tokens) as address, ingress.plain(address) as channel:
        yield channel


@pytest.fixture(scope="session")
async def orders_of(database: Database) -> dict[str, Order]:
    """One order of each of two tenants, readable."""
    projection, topic = Projection(database), a_group()
    placed = {}
    for number, caller in enumerate(("tenant-a", "tenant-b")):
        order = an_order(user_id=f"user-of-{caller}")
        event = order_created(order, caller=caller)
        event.metadata.caller = caller
        if number == 0:
            await projection.begin(topic, 0, 0)
        await projection.apply(
            ProjectionBatch(topic, 0, number, number + 1, events=[(Coordinates(topic, 0, number), event)])
        )
        placed[caller] = order
    return placed
