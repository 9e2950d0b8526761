"""A worker process: the only place that builds its collaborators.

What only one worker needs is imported where that worker is built: a process starts without the others' libraries.
"""

import asyncio
import dataclasses
import datetime
import functools
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

from domain.lifecycle import LIFECYCLE
from messaging import envelope, groups, topic_admin
from messaging.reachability import KafkaMonitor
from messaging.runtime import WorkerRuntime
from messaging.topics import Topic, retry_topics
from messaging.worker import Handler, Limits, WorkerSpec
from orderflow.orders.v1.order_pb2 import NotificationChannel
from settings import Settings
from storage.consumer_groups import ConsumerGroups
from storage.database import Database
from storage.replay_claims import ReplayClaims
from telemetry import logs, process
from telemetry.health import Health
from workers import endpoints, set_up

if TYPE_CHECKING:
    from storage.standing import Patience
    from workers.channels.channel import Channel
    from workers.notification_service import Ambiguous, NotificationService

log = logs.get()

_FATAL_DRIFT: Final = ("topic", "partitions")
_SMS_IN_FLIGHT: Final = 8
"""Text messages handed to a provider at once per partition: more would only meet its limits."""


class Runtime(Protocol):
    """What a worker process runs."""

    @property
    def registers(self) -> tuple[Topic, ...]:
        """The topics that the group commits offsets of on Kafka; none where its offsets live elsewhere."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether it can make progress."""
        ...

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then drains."""
        ...


@dataclasses.dataclass(frozen=True)
class _Parts:
    """What every worker is built from."""

    settings: Settings
    database: Database
    client_id: str
    limits: Limits

    def runtime(self, spec: WorkerSpec, handle: Handler, limits: Limits | None = None) -> WorkerRuntime:
        return WorkerRuntime(
            spec,
            handle,
            kafka=self.settings.kafka,
            limits=limits or self.limits,
            client_id=self.client_id,
            tiers=retry_topics(spec.group, self.settings.kafka.retry_delay_seconds),
            claim=ReplayClaims(self.database, spec.group).claim,
        )


@asynccontextmanager
async def _order_processor(parts: _Parts) -> AsyncIterator[Runtime]:
    from messaging.publisher import Publisher
    from storage.due_orders import DueOrders
    from storage.order_commands import OrderCommands
    from storage.order_decisions import OrderDecisions
    from storage.standing import StandingRecords
    from workers import order_processor
    from workers.standing import StandingFigures
    from workers.sweep import Sweep, TimedRuntime

    handle = functools.partial(
        order_processor.handle,
        decisions=OrderDecisions(parts.database, now=process.now),
        order_commands=OrderCommands(parts.database, now=process.now),
    )
    publisher = Publisher(parts.settings.kafka, client_id=f"{parts.client_id}-sweep")
    worker = parts.settings.worker
    sweep = Sweep(
        due=DueOrders(parts.database),
        publisher=publisher,
        interval=worker.sweep_seconds,
        patience=datetime.timedelta(minutes=worker.unsettled_minutes),
        key_window=datetime.timedelta(hours=parts.settings.gateway.key_window_hours),
        now=process.now,
        source=order_processor.SPEC.group,
    )
    figures = StandingFigures(
        records=StandingRecords(parts.database, patience=patience(parts.settings)),
        interval=worker.standing_seconds,
        now=process.now,
    )
    publisher.start()
    try:
        yield TimedRuntime(parts.runtime(order_processor.SPEC, handle), sweep, figures)
    finally:
        await publisher.close()


def patience(settings: Settings) -> "Patience":
    """Returns after how long an order is overdue: what the sweep asks about is when it has asked twice."""
    from storage.standing import Patience

    worker = settings.worker
    return Patience(
        waiting=datetime.timedelta(minutes=worker.overdue_minutes),
        unpaid=2 * datetime.timedelta(seconds=worker.sweep_seconds),
        refunding=datetime.timedelta(hours=settings.gateway.key_window_hours)
        + 2 * datetime.timedelta(minutes=worker.unsettled_minutes),
    )


@asynccontextmanager
async def _payment_processor(parts: _Parts) -> AsyncIterator[Runtime]:
    from storage.payment_decisions import PaymentDecisions
    from storage.refund_decisions import RefundDecisions
    from workers import payment_processor
    from workers.gateways import choice
    from workers.refunds import Refunds

    gateway = choice.guarded(choice.chosen(parts.settings, parts.database), parts.settings.gateway)
    key_window = datetime.timedelta(hours=parts.settings.gateway.key_window_hours)
    refunds = Refunds(
        decisions=RefundDecisions(parts.database, now=process.now),
        gateway=gateway,
        key_window=key_window,
        now=process.now,
    )
    handle = functools.partial(
        payment_processor.handle,
        decisions=PaymentDecisions(parts.database, now=process.now),
        refunds=refunds,
        gateway=gateway,
        key_window=key_window,
        now=process.now,
    )
    try:
        yield parts.runtime(payment_processor.SPEC, handle)
    finally:
        await gateway.aclose()


@asynccontextmanager
async def _notification_email(parts: _Parts) -> AsyncIterator[Runtime]:
    from workers import notification_service
    from workers.channels import choice

    channel = choice.email_channel(parts.settings.email)
    # More would only wait for a connection, and that counts as the server being away.
    limits = dataclasses.replace(
        parts.limits, max_in_flight=min(parts.limits.max_in_flight, max(parts.settings.email.connections // 2, 1))
    )
    told = parts.settings.notification
    service = _notification_service(
        parts,
        NotificationChannel.NOTIFICATION_CHANNEL_EMAIL,
        channel,
        tells=told.email_event_names,
        ambiguous=told.email_ambiguous,
    )
    try:
        yield parts.runtime(notification_service.EMAIL_SPEC, service.handle, limits)
    finally:
        await channel.aclose()


@asynccontextmanager
async def _notification_sms(parts: _Parts) -> AsyncIterator[Runtime]:
    from workers import notification_service
    from workers.channels import choice

    channel, limits = choice.sms_channel(parts.settings.sms), parts.limits
    if parts.settings.sms.kind == "http":
        limits = dataclasses.replace(limits, max_in_flight=min(limits.max_in_flight, _SMS_IN_FLIGHT))
    told = parts.settings.notification
    service = _notification_service(
        parts,
        NotificationChannel.NOTIFICATION_CHANNEL_SMS,
        channel,
        tells=told.sms_event_names,
        ambiguous=told.sms_ambiguous,
    )
    try:
        yield parts.runtime(notification_service.SMS_SPEC, service.handle, limits)
    finally:
        await channel.aclose()


def _notification_service(
    parts: _Parts, which: NotificationChannel, channel: "Channel", *, tells: frozenset[str], ambiguous: "Ambiguous"
) -> "NotificationService":
    from storage.notification_intents import NotificationIntents
    from workers.channels.observed import ObservedChannel
    from workers.channels.rendering import Renderer, channel_name
    from workers.notification_service import NotificationService

    return NotificationService(
        which=which,
        channel=ObservedChannel(channel, channel_name(which)),
        renderer=Renderer(
            message_id_domain=parts.settings.email.message_id_domain, shop_name=parts.settings.notification.shop_name
        ),
        intents=NotificationIntents(parts.database, which),
        tells=frozenset(event for event in LIFECYCLE if envelope.type_name(event) in tells),
        ambiguous=ambiguous,
        max_age=datetime.timedelta(hours=parts.settings.notification.max_age_hours),
        now=process.now,
    )


@asynccontextmanager
async def _projector(parts: _Parts) -> AsyncIterator[Runtime]:
    from messaging.projection import ProjectionRuntime
    from storage.projection import Projection
    from workers import projector

    yield ProjectionRuntime(
        group=projector.GROUP,
        reads=projector.READS,
        read_model=Projection(parts.database),
        kafka=parts.settings.kafka,
        client_id=parts.client_id,
        lag_seconds=parts.settings.worker.lag_seconds,
    )


WORKERS: Final[dict[str, Callable[[_Parts], AbstractAsyncContextManager[Runtime]]]] = {
    "order-processor": _order_processor,
    "payment-processor": _payment_processor,
    "notification-email": _notification_email,
    "notification-sms": _notification_sms,
    "projector": _projector,
}


async def work(name: str, settings: Settings, stop: asyncio.Event) -> None:
    """Runs the worker `name` of WORKERS until `stop` is set, then drains.

    Raises:
        SettingsError: an address cannot be listened on.
        MigrationError: the database's migrations are not this version's.
        GroupOffsetLostError: see messaging.partition.
    """
    client_id = f"{name}-{socket.gethostname()}-{os.getpid()}"
    parts = _Parts(settings, Database(settings.database, application=name, of_many=True), client_id, _limits(settings))
    monitor = KafkaMonitor(settings.kafka, client_id=client_id)
    async with AsyncExitStack() as stack:
        await parts.database.open()
        stack.push_async_callback(parts.database.close)
        runtime = await stack.enter_async_context(WORKERS[name](parts))
        health = Health((), lambda: monitor.is_reachable and runtime.is_ready)
        address, metrics_address = await endpoints.serve(health, settings.worker, stack)
        tasks = [asyncio.create_task(monitor.run()), asyncio.create_task(health.run())]
        stack.push_async_callback(endpoints.cancelled, tasks)
        log.info("process.started", worker=name, health=address, metrics=metrics_address)
        look = functools.partial(_missing, parts, name, runtime.registers)
        if await set_up.wait(look, worker=name, stop=stop):
            running = asyncio.create_task(runtime.run(stop), name=name)
            try:
                await process.until_stopped_or_failed(stop, running, *tasks)
            finally:
                await health.stop()
                stop.set()
                await running


def _limits(settings: Settings) -> Limits:
    worker = settings.worker
    return Limits(
        max_in_flight=worker.max_in_flight,
        attempts=worker.attempts,
        retry_limit=worker.retry_limit,
        backoff_base=worker.backoff_base,
        backoff_cap=worker.backoff_cap,
        handling=worker.handling_limit,
        drain=worker.drain_seconds,
        transaction=worker.transaction_timeout,
        dependency_probe_cap=worker.dependency_probe_cap,
        lag=worker.lag_seconds,
    )


async def _missing(parts: _Parts, name: str, registers: tuple[Topic, ...]) -> str:
    """Returns what of Kafka and PostgreSQL is not set up; if nothing, registers the group."""
    kafka = parts.settings.kafka
    if missing := [drift.topic for drift in await topic_admin.plan(kafka) if drift.what in _FATAL_DRIFT]:
        return f"topics {', '.join(missing)}: run `orderflow topics apply`"
    if waits_for := await set_up.migrations(parts.settings.database):
        return waits_for
    await groups.ensure_known(
        ConsumerGroups(parts.database), group=name, topics=registers, kafka=kafka, client_id=parts.client_id
    )
    return ""
