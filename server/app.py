"""The server process: the only place that builds its collaborators."""

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Final

import grpc.aio

from messaging.publisher import Publisher
from messaging.reachability import KafkaMonitor
from orderflow.operations.v1 import dead_letter_service_pb2_grpc, stock_service_pb2_grpc
from orderflow.orders.v1 import order_service_pb2_grpc
from server import listener
from server.admission import Admission
from server.authentication import Authenticate, CallerInterceptor, by_certificate, by_token
from server.bearer_tokens import BearerTokens
from server.channel_options import channel_options
from server.dead_letter_service import DeadLetterService
from server.interceptors import CallInterceptor
from server.order_commands import OrderCommands
from server.order_intake import OrderIntake
from server.order_queries import OrderQueries
from server.order_service import OrderService
from server.order_watches import OrderWatches
from server.stock_service import StockService
from server.token_keys import TokenKeys
from settings import Settings
from storage.command_answers import CommandAnswers
from storage.database import Database
from storage.dead_letters import DeadLetters
from storage.known_requests import KnownRequests
from storage.order_history import OrderHistory
from storage.order_notices import OrderNotices
from storage.order_views import OrderViews
from storage.stock import Stock
from telemetry import logs, process
from telemetry.health import Health

log = logs.get()

SERVICES: Final = (
    "orderflow.orders.v1.OrderService",
    "orderflow.operations.v1.DeadLetterService",
    "orderflow.operations.v1.StockService",
)


def build(
    settings: Settings,
    *,
    database: Database,
    publisher: Publisher,
    is_kafka_reachable: Callable[[], bool],
    health: Health,
    keys: TokenKeys,
    watches: OrderWatches,
) -> grpc.aio.Server:
    """Returns the server with all its services, not listening yet."""
    intake = OrderIntake(
        publisher=publisher,
        is_kafka_reachable=is_kafka_reachable,
        known_requests=KnownRequests(database),
        settings=settings.server,
        now=process.now,
    )
    order_commands = OrderCommands(
        publisher=publisher,
        is_kafka_reachable=is_kafka_reachable,
        answers=CommandAnswers(database),
        settings=settings.server,
        now=process.now,
    )
    queries = OrderQueries(views=OrderViews(database), history=OrderHistory(database), settings=settings.server)
    service = OrderService(intake=intake, order_commands=order_commands, queries=queries, watches=watches)
    entrance = CallerInterceptor(_authentication(settings, keys), reflects=process.is_loopback(settings.server.listen))
    server = grpc.aio.server(
        interceptors=(CallInterceptor(), entrance, Admission(settings.server)),
        options=channel_options(settings.server),
    )
    order_service_pb2_grpc.add_OrderServiceServicer_to_server(service, server)
    dead_letter_service = DeadLetterService(
        letters=DeadLetters(database), publisher=publisher, kafka=settings.kafka, settings=settings.server
    )
    dead_letter_service_pb2_grpc.add_DeadLetterServiceServicer_to_server(dead_letter_service, server)
    stock_service_pb2_grpc.add_StockServiceServicer_to_server(StockService(stock=Stock(database)), server)
    health.add_to(server)
    return server


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serves until `stop` is set, then finishes the calls that are under way.

    Raises:
        SettingsError: the address cannot be listened on, or the settings would expose it.
    """
    listener.check(settings)
    client_id = f"server-{socket.gethostname()}-{os.getpid()}"
    database = Database(settings.database, application="server")
    publisher = Publisher(settings.kafka, client_id=client_id, most_waiting=settings.server.max_unacknowledged_orders)
    monitor = KafkaMonitor(settings.kafka, client_id=client_id)
    keys = TokenKeys(settings.tokens)
    health = Health(
        SERVICES,
        lambda: monitor.is_reachable and publisher.is_ready and (keys.is_ready or not settings.tokens.issuer),
    )
    watches = OrderWatches(
        views=OrderViews(database),
        history=OrderHistory(database),
        notices=OrderNotices(settings.database, application="server"),
        settings=settings.server,
    )
    server = build(
        settings,
        database=database,
        publisher=publisher,
        is_kafka_reachable=lambda: monitor.is_reachable,
        health=health,
        keys=keys,
        watches=watches,
    )
    listener.listen(server, settings)
    if settings.tokens.issuer:
        await keys.open()

    await database.open()
    publisher.start()
    tasks = [
        asyncio.create_task(monitor.run(), name="kafka monitor"),
        asyncio.create_task(health.run(), name="health"),
        asyncio.create_task(watches.run(), name="watches"),
    ]
    if settings.tokens.issuer:
        tasks.append(asyncio.create_task(keys.run(), name="token keys"))
    if settings.server.health_listen:
        probes = listener.listen_for_probes(health, settings.server.health_listen)
        tasks.append(asyncio.create_task(probes, name="health port"))
    with process.metrics_endpoint(settings.server.metrics_listen) as metrics_address:
        try:
            await server.start()
            log.info("process.started", listen=settings.server.listen, metrics=metrics_address)
            await process.until_stopped_or_failed(stop, *tasks)
        finally:
            tasks[1].cancel()
            await health.stop()
            if stop.is_set():  # and not a failure: then there is no time to lose
                await asyncio.sleep(settings.server.shutdown_delay_seconds)
            watches.close()  # else they would use up the whole time to drain
            await server.stop(settings.server.drain_seconds)
            await publisher.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await database.close()


def _authentication(settings: Settings, keys: TokenKeys) -> Authenticate | None:
    if settings.tokens.issuer:
        return by_token(BearerTokens(settings.tokens, keys))
    if settings.tls.client_ca_file:
        return by_certificate(settings.client_certificates)
    return None
