"""The webhook: only what the gateway signed is put on Kafka, and only what is durable there is answered with 2xx."""

import asyncio
import functools
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
from aiohttp.test_utils import TestClient, TestServer

from messaging import envelope
from messaging.envelope import OutgoingRecord
from messaging.publisher import NotHandedOver, OutcomeUnknown
from messaging.topics import ORDERS
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from tests.builders import NOW
from workers import webhook
from workers.gateways import stripe
from workers.webhook import MOST_BYTES, PATH, Webhook

SECRET = "whsec_canary"
ORDER_ID = "00000000-0000-4000-8000-000000000001"


def a_report(kind: str = "payment_intent.succeeded", order_id: str = ORDER_ID, **changes: Any) -> bytes:
    about = {
        "id": "pi_1",
        "metadata": {"order_id": order_id, "key": "k"},
        "last_payment_error": {"card": "canary-card"},
    }
    event = {"id": "evt_1", "object": "event", "type": kind, "data": {"object": about}}
    return json.dumps(event | changes).encode()


def signed(body: bytes, *, secret: str = SECRET, at: float | None = None) -> dict[str, str]:
    moment = int(time.time() if at is None else at)
    digest = hmac.new(secret.encode(), f"{moment}.".encode() + body, hashlib.sha256).hexdigest()
    return {"Stripe-Signature": f"t={moment},v1={digest}"}


class Publisher:
    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.records: list[OutgoingRecord] = []

    async def publish(self, record: OutgoingRecord, *, timeout: float) -> None:
        await self.may_go_on.wait()
        if self.failure is not None:
            raise self.failure
        self.records.append(record)


@pytest.fixture
async def publisher() -> Publisher:
    return Publisher()


@pytest.fixture
async def client(publisher: Publisher) -> AsyncIterator[TestClient[Any, Any]]:
    endpoint = Webhook(
        read=functools.partial(stripe.read_report, secret=SECRET, tolerance_seconds=300),
        signature_header=stripe.SIGNATURE_HEADER,
        publisher=publisher,
        now=lambda: NOW,
    )
    async with TestClient(TestServer(endpoint.app())) as connected:
        yield connected


@pytest.mark.parametrize("kind", ["payment_intent.succeeded", "payment_intent.payment_failed"])
async def test_a_report_is_put_on_orders_and_then_answered(
    client: TestClient[Any, Any], publisher: Publisher, kind: str
) -> None:
    body = a_report(kind)
    for _ in range(2):
        assert (await client.post(PATH, data=body, headers=signed(body))).status == 200
    first, second = publisher.records
    assert (first.topic, first.key) == (ORDERS, ORDER_ID.encode())
    event = envelope.decode(ORDERS.name, first.key, first.value)
    assert event.type == OrderEventType.ORDER_EVENT_TYPE_PAYMENT_REPORTED
    assert (event.order.order_id, event.payment_reported.report_id) == (ORDER_ID, "evt_1")
    assert (event.metadata.source, event.metadata.caller, event.revision) == ("webhook", "", 0)
    assert event.event_id == OrderEvent.FromString(second.value or b"").event_id
    assert b"canary" not in (first.value or b"")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        signed(a_report(), secret="whsec_other"),
        signed(a_report(order_id="00000000-0000-4000-8000-000000000002")),
        signed(a_report(), at=time.time() - 400),
        {"Stripe-Signature": "t=now,v1=x"},
        {"Stripe-Signature": "t=1"},
        {"Stripe-Signature": "v1=\u00e9"},
    ],
)
async def test_what_the_gateway_did_not_sign_is_refused(
    client: TestClient[Any, Any], publisher: Publisher, headers: dict[str, str]
) -> None:
    with structlog.testing.capture_logs() as lines:
        assert (await client.post(PATH, data=a_report(), headers=headers)).status == 400
    assert publisher.records == []
    assert [line["event"] for line in lines] == ["webhook.refused"]
    assert "canary" not in str(lines)


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"[]", b'"text"', b"not json"])
async def test_what_is_signed_and_no_event_is_refused(
    client: TestClient[Any, Any], publisher: Publisher, body: bytes
) -> None:
    assert (await client.post(PATH, data=body, headers=signed(body))).status == 400
    assert publisher.records == []


@pytest.mark.parametrize(
    "body",
    [
        a_report("charge.succeeded"),
        a_report("payment_intent.created"),
        a_report(order_id="not-an-order"),
        a_report(order_id=""),
        a_report(data={"object": {"id": "pi_1"}}),
        a_report(data={}),
    ],
)
async def test_what_is_nothing_to_us_is_answered_and_left(
    client: TestClient[Any, Any], publisher: Publisher, body: bytes
) -> None:
    assert (await client.post(PATH, data=body, headers=signed(body))).status == 200
    assert publisher.records == []


@pytest.mark.parametrize("failure", [NotHandedOver("Kafka is not reachable"), OutcomeUnknown("not in time")])
async def test_a_report_that_is_not_durable_is_to_be_delivered_again(
    client: TestClient[Any, Any], publisher: Publisher, failure: Exception
) -> None:
    publisher.failure, body = failure, a_report()
    assert (await client.post(PATH, data=body, headers=signed(body))).status == 503
    publisher.failure = None
    assert (await client.post(PATH, data=body, headers=signed(body))).status == 200


async def test_nothing_is_answered_before_it_is_durable(client: TestClient[Any, Any], publisher: Publisher) -> None:
    publisher.may_go_on.clear()
    body = a_report()
    delivery = asyncio.create_task(client.post(PATH, data=body, headers=signed(body)))
    done, _ = await asyncio.wait([delivery], timeout=0.3)
    assert not done
    publisher.may_go_on.set()
    assert (await delivery).status == 200


async def test_a_body_has_a_limit(client: TestClient[Any, Any], publisher: Publisher) -> None:
    body = a_report(padding="x" * MOST_BYTES)
    assert (await client.post(PATH, data=body, headers=signed(body))).status == 413
    assert publisher.records == []


async def test_a_body_that_never_comes_is_not_waited_for(
    client: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "_READ_SECONDS", 0.2)

    async def dripping() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with asyncio.timeout(30):
        assert (await client.post(PATH, data=dripping())).status == 408


async def test_so_many_at_once_and_no_more(
    client: TestClient[Any, Any], publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "_MOST_AT_ONCE", 2)
    publisher.may_go_on.clear()
    body = a_report()
    deliveries = [asyncio.create_task(client.post(PATH, data=body, headers=signed(body))) for _ in range(3)]
    done, waiting = await asyncio.wait(deliveries, return_when=asyncio.FIRST_COMPLETED, timeout=30)
    assert [task.result().status for task in done] == [503]
    publisher.may_go_on.set()
    assert [answer.status for answer in await asyncio.gather(*waiting)] == [200, 200]


async def test_other_paths_and_methods_are_none(client: TestClient[Any, Any]) -> None:
    assert (await client.get(PATH)).status == 405
    assert (await client.post("/")).status == 404


async def test_a_refund_that_the_gateway_could_not_pay_out_is_told_loudly(
    client: TestClient[Any, Any], publisher: Publisher
) -> None:
    body = a_report("refund.failed", data={"object": {"id": "re_1"}})
    with structlog.testing.capture_logs() as lines:
        assert (await client.post(PATH, data=body, headers=signed(body))).status == 200
    assert [(line["event"], line["log_level"], line["reference"]) for line in lines] == [
        ("webhook.refund_failed", "error", "re_1")
    ]
    assert publisher.records == []
