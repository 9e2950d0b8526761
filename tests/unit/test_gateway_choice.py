"""One setting chooses the gateway; what the chosen one needs and does not have stops the start, by its name."""

import asyncio
import os
import subprocess
import sys

import pytest

import settings
from messaging.worker import Limits
from settings import SettingsError
from storage.database import Database
from workers import app, webhook_app
from workers.gateways import choice
from workers.gateways.remote import HttpGateway
from workers.gateways.simulated import SimulatedGateway
from workers.gateways.stripe import StripeGateway

CANARY = "sk_live_canary"


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(settings.PREFIX):
            monkeypatch.delenv(name)


def parts() -> app._Parts:
    loaded = settings.load()
    return app._Parts(loaded, Database(loaded.database, application="test"), "test", Limits())


@pytest.mark.parametrize(
    ("kind", "chosen"), [("simulated", SimulatedGateway), ("remote", HttpGateway), ("stripe", StripeGateway)]
)
async def test_one_setting_chooses(monkeypatch: pytest.MonkeyPatch, kind: str, chosen: type[object]) -> None:
    monkeypatch.setenv("ORDERFLOW_GATEWAY_KIND", kind)
    monkeypatch.setenv("ORDERFLOW_STRIPE_KEY", CANARY)
    built = parts()
    assert CANARY not in repr(built)
    gateway = choice.chosen(built.settings, built.database)
    try:
        assert type(gateway) is chosen
        assert CANARY not in repr(gateway)
    finally:
        await gateway.aclose()


@pytest.mark.parametrize("key", [None, ""])
def test_stripe_needs_a_key(monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    monkeypatch.setenv("ORDERFLOW_GATEWAY_KIND", "stripe")
    if key is not None:
        monkeypatch.setenv("ORDERFLOW_STRIPE_KEY", key)
    with pytest.raises(SettingsError, match="ORDERFLOW_STRIPE_KEY must be set"):
        choice.chosen(settings.load(), parts().database)


async def test_the_webhook_needs_a_secret() -> None:
    with pytest.raises(SettingsError, match="ORDERFLOW_STRIPE_WEBHOOK_SECRET must be set"):
        await webhook_app.receive_reports(settings.load(), asyncio.Event())


@pytest.mark.parametrize("url", ["http://api.stripe.com", "ftp://api.stripe.com", "api.stripe.com", "https:///"])
def test_the_key_goes_nowhere_in_plain_text(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("ORDERFLOW_STRIPE_URL", url)
    with pytest.raises(SettingsError, match="ORDERFLOW_STRIPE_URL"):
        settings.load()


def test_nothing_of_stripe_is_loaded_where_another_gateway_is_chosen() -> None:
    script = "import sys, workers.app, workers.gateways.choice, cli.main"
    script += "; sys.exit('stripe' in sys.modules or 'aiohttp' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == 0
