"""The reconciler's process, and a comparison by hand: the only place that builds their collaborators."""

import asyncio
import datetime
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from domain.reconciliation import Case
from settings import Settings, SettingsError
from storage.database import Database
from storage.ledger import Ledger
from storage.reconciliation_cases import ReconciliationCases
from telemetry import logs, process
from telemetry.health import Health
from workers import endpoints, set_up
from workers.gateways import choice
from workers.reconciler import Reconciler, Span
from workers.reconciliation import Reconciliation

log = logs.get()


async def reconcile(settings: Settings, stop: asyncio.Event) -> None:
    """Runs the reconciler until `stop` is set. It needs no Kafka.

    Raises:
        SettingsError: an address cannot be listened on, or there is no gateway to ask.
        MigrationError: the database's migrations are not this version's.
    """
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
            now=process.now,
        )
        health = Health((), lambda: reconciler.is_ready)
        address, metrics_address = await endpoints.serve(health, settings.worker, stack)
        answering = asyncio.create_task(health.run())
        stack.push_async_callback(endpoints.cancelled, [answering])
        log.info("process.started", worker="reconciler", health=address, metrics=metrics_address)
        if await set_up.wait(lambda: set_up.migrations(settings.database), worker="reconciler", stop=stop):
            running = asyncio.create_task(reconciler.run(stop), name="reconciler")
            try:
                await process.until_stopped_or_failed(stop, running, answering)
            finally:
                await health.stop()
                stop.set()
                await running


async def differences(settings: Settings, since: datetime.timedelta) -> AsyncIterator[list[Case]]:
    """Compares once, from so long ago on, and open cases anew; writes nothing. Yields batches of orders.

    Raises:
        SettingsError: there is no gateway to ask.
        DependencyDown: PostgreSQL or the gateway is away.
        GatewayRefused: the gateway refuses the question itself.
    """
    async with _reconciliation(settings) as (compared, _):
        until = process.now() - datetime.timedelta(minutes=settings.reconciler.settle_minutes)
        async for cases in compared.window(until - since, until, until=until):
            yield cases
        async for cases in compared.open_cases(until=until):
            yield cases


@asynccontextmanager
async def _reconciliation(settings: Settings) -> AsyncIterator[tuple[Reconciliation, ReconciliationCases]]:
    if settings.gateway.kind == "simulated":
        raise SettingsError(
            "ORDERFLOW_GATEWAY_KIND: a simulated gateway lives inside its payment processor; no other"
            " process can ask it"
        )
    database = Database(settings.database, application="reconciler")
    gateway = choice.chosen(settings, database)
    await database.open()
    try:
        cases = ReconciliationCases(database)
        yield Reconciliation(gateway=gateway, ledger=Ledger(database), cases=cases), cases
    finally:
        await gateway.aclose()
        await database.close()
