"""The running system paying through Stripe's SDK, with replies that never arrive and reports that come in disorder."""

import asyncio
import collections
import json
import os
import pathlib
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest

from devstack.ports import free_ports
from devstack.system import Ports, StripeStandIn, System
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow_client import CreateOrderResponse, OrdersClient, OrderStatus, PaymentStatus
from tests.e2e import observer, orders
from tests.gateways.process import put_faults

pytestmark = pytest.mark.timeout(300)

ROOT = pathlib.Path(__file__).resolve().parents[2]
ORDERS = 200
TIMED_OUT = 20
AT_ONCE = 60
REPORTED = 12
DECLINED = "pm_card_chargeDeclinedInsufficientFunds"


@pytest.fixture(scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """A system that pays through Stripe; its webhook does not run yet."""
    ports = Ports.chosen()
    webhook, ports.health["webhook"], ports.metrics["webhook"] = free_ports(3)
    running = System(
        tmp_path_factory.mktemp("stripe"),
        ports,
        settings={
            "ORDERFLOW_KAFKA_RETRY_DELAYS": "1,2",
            "ORDERFLOW_KAFKA_SESSION_TIMEOUT": "3",
            "ORDERFLOW_GATEWAY_CONNECT_TIMEOUT": "1",
            "ORDERFLOW_GATEWAY_TIMEOUT": "3",
            # Where no reply arrives it would let one order through at a time.
            "ORDERFLOW_GATEWAY_BREAKER_FAILURES": "100000",
        },
        stripe=StripeStandIn(webhook, ("--webhook-copies", "2", "--webhook-disorder-seconds", "0.5")),
    )
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


@pytest.fixture
async def client(system: System) -> AsyncIterator[OrdersClient]:
    async with OrdersClient(system.server_address) as connected:
        yield connected
    await faults(system)


async def faults(system: System, **chosen: float) -> None:
    """Has the gateway's calls go wrong like this; without any, like none."""
    assert await put_faults(f"http://127.0.0.1:{system.ports.gateway_admin}", json.dumps(chosen)) == 200


async def place(client: OrdersClient, number: int, **changes: Any) -> list[CreateOrderResponse]:
    return list(await asyncio.gather(*(orders.place(client, **changes) for _ in range(number))))


def ids_of(created: Sequence[CreateOrderResponse]) -> set[str]:
    return {each.order.order_id for each in created}


def listed(ids: set[str]) -> str:
    return ", ".join(f"'{each}'" for each in ids)


def executed(system: System, kind: str, ids: set[str]) -> list[dict[str, Any]]:
    """Returns the charges of these orders, or their refunds."""
    lines = observer.journal(system.gateway_journal)
    charges = [line for line in lines if line["kind"] == "charge" and line["order_id"] in ids]
    if kind == "charge":
        return charges
    references = {line["reference"] for line in charges}
    return [line for line in lines if line["kind"] == "refund" and line["charge_reference"] in references]


async def events_of(system: System, ids: set[str]) -> list[OrderEvent]:
    told = await observer.read_events(f"127.0.0.1:{system.ports.kafka}", "orders", "payments")
    return [event for event in told if event.order.order_id in ids]


async def dead_letters_of(system: System, ids: set[str]) -> list[str]:
    letters = await observer.read_topic(f"127.0.0.1:{system.ports.kafka}", "dlq", partitions=1)
    mine = [letter for letter in letters if (letter.key or b"").decode() in ids]
    return [dict(letter.headers)["dlq_error_class"].decode() for letter in mine]


async def all_unknown(system: System, ids: set[str]) -> None:
    async def unknown() -> bool:
        query = f"select count(*) from payments where state = 'unknown' and order_id in ({listed(ids)})"
        return await system.count(query) == len(ids)

    await observer.eventually(unknown, within=60, what=f"{len(ids)} unknown charges")


async def test_200_charges_whose_replies_never_arrive_are_made_once_and_settled_by_looking_up(
    system: System, client: OrdersClient
) -> None:
    # The first are left without an answer; the others lose their connection, in one way or the other. Not all at once:
    # what has not executed yet when its caller gives up is unknown, and stays so as long as there is no webhook.
    created: list[CreateOrderResponse] = []
    await faults(system, time_out_rate=1.0)
    for number in (TIMED_OUT, *[AT_ONCE] * ((ORDERS - TIMED_OUT) // AT_ONCE)):
        some = await place(client, number)
        settled = await asyncio.gather(*(orders.settled(client, each, within=90) for each in some))
        assert {order.status for order in settled} == {OrderStatus.ORDER_STATUS_PAID}
        created += some
        await faults(system, reset_after_rate=0.5, drop_reply_rate=1.0)
    ids = ids_of(created)
    assert len(ids) == ORDERS
    charges = executed(system, "charge", ids)
    assert collections.Counter(line["order_id"] for line in charges) == dict.fromkeys(ids, 1)
    assert all(line["approved"] and line["amount_minor"] == 3998 for line in charges)
    assert await dead_letters_of(system, ids) == []

    called_off = created[:20]
    await asyncio.gather(*(client.cancel_order(each.order.order_id, timeout=30) for each in called_off))
    paid_back = ids_of(called_off)

    async def all_back() -> bool:
        query = f"select count(*) from refunds where state = 'done' and order_id in ({listed(paid_back)})"
        return await system.count(query) == len(paid_back)

    await observer.eventually(all_back, within=60, what="20 refunds")
    refunds = executed(system, "refund", paid_back)
    assert [line["amount_minor"] for line in refunds] == [3998] * len(paid_back)
    assert len({line["charge_reference"] for line in refunds}) == len(paid_back)


async def test_charges_that_nobody_can_tell_of_are_settled_by_reports(system: System, client: OrdersClient) -> None:
    # Stripe goes on with a charge whose caller has given up, and a look-up meanwhile does not tell.
    await faults(system, slow_rate=1.0, slow_seconds=14)
    created = await place(client, REPORTED)
    declined = await place(client, 3, payment_method=DECLINED)
    ids = ids_of(created) | ids_of(declined)
    await all_unknown(system, ids)
    await faults(system)

    async def all_executed() -> bool:
        return len(executed(system, "charge", ids)) == len(ids)

    await observer.eventually(all_executed, within=60, what="15 charges")
    query = f"select count(*) from orders where payment_status = 3 and order_id in ({listed(ids)})"
    assert await system.count(query) == len(ids)

    async def shown() -> bool:
        first = created[0]
        order = (await client.get_order(first.order.order_id, consistency_token=first.consistency_token)).order
        assert order.status == OrderStatus.ORDER_STATUS_PROCESSING
        return bool(order.payment_status == PaymentStatus.PAYMENT_STATUS_UNKNOWN)

    await observer.eventually(shown, within=60, what="an order whose payment is unknown")

    system.start_role("webhook")
    await system.wait_healthy(["webhook"])

    settled = await asyncio.gather(*(orders.settled(client, each, within=60) for each in created))
    refused = await asyncio.gather(*(orders.settled(client, each, within=60) for each in declined))
    assert {order.status for order in settled} == {OrderStatus.ORDER_STATUS_PAID}
    assert {order.payment_status for order in settled} == {PaymentStatus.PAYMENT_STATUS_CAPTURED}
    assert {(order.status, order.failure_reason) for order in refused} == {
        (OrderStatus.ORDER_STATUS_PAYMENT_FAILED, "INSUFFICIENT_FUNDS")
    }
    assert collections.Counter(line["order_id"] for line in executed(system, "charge", ids)) == dict.fromkeys(ids, 1)

    told = await events_of(system, ids)
    reports = {event.event_id for event in told if event.type == OrderEventType.ORDER_EVENT_TYPE_PAYMENT_REPORTED}
    outcomes = [event for event in told if event.HasField("order_paid") or event.HasField("payment_failed")]
    assert len(reports) == len(outcomes) == len(ids), "each report is one event, however often it is delivered"
    assert {event.metadata.causation_id for event in outcomes} == reports
    callers = {event.metadata.caller for event in told if event.revision}
    assert len(callers) == 1, "the events say who placed the order, not who reported"
    assert await dead_letters_of(system, ids) == ["PAYMENT_UNKNOWN"] * len(ids)


async def test_reports_of_what_is_decided_change_nothing(system: System, client: OrdersClient) -> None:
    if "webhook" not in system.processes:
        system.start_role("webhook")
        await system.wait_healthy(["webhook"])
    created = await place(client, 10)
    ids = ids_of(created)
    settled = await asyncio.gather(*(orders.settled(client, each) for each in created))
    assert {order.status for order in settled} == {OrderStatus.ORDER_STATUS_PAID}

    async def decided() -> bool:
        told = await events_of(system, ids)
        reports = {event.event_id for event in told if event.type == OrderEventType.ORDER_EVENT_TYPE_PAYMENT_REPORTED}
        if len(reports) < len(ids):
            return False
        query = (
            f"select count(*) from outcomes where group_name = 'payment-processor' and event_id in ({listed(reports)})"
        )
        return await system.count(query) == len(ids)

    await observer.eventually(decided, within=60, what="an outcome of each report")
    lives = collections.Counter(event.order.order_id for event in await events_of(system, ids) if event.revision)
    assert lives == dict.fromkeys(ids, 3)
    assert len(executed(system, "charge", ids)) == len(ids)


async def test_cancelling_settles_a_charge_that_nobody_can_tell_of(system: System, client: OrdersClient) -> None:
    await faults(system, error_rate=1.0)  # and ever again under the same key
    created = await place(client, 5)
    ids = ids_of(created)
    await all_unknown(system, ids)
    await faults(system)
    await asyncio.gather(*(client.cancel_order(order_id, timeout=30) for order_id in ids))
    keys = {f"charge-{order_id}" for order_id in ids}

    async def all_closed() -> bool:
        lines = observer.journal(system.gateway_journal)
        return keys <= {line["key"] for line in lines if line["kind"] == "close"}

    await observer.eventually(all_closed, within=60, what="5 cancelled PaymentIntents")
    assert executed(system, "charge", ids) == []


async def test_what_stripe_lists_is_what_is_booked(system: System, client: OrdersClient) -> None:
    [created] = await place(client, 1)
    assert (await orders.settled(client, created)).status == OrderStatus.ORDER_STATUS_PAID
    path = os.pathsep.join(str(ROOT / part) for part in ("", "generated", "clients"))

    async def differences() -> list[dict[str, Any]]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli", "reconcile", "--since", "1h", "-o", "json"),
            env={**os.environ, "PYTHONPATH": path, **system.environment(), "ORDERFLOW_RECONCILER_SETTLE_MINUTES": "0"},
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            listed, _ = await process.communicate()
        assert process.returncode in (0, 3)
        found: list[dict[str, Any]] = json.loads(listed)
        return found

    assert await differences() == []
    [charge] = executed(system, "charge", ids_of([created]))
    intent = (await events_of(system, ids_of([created])))[-1].order_paid.gateway_reference
    headers = {"Authorization": "Bearer sk_test_by_hand", "Idempotency-Key": "by hand"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{system.ports.gateway}", trust_env=False) as stripe:
        refund = await stripe.post("/v1/refunds", data={"payment_intent": intent, "amount": "1"}, headers=headers)
    assert refund.status_code == 200
    [found] = await differences()
    assert (found["kind"], found["order_id"]) == ("REFUND_NOT_BOOKED", charge["order_id"])
