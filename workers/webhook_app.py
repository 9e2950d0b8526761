"""The webhook's process: the only place that builds its collaborators."""

import asyncio
import functools
import os
import socket
from contextlib import AsyncExitStack

from aiohttp import web

from messaging.publisher import Publisher
from messaging.reachability import KafkaMonitor
from settings import Settings, SettingsError
from telemetry import logs, process
from telemetry.health import Health
from workers import endpoints
from workers.gateways import stripe
from workers.webhook import PATH, SOURCE, Webhook

log = logs.get()


async def receive_reports(settings: Settings, stop: asyncio.Event) -> None:
    """Takes the payment gateway's reports until `stop` is set, then finishes those that are under way.

    Raises:
        SettingsError: there is no secret, or an address cannot be listened on.
    """
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
    webhook = Webhook(
        read=read,
        signature_header=stripe.SIGNATURE_HEADER,
        publisher=publisher,
        now=process.now,
    )
    async with AsyncExitStack() as stack:
        publisher.start()
        stack.push_async_callback(publisher.close)
        health = Health((), lambda: monitor.is_reachable and publisher.is_ready)
        address, metrics_address = await endpoints.serve(health, settings.worker, stack)
        tasks = [asyncio.create_task(monitor.run()), asyncio.create_task(health.run())]
        stack.push_async_callback(endpoints.cancelled, tasks)
        listen = await _serve(webhook, settings, stack)
        log.info("process.started", listen=f"{listen}{PATH}", health=address, metrics=metrics_address)
        try:
            await process.until_stopped_or_failed(stop, *tasks)
        finally:
            await health.stop()


async def _serve(webhook: Webhook, settings: Settings, stack: AsyncExitStack) -> str:
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
