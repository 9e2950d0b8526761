"""Every request that StripeGateway makes, checked by stripe-mock against Stripe's own description of its API.

stripe-mock remembers nothing and answers the same to all: what it accepts is all that it shows. Behaviour is tested
against the project's own server, in test_stripe_gateway.py.
"""

import asyncio
import contextlib
import datetime
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from devstack.ports import LOOPBACK, free_ports
from domain.failures import Failure
from tests.builders import NOW
from tests.engines import eventually
from tests.gateways.process import charge
from tests.gateways.references import MemoryReferences
from tools.fetch_tools import find
from workers.gateways.stripe import StripeGateway


@pytest.fixture(scope="module")
async def mock(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    program = find("stripe-mock")
    if program is None:
        pytest.skip("stripe-mock is not on this machine; `make tools` builds it where there is Go")
    http, https = free_ports(2)
    log = tmp_path_factory.mktemp("mock") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
            # Both addresses: without the second one it would listen on all interfaces.
            [program, "-http-addr", f"{LOOPBACK}:{http}", "-https-addr", f"{LOOPBACK}:{https}"],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://{LOOPBACK}:{http}"
    try:
        with httpx.Client(trust_env=False, timeout=1) as client:

            def answers() -> bool:
                assert process.poll() is None, log.read_text()
                with contextlib.suppress(httpx.TransportError):
                    return client.get(url).status_code == 401
                return False

            await eventually(answers, "stripe-mock", seconds=60)
        yield url
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 10)


class Requests:
    """What went to stripe-mock, and what it said of it."""

    def __init__(self, gateway: StripeGateway) -> None:
        self.seen: list[tuple[str, str, int]] = []
        self.refusals: list[str] = []
        inner = gateway._http.request_async

        async def request(method: str, url: str, headers: object, post_data: object = None) -> object:
            content, status, told = await inner(method, url, headers, post_data)
            self.seen.append((method, httpx.URL(url).path, status))
            if status != 200:
                self.refusals.append(content.decode())
            return content, status, told

        gateway._http.request_async = request  # type: ignore[assignment, method-assign]


@pytest.fixture
async def gateway(mock: str) -> AsyncIterator[StripeGateway]:
    gateway = StripeGateway("sk_test_123", references=MemoryReferences(), base_url=mock)
    yield gateway
    await gateway.aclose()


async def test_stripe_takes_every_request_that_we_make(gateway: StripeGateway) -> None:
    requests = Requests(gateway)
    gateway._references.intents["k-2"] = "pi_1"  # type: ignore[attr-defined]
    calls = (
        charge(gateway),  # makes one, and does not believe the answer: it is about another one
        charge(gateway, "k-2"),  # confirms one
        gateway.find("k-2"),
        gateway.close("k-2"),
        gateway.refund("r-1", charge_reference="pi_1", amount_minor=100),
        gateway.find_refund("r-1", charge_reference="pi_1"),
        gateway.movements(NOW, NOW + datetime.timedelta(days=1)),
        gateway.movements(NOW, NOW + datetime.timedelta(days=1), "refunds:re_1"),
        gateway.made(NOW, NOW + datetime.timedelta(days=1)),
    )
    for call in calls:
        with contextlib.suppress(Failure):  # of the answers, which are about something else
            await call
    assert requests.refusals == []
    assert [(method, path) for method, path, _ in requests.seen] == [
        ("post", "/v1/payment_intents"),
        ("post", "/v1/payment_intents/pi_1/confirm"),
        ("get", "/v1/payment_intents/pi_1"),
        ("post", "/v1/payment_intents/pi_1/cancel"),
        ("post", "/v1/refunds"),
        ("get", "/v1/refunds"),
        ("get", "/v1/charges"),
        ("get", "/v1/refunds"),
        ("get", "/v1/payment_intents"),
    ]


@pytest.mark.parametrize(
    "wrong", [{"amount": "much"}, {"currency": None}, {"colour": "red"}, {"metadata": "k-1"}], ids=str
)
async def test_stripe_mock_refuses_wrong_requests(gateway: StripeGateway, wrong: dict[str, object]) -> None:
    right = {"amount": 100, "currency": "eur", "payment_method": "pm_card_visa", "metadata": {"key": "k-1"}}
    await gateway._create("c-1", right)
    with pytest.raises(Exception, match="400") as refused:
        await gateway._create("c-2", {name: value for name, value in (right | wrong).items() if value is not None})
    assert type(refused.value).__name__ == "_Refusal"


def test_the_tool_is_fetched_at_a_fixed_version() -> None:
    tools = (Path(__file__).parents[2] / "tools" / "fetch_tools.py").read_text()
    assert '"stripe-mock": "github.com/stripe/stripe-mock@v0.203.0"' in tools
