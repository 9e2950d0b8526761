"""The server itself, in this process and on a port of its own, with the settings of a test."""

import asyncio
import contextlib
import typing
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio

from messaging.publisher import Publisher
from server import listener
from server.app import SERVICES, build
from server.order_watches import OrderWatches
from server.token_keys import TokenKeys
from settings import DatabaseSettings, KafkaSettings, ServerSettings, Settings
from storage.database import Database
from storage.order_history import OrderHistory
from storage.order_notices import OrderNotices
from storage.order_views import OrderViews
from telemetry.health import Health
from tests import engines


def settings(**sections: Any) -> Settings:
    """Returns the settings, as a test wants them and else as they are by default."""
    defaults = {name: section() for name, section in typing.get_type_hints(Settings).items()}
    defaults["server"] = ServerSettings(listen="127.0.0.1:0")
    return Settings(**(defaults | sections))


@contextlib.asynccontextmanager
async def serving(
    database: DatabaseSettings,
    kafka: KafkaSettings | None = None,
    *,
    is_kafka_reachable: Callable[[], bool] = lambda: True,
    **sections: Any,
) -> AsyncIterator[str]:
    """Serves meanwhile and yields `host:port`. Without Kafka nothing can be placed."""
    chosen = settings(database=database, **({"kafka": kafka} if kafka else {}), **sections)
    listener.check(chosen)
    opened = Database(chosen.database, application="tests")
    publisher = Publisher(chosen.kafka, client_id="tests", most_waiting=chosen.server.max_unacknowledged_orders)
    keys = TokenKeys(chosen.tokens)
    health = Health(SERVICES, lambda: True)
    watches = OrderWatches(
        views=OrderViews(opened),
        history=OrderHistory(opened),
        notices=OrderNotices(chosen.database, application="tests"),
        settings=chosen.server,
    )
    server = build(
        chosen,
        database=opened,
        publisher=publisher,
        is_kafka_reachable=is_kafka_reachable,
        health=health,
        keys=keys,
        watches=watches,
    )
    port = listener.listen(server, chosen)
    await opened.open()
    if chosen.tokens.issuer:
        await keys.open()
    tasks = [asyncio.create_task(health.run()), asyncio.create_task(watches.run())]
    if kafka is not None:
        publisher.start()
        await engines.eventually(lambda: publisher.is_ready, "a producer is there")
    await server.start()
    try:
        yield f"localhost:{port}"
    finally:
        for task in tasks:
            task.cancel()
        watches.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.stop(1)
        await publisher.close()
        await opened.close()


def plain(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=_OPTIONS)


def over_tls(address: str, ca: bytes, key: bytes | None = None, certificate: bytes | None = None) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    # A pool of its own for each channel: else a second one goes through the connection that the first has proved.
    return grpc.aio.secure_channel(address, credentials, options=(*_OPTIONS, ("grpc.use_local_subchannel_pool", 1)))


_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 1024 * 1024),
)
