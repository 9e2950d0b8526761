"""The payment gateway that the settings choose, and what guards it.

What only one of them needs is imported where that one is built.
"""

import contextlib
import datetime
from typing import TYPE_CHECKING

from domain.orders import charge_key
from domain.reconciliation import FoundCharge
from settings import GatewaySettings, Settings, SettingsError
from storage.database import Database
from telemetry import logs, metrics
from workers.gateways.gateway import PaymentGateway
from workers.gateways.guard import GuardedGateway
from workers.gateways.observed import ObservedGateway

if TYPE_CHECKING:
    from workers.gateways.stripe import StripeGateway

log = logs.get()


def chosen(settings: Settings, database: Database) -> PaymentGateway:
    """Returns the gateway of the settings. It connects with the first call.

    Raises:
        SettingsError: there is no key for it.
    """
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


def guarded(gateway: PaymentGateway, settings: GatewaySettings) -> PaymentGateway:
    """Returns the gateway behind its circuit breaker, with metrics of both."""
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
        fail_max=settings.breaker_failures,
        reset_timeout=settings.breaker_reset_seconds,
        on_transition=changed,
        on_call=lambda outcome: metrics.of(metrics.BREAKER_CALLS, "gateway", outcome).inc(),
    )


async def charges(
    settings: Settings, database: Database, since: datetime.datetime, until: datetime.datetime
) -> list[FoundCharge]:
    """Returns the charges that the gateway has of a time. None of a simulated one, which is in another process.

    Raises:
        SettingsError: there is no key for it.
        GatewayUnavailable: it does not answer.
        GatewayRefused: it refuses the question itself.
    """
    found: list[FoundCharge] = []
    if settings.gateway.kind == "stripe":
        stripe = _stripe(settings, database)
        async with contextlib.aclosing(stripe):
            found = await stripe.made(since, until)
    elif settings.gateway.kind == "remote":
        async with contextlib.aclosing(chosen(settings, database)) as gateway:
            cursor: str | None = ""
            while cursor is not None:
                page = await gateway.movements(since, until, cursor)
                found += [
                    FoundCharge(charge_key(each.order_id), has_money=True)
                    for each in page.movements
                    if each.kind == "charge"
                ]
                cursor = page.next_cursor or None
    return found
