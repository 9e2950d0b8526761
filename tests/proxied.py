"""A broker whose clients, told to use a second address, all go through a frame proxy."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from aiokafka import AIOKafkaProducer

from devstack import KafkaBroker, PostgresServer, ensure_jars, free_ports
from devstack.frame_dialects import Kafka, Postgres
from devstack.frame_proxy import FrameProxy
from messaging import topic_admin
from settings import DatabaseSettings, KafkaSettings
from tests import engines


class ProxiedKafka:
    """The same broker twice: `direct` for what a test does, `through` for what is to be disturbed."""

    def __init__(self, broker: KafkaBroker, listener_port: int, proxy_port: int) -> None:
        self.direct = engines.kafka_settings(broker)
        self.through = KafkaSettings(bootstrap=f"127.0.0.1:{proxy_port}")
        self._listener_port = listener_port
        self._proxy_port = proxy_port

    def proxy(self) -> FrameProxy:
        """Returns a proxy for one test, not started: it begins without rules and without connections."""
        return FrameProxy(Kafka, upstream_port=self._listener_port, port=self._proxy_port)


@contextlib.asynccontextmanager
async def proxied_kafka(directory: Path) -> AsyncIterator[ProxiedKafka]:
    port, controller_port, listener_port, proxy_port = free_ports(4)
    broker = KafkaBroker(directory, port, controller_port, classpath=ensure_jars(), proxied=(listener_port, proxy_port))
    broker.start()
    try:
        await broker.wait_ready()
        assert await topic_admin.apply(engines.kafka_settings(broker)) == []
        yield ProxiedKafka(broker, listener_port, proxy_port)
    finally:
        await broker.stop()


@contextlib.asynccontextmanager
async def proxied_postgres(server: PostgresServer) -> AsyncIterator[tuple[FrameProxy, DatabaseSettings]]:
    """A migrated database of the test's own, reached through a proxy; the settings lead through it."""
    own = await engines.new_database(server, template=engines.TEMPLATE)
    async with FrameProxy(Postgres, upstream_port=server.port) as proxy:
        parts = urlsplit(own.url.get_secret_value())
        through = parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{proxy.port}")
        yield proxy, engines.database_settings(urlunsplit(through))


def give_up_after(producer: AIOKafkaProducer, seconds: float) -> AIOKafkaProducer:
    """Has a producer that is not started take a request for lost sooner than after its 10 s."""
    producer.client._request_timeout_ms = int(seconds * 1000)
    return producer


async def soon(event: asyncio.Event, what: str) -> None:
    """Waits for something that the other side is about to do."""
    try:
        async with asyncio.timeout(engines.DEADLINE):
            await event.wait()
    except TimeoutError:
        raise AssertionError(f"not within {engines.DEADLINE} s: {what}") from None
