"""A worker process: the only place that builds its collaborators.

What only one worker needs is imported where that worker is built: a process starts without the others' libraries.
"""

import asyncio
import contextlib
import dataclasses
import datetime
import functools
import os
import pathlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, Protocol

from aiokafka.errors import KafkaError

from domain.failures import DependencyDown
from domain.lifecycle import LIFECYCLE
from messaging import envelope, groups, topic_admin
from messaging.reachability import KafkaMonitor
from messaging.runtime import WorkerRuntime
from messaging.topics import Topic, retry_topics
from messaging.worker import Handler, Limits, WorkerSpec
from orderflow.orders.v1.order_pb2 import NotificationChannel
from settings import EmailSettings, Settings, SettingsError, SmsSettings
from storage import migrate
from storage.consumer_groups import ConsumerGroups
from storage.database import AWAY, Database
from storage.replay_claims import ReplayClaims
from telemetry import logs, metrics, process
from telemetry.health import Health

if TYPE_CHECKING:
    from domain.reconciliation import Case, FoundCharge
    from storage.reconciliation_cases import ReconciliationCases
    from storage.standing import Patience
    from workers.channels.channel import Channel
    from workers.channels.email import EmailChannel
    from workers.gateways.gateway import PaymentGateway
    from workers.gateways.stripe import StripeGateway
    from workers.notification_service import Ambiguous, NotificationService
    from workers.reconciliation import Reconciliation
    from workers.webhook import Webhook

log = logs.get()

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 1.0
_SET_UP_SECONDS: Final = 15.0
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


def now() -> datetime.datetime:
    """Returns the time, aware, in UTC."""
    return datetime.datetime.now(datetime.UTC)


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
        decisions=OrderDecisions(parts.database, now=now),
        order_commands=OrderCommands(parts.database, now=now),
    )
    publisher = Publisher(parts.settings.kafka, client_id=f"{parts.client_id}-sweep")
    worker = parts.settings.worker
    sweep = Sweep(
        due=DueOrders(parts.database),
        publisher=publisher,
        interval=worker.sweep_seconds,
        patience=datetime.timedelta(minutes=worker.unsettled_minutes),
        key_window=datetime.timedelta(hours=parts.settings.gateway.key_window_hours),
        now=now,
        source=order_processor.SPEC.group,
    )
    figures = StandingFigures(
        records=StandingRecords(parts.database, patience=patience(parts.settings)),
        interval=worker.standing_seconds,
        now=now,
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
    from workers.refunds import Refunds

    gateway = _guarded(_gateway(parts.settings, parts.database), parts.settings)
    key_window = datetime.timedelta(hours=parts.settings.gateway.key_window_hours)
    refunds = Refunds(
        decisions=RefundDecisions(parts.database, now=now),
        gateway=gateway,
        key_window=key_window,
        now=now,
    )
    handle = functools.partial(
        payment_processor.handle,
        decisions=PaymentDecisions(parts.database, now=now),
        refunds=refunds,
        gateway=gateway,
        key_window=key_window,
        now=now,
    )
    try:
        yield parts.runtime(payment_processor.SPEC, handle)
    finally:
        await gateway.aclose()


def _gateway(settings: Settings, database: Database) -> "PaymentGateway":
    if settings.gateway.kind == "stripe":
        return _stripe(settings, database)

    if settings.gateway.kind == "remote":
        from workers.gateways.remote import HttpGateway

        return HttpGateway(
            settings.gateway.url,
            connect_timeout=settings.gateway.connect_timeout,
            total_timeout=settings.gateway.timeout,
        )

    from workers.gateways.simulated import SimulatedGateway

    return SimulatedGateway(
        latency=settings.gateway.simulated_latency_ms / 1000,
        benchmark_declines=settings.gateway.simulated_decline_every_50th,
    )


def _stripe(settings: Settings, database: Database) -> "StripeGateway":
    from storage.payment_intents import PaymentIntents
    from workers.gateways.stripe import StripeGateway

    if settings.stripe.key is None or not settings.stripe.key.get_secret_value():
        raise SettingsError("ORDERFLOW_STRIPE_KEY must be set where ORDERFLOW_GATEWAY_KIND is stripe")
    return StripeGateway(
        settings.stripe.key.get_secret_value(),
        references=PaymentIntents(database),
        base_url=settings.stripe.url,
        connect_timeout=settings.gateway.connect_timeout,
        total_timeout=settings.gateway.timeout,
    )


async def gateway_charges(
    settings: Settings, database: Database, since: datetime.datetime, until: datetime.datetime
) -> "list[FoundCharge]":
    """Returns the charges that the gateway has of a time. None of a simulated one, which is in another process.

    Raises:
        SettingsError: there is no key for it.
        GatewayUnavailable: it does not answer.
        GatewayRefused: it refuses the question itself.
    """
    from domain.orders import charge_key
    from domain.reconciliation import FoundCharge

    found: list[FoundCharge] = []
    if settings.gateway.kind == "stripe":
        stripe = _stripe(settings, database)
        async with contextlib.aclosing(stripe):
            found = await stripe.made(since, until)
    elif settings.gateway.kind == "remote":
        async with contextlib.aclosing(_gateway(settings, database)) as gateway:
            cursor: str | None = ""
            while cursor is not None:
                page = await gateway.movements(since, until, cursor)
                charges = [each for each in page.movements if each.kind == "charge"]
                found += [FoundCharge(charge_key(each.order_id), has_money=True) for each in charges]
                cursor = page.next_cursor or None
    return found


def _guarded(gateway: "PaymentGateway", settings: Settings) -> "PaymentGateway":
    from workers.gateways.guard import GuardedGateway
    from workers.gateways.observed import ObservedGateway

    states = ("closed", "open", "half_open")

    def show(state: str) -> None:
        for each in states:
            metrics.BREAKER_STATE.labels("gateway", each).set(each == state)

    def changed(old: str, new: str) -> None:
        log.warning("gateway.breaker", old=old, new=new)
        metrics.BREAKER_TRANSITIONS.labels("gateway", new).inc()
        show(new)

    show("closed")
    return GuardedGateway(
        ObservedGateway(gateway),
        fail_max=settings.gateway.breaker_failures,
        reset_timeout=settings.gateway.breaker_reset_seconds,
        on_transition=changed,
        on_call=lambda outcome: metrics.of(metrics.BREAKER_CALLS, "gateway", outcome).inc(),
    )


@asynccontextmanager
async def _notification_email(parts: _Parts) -> AsyncIterator[Runtime]:
    from workers import notification_service

    channel = email_channel(parts.settings.email)
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


def email_channel(settings: EmailSettings) -> "EmailChannel":
    """Returns the channel of the settings. It connects with the first message.

    Raises:
        SettingsError: the sender or the authorities' file cannot be used.
    """
    from workers.channels.email import EmailChannel
    from workers.channels.smtp_pool import SmtpServer

    try:
        return EmailChannel(
            SmtpServer(
                host=settings.host,
                port=settings.port,
                tls=settings.tls,
                ca_file=settings.ca_file,
                username=settings.username,
                password=settings.password.get_secret_value() if settings.password else None,
                timeout_seconds=settings.timeout,
            ),
            sender=settings.sender,
            send_limit_seconds=settings.timeout,
            connections=settings.connections,
        )
    except OSError as error:  # an ssl.SSLError is one
        raise SettingsError(f"ORDERFLOW_EMAIL_CA_FILE: {error}") from error
    except ValueError as error:
        raise SettingsError(f"ORDERFLOW_EMAIL_SENDER: {error}") from error


@asynccontextmanager
async def _notification_sms(parts: _Parts) -> AsyncIterator[Runtime]:
    from workers import notification_service

    channel, limits = sms_channel(parts.settings.sms), parts.limits
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


def sms_channel(settings: SmsSettings) -> "Channel":
    """Returns the channel of the settings. It connects with the first message.

    Raises:
        SettingsError: the address or the authorities' file cannot be used.
    """
    if settings.kind == "folder":
        from workers.channels.sms import FolderSmsChannel

        return FolderSmsChannel(pathlib.Path(settings.folder))

    import httpx

    from workers.channels.sms_http import HttpSmsChannel

    assert settings.url is not None
    assert settings.token is not None
    try:
        return HttpSmsChannel(
            settings.url,
            token=settings.token.get_secret_value(),
            send_limit_seconds=settings.timeout,
            ca_file=settings.ca_file,
        )
    except OSError as error:  # an ssl.SSLError is one
        raise SettingsError(f"ORDERFLOW_SMS_CA_FILE: {error}") from error
    except httpx.InvalidURL as error:
        raise SettingsError(f"ORDERFLOW_SMS_URL: {error}") from error


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
        now=now,
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
        address = await _serve_health(health, settings.worker.health_listen, stack)
        metrics_address = stack.enter_context(process.metrics_endpoint(settings.worker.metrics_listen))
        tasks = [asyncio.create_task(monitor.run()), asyncio.create_task(health.run())]
        stack.push_async_callback(_cancelled, tasks)
        log.info("process.started", worker=name, health=address, metrics=metrics_address)
        if await _set_up(parts, name, runtime.registers, stop):
            running = asyncio.create_task(runtime.run(stop), name=name)
            try:
                await process.until_stopped_or_failed(stop, running, *tasks)
            finally:
                await health.stop()
                stop.set()
                await running


async def reconcile(settings: Settings, stop: asyncio.Event) -> None:
    """Runs the reconciler until `stop` is set. It needs no Kafka.

    Raises:
        SettingsError: an address cannot be listened on, or there is no gateway to ask.
        MigrationError: the database's migrations are not this version's.
    """
    from workers.reconciler import Reconciler, Span

    chosen = settings.reconciler
    async with _reconciliation(settings) as (compared, cases), AsyncExitStack() as stack:
        reconciler = Reconciler(
            compared=compared,
            cases=cases,
            span=Span(
                settle=datetime.timedelta(minutes=chosen.settle_minutes),
                overlap=datetime.timedelta(minutes=chosen.overlap_minutes),
                look_back=datetime.timedelta(days=chosen.look_back_days),
            ),
            interval=chosen.interval,
            now=now,
        )
        health = Health((), lambda: reconciler.is_ready)
        address = await _serve_health(health, settings.worker.health_listen, stack)
        metrics_address = stack.enter_context(process.metrics_endpoint(settings.worker.metrics_listen))
        answering = asyncio.create_task(health.run())
        stack.push_async_callback(_cancelled, [answering])
        log.info("process.started", worker="reconciler", health=address, metrics=metrics_address)
        if await _migrated(settings, stop):
            running = asyncio.create_task(reconciler.run(stop), name="reconciler")
            try:
                await process.until_stopped_or_failed(stop, running, answering)
            finally:
                await health.stop()
                stop.set()
                await running


async def differences(settings: Settings, since: datetime.timedelta) -> "AsyncIterator[list[Case]]":
    """Compares once, from so long ago on, and open cases anew; writes nothing. Yields batches of orders.

    Raises:
        SettingsError: there is no gateway to ask.
        DependencyDown: PostgreSQL or the gateway is away.
        GatewayRefused: the gateway refuses the question itself.
    """
    async with _reconciliation(settings) as (compared, _):
        until = now() - datetime.timedelta(minutes=settings.reconciler.settle_minutes)
        async for cases in compared.window(until - since, until, until=until):
            yield cases
        async for cases in compared.open_cases(until=until):
            yield cases


@asynccontextmanager
async def _reconciliation(settings: Settings) -> "AsyncIterator[tuple[Reconciliation, ReconciliationCases]]":
    from storage.ledger import Ledger
    from storage.reconciliation_cases import ReconciliationCases
    from workers.reconciliation import Reconciliation

    if settings.gateway.kind == "simulated":
        raise SettingsError(
            "ORDERFLOW_GATEWAY_KIND: a simulated gateway lives inside its payment processor; no other"
            " process can ask it"
        )
    database = Database(settings.database, application="reconciler")
    gateway = _gateway(settings, database)
    await database.open()
    try:
        cases = ReconciliationCases(database)
        yield Reconciliation(gateway=gateway, ledger=Ledger(database), cases=cases), cases
    finally:
        await gateway.aclose()
        await database.close()


async def _migrated(settings: Settings, stop: asyncio.Event) -> bool:
    """Waits until PostgreSQL answers and is set up. False: told to stop before."""
    pauses = _pauses()
    while not stop.is_set():
        try:
            if not await migrate.pending(settings.database):
                return True
            waits_for = "migrations: run `orderflow db migrate`"
        except AWAY as error:
            waits_for = repr(error)
        log.warning("worker.waiting", worker="reconciler", waits_for=waits_for)
        with suppress(TimeoutError):
            async with asyncio.timeout(next(pauses)):
                await stop.wait()
    return False


async def receive_reports(settings: Settings, stop: asyncio.Event) -> None:
    """Takes the payment gateway's reports until `stop` is set, then finishes those that are under way.

    Raises:
        SettingsError: there is no secret, or an address cannot be listened on.
    """
    from messaging.publisher import Publisher
    from workers.gateways import stripe
    from workers.webhook import PATH, SOURCE, Webhook

    if settings.stripe.webhook_secret is None or not settings.stripe.webhook_secret.get_secret_value():
        raise SettingsError("ORDERFLOW_STRIPE_WEBHOOK_SECRET must be set for the webhook")
    read = functools.partial(
        stripe.read_report,
        secret=settings.stripe.webhook_secret.get_secret_value(),
        tolerance_seconds=settings.stripe.webhook_tolerance_seconds,
    )
    client_id = f"{SOURCE}-{socket.gethostname()}-{os.getpid()}"
    publisher = Publisher(settings.kafka, client_id=client_id)
    monitor = KafkaMonitor(settings.kafka, client_id=client_id)
    webhook = Webhook(read=read, signature_header=stripe.SIGNATURE_HEADER, publisher=publisher, now=now)
    async with AsyncExitStack() as stack:
        publisher.start()
        stack.push_async_callback(publisher.close)
        health = Health((), lambda: monitor.is_reachable and publisher.is_ready)
        address = await _serve_health(health, settings.worker.health_listen, stack)
        metrics_address = stack.enter_context(process.metrics_endpoint(settings.worker.metrics_listen))
        tasks = [asyncio.create_task(monitor.run()), asyncio.create_task(health.run())]
        stack.push_async_callback(_cancelled, tasks)
        listen = await _serve_webhook(webhook, settings, stack)
        log.info("process.started", listen=f"{listen}{PATH}", health=address, metrics=metrics_address)
        try:
            await process.until_stopped_or_failed(stop, *tasks)
        finally:
            await health.stop()


async def _serve_webhook(webhook: "Webhook", settings: Settings, stack: AsyncExitStack) -> str:
    from aiohttp import web

    runner = web.AppRunner(
        webhook.app(), access_log=None, shutdown_timeout=settings.worker.drain_seconds, handler_cancellation=False
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    try:
        host, port = process.split(settings.stripe.webhook_listen)
        await web.TCPSite(runner, host, port).start()
    except (OSError, ValueError) as error:
        raise SettingsError(f"ORDERFLOW_STRIPE_WEBHOOK_LISTEN: {error}") from error
    return f"{host}:{runner.addresses[0][1]}"


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


async def _serve_health(health: Health, listen: str, stack: AsyncExitStack) -> str:
    try:
        return await stack.enter_async_context(health.listening(listen, reflects=True))
    except OSError as error:
        raise SettingsError(f"ORDERFLOW_WORKER_HEALTH_LISTEN: {error}") from error


async def _set_up(parts: _Parts, name: str, registers: tuple[Topic, ...], stop: asyncio.Event) -> bool:
    """Waits until Kafka and PostgreSQL answer and are set up, and registers the group. False: told to stop before."""
    kafka, pauses = parts.settings.kafka, _pauses()
    while not stop.is_set():
        try:
            # A look at Kafka may wait for as long as it is away, and hears no stop.
            async with asyncio.timeout(_SET_UP_SECONDS):
                if missing := [drift.topic for drift in await topic_admin.plan(kafka) if drift.what in _FATAL_DRIFT]:
                    waits_for = f"topics {', '.join(missing)}: run `orderflow topics apply`"
                elif await migrate.pending(parts.settings.database):
                    waits_for = "migrations: run `orderflow db migrate`"
                else:
                    await groups.ensure_known(
                        ConsumerGroups(parts.database),
                        group=name,
                        topics=registers,
                        kafka=kafka,
                        client_id=parts.client_id,
                    )
                    return True
        except (KafkaError, DependencyDown, *AWAY) as error:
            waits_for = repr(error)
        log.warning("worker.waiting", worker=name, waits_for=waits_for)
        with suppress(TimeoutError):
            async with asyncio.timeout(next(pauses)):
                await stop.wait()
    return False


def _pauses() -> Iterator[float]:
    """Yields how long to wait before each further look: not long at first, for who starts together with Kafka."""
    pause = _FIRST_PAUSE_SECONDS
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


_FATAL_DRIFT: Final = ("topic", "partitions")


async def _cancelled(tasks: list["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
