"""One Kafka and one PostgreSQL for a test session, started when the first test asks for them.

`make test` is two sessions side by side.
"""

from collections.abc import AsyncIterator

import hypothesis
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling, Scheduling

from devstack import KafkaBroker, PostgresServer
from settings import DatabaseSettings, KafkaSettings
from storage import migrate
from storage.database import Database
from tests import engines

# How long an example takes is the machine's matter.
hypothesis.settings.register_profile(
    "orderflow", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("orderflow")

_ONE_SYSTEM = ("tests/e2e", "tests/guarantees")
"""Folders whose files share a running system."""


class _BySystem(LoadFileScheduling):
    """Gives a process all files of a folder whose tests share a system, and of the others one after the other."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return next((folder for folder in _ONE_SYSTEM if file.startswith(f"{folder}/")), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    return _BySystem(config, log)


@pytest.fixture(scope="session")
async def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KafkaBroker]:
    """The broker of all tests that do it no harm."""
    async with engines.kafka_broker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture(scope="session")
async def kafka(kafka_broker: KafkaBroker) -> KafkaSettings:
    return engines.kafka_settings(kafka_broker)


@pytest.fixture(scope="session")
async def spare_broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KafkaBroker]:
    """A broker to be stopped, suspended and changed. Who does it puts it back."""
    async with engines.kafka_broker(tmp_path_factory.mktemp("spare")) as broker:
        yield broker


@pytest.fixture(scope="session")
async def postgres(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PostgresServer]:
    async with engines.postgres_server(tmp_path_factory.mktemp("postgres")) as server:
        template = await engines.new_database(server, name=engines.TEMPLATE)
        await migrate.migrate(template)
        yield server


@pytest.fixture(scope="session")
async def database_settings(postgres: PostgresServer) -> DatabaseSettings:
    """The database of all tests that keep to their own orders and SKUs."""
    return await engines.new_database(postgres, template=engines.TEMPLATE)


@pytest.fixture(scope="session")
async def database(database_settings: DatabaseSettings) -> AsyncIterator[Database]:
    async with engines.opened(database_settings) as database:
        yield database


@pytest.fixture
async def own_database(postgres: PostgresServer) -> AsyncIterator[Database]:
    """A migrated database of the test's own."""
    async with engines.opened(await engines.new_database(postgres, template=engines.TEMPLATE)) as database:
        yield database
