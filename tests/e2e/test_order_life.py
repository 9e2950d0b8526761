"""An order through the running system, seen with the tools that its users have."""

import asyncio
import functools
import os

import pytest

from clients.tests.bare_environment import build
from devstack.system import ROLES, WORKERS, System
from orderflow_client import OrdersClient, OrderStatus, PaymentStatus, item
from tests.e2e import observer, orders, programs

REQUEST = {
    "user_id": "u-1",
    "email": "a@example.com",
    "payment_method": "pm_card_visa",
    "items": [{"sku": "SKU-1", "quantity": 2, "unit_price": {"currency_code": "EUR", "amount_minor": "1999"}}],
}


async def test_grpcurl_places_an_order_that_is_paid_within_seconds(healthy: System) -> None:
    created = await programs.grpcurl(healthy.server_address, "CreateOrder", REQUEST)

    assert created["order"]["total"] == {"currencyCode": "EUR", "amountMinor": "3998"}
    assert created["order"]["status"] == "ORDER_STATUS_CREATED"

    async def paid() -> bool:
        got = await programs.grpcurl(healthy.server_address, "GetOrder", {"order_id": created["order"]["orderId"]})
        return bool(got["order"]["status"] == "ORDER_STATUS_PAID")

    # GetOrder by itself may be ahead of the projection: read with the token first.
    with_token = {"order_id": created["order"]["orderId"], "consistency_token": created["consistencyToken"]}
    assert (await programs.grpcurl(healthy.server_address, "GetOrder", with_token))["order"]["orderId"]
    await observer.eventually(paid, within=20, what="ORDER_STATUS_PAID")


async def test_every_process_answers_the_health_probe(healthy: System) -> None:
    async def answers(role: str) -> bool:
        return await programs.probe(healthy.health_address(role)) == 0

    for role in ROLES:
        await observer.eventually(functools.partial(answers, role), within=20, what=f"{role} answers SERVING")


async def test_who_tells_customers_leaves_a_scarce_cpu_to_orders_and_payments(healthy: System) -> None:
    niceness = {role: os.getpriority(os.PRIO_PROCESS, healthy.processes[role].pid) for role in WORKERS}
    others = {niceness[role] for role in ("order-processor", "payment-processor", "projector")}
    assert others == {os.getpriority(os.PRIO_PROCESS, 0)}
    assert {niceness["notification-email"], niceness["notification-sms"]} == {others.pop() + 5}


async def test_declined_and_rejected_orders_give_their_stock_back(healthy: System, client: OrdersClient) -> None:
    declined, sold_out, mispriced = await asyncio.gather(
        orders.place(client, payment_method="pm_card_chargeDeclined"),
        orders.place(client, items=[item("SKU-SOLD-OUT", 1, 999, "EUR"), item("SKU-2", 1, 4950, "EUR")]),
        orders.place(client, items=[item("SKU-1", 1, 1, "EUR")]),
    )
    order = await orders.settled(client, declined)
    assert order.status == OrderStatus.ORDER_STATUS_PAYMENT_FAILED
    assert order.payment_status == PaymentStatus.PAYMENT_STATUS_DECLINED
    assert order.failure_reason == "CARD_DECLINED"
    order = await orders.settled(client, sold_out)
    assert (order.status, order.failure_reason) == (OrderStatus.ORDER_STATUS_REJECTED, "OUT_OF_STOCK")
    order = await orders.settled(client, mispriced)
    assert (order.status, order.failure_reason) == (OrderStatus.ORDER_STATUS_REJECTED, "PRICE_MISMATCH")


async def test_repeating_a_request_is_the_same_order_and_another_payload_is_refused(
    healthy: System, client: OrdersClient
) -> None:
    first = await orders.place(client, request_id="repeat-1")
    paid = await orders.settled(client, first)
    again = await orders.place(client, request_id="repeat-1")

    assert again.order.order_id == first.order.order_id
    assert again.order.revision == paid.revision
    charges = [line for line in observer.journal(healthy.gateway_journal) if first.order.order_id in str(line)]
    assert len(charges) == 1

    reused = await programs.run(
        programs.program("grpcurl"), "-plaintext", "-d",
        '{"request_id":"repeat-1","user_id":"u-2","email":"a@example.com","payment_method":"pm_card_visa","items":'
        '[{"sku":"SKU-1","quantity":1,"unit_price":{"currency_code":"EUR","amount_minor":"1999"}}]}',
        healthy.server_address, "orderflow.orders.v1.OrderService/CreateOrder",
    )  # fmt: skip
    assert reused[0] == 64 + 9  # FAILED_PRECONDITION
    assert "REQUEST_ID_REUSED" in reused[2]


async def test_a_record_reads_with_kcat_and_protoc(healthy: System, client: OrdersClient) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    created = await programs.grpcurl(healthy.server_address, "CreateOrder", REQUEST, "-H", f"traceparent: {trace}")
    order_id = created["order"]["orderId"]
    await orders.settled(client, await orders.place(client))  # so that the record stands well before the end

    kcat = programs.program("kcat")
    bootstrap = f"127.0.0.1:{healthy.ports.kafka}"
    code, listing, err = await programs.run(
        kcat, "-b", bootstrap, "-t", "orders", "-C", "-e", "-q", "-X", "isolation.level=read_committed",
        "-f", "%k|%p|%o|%h\\n",
    )  # fmt: skip
    assert code == 0, err
    [line] = [each for each in listing.decode().splitlines() if order_id in each and "ce_type=ORDER_CREATED" in each]
    key, partition, offset, headers = line.split("|", 3)

    assert key == order_id
    told = dict(header.split("=", 1) for header in headers.split(","))
    assert told["ce_specversion"] == "1.0"
    assert told["ce_source"] == "/orderflow/server"
    assert told["ce_subject"] == order_id
    assert told["content-type"] == "application/protobuf"
    assert told["ce_id"]
    assert told["ce_time"]
    assert told["traceparent"].startswith("00-4bf92f3577b34da6a3ce929d0e0e4736-")
    code, value, err = await programs.run(
        kcat, "-b", bootstrap, "-t", "orders", "-C", "-q", "-p", partition, "-o", offset, "-c", "1", "-D", "",
        "-f", "%s",
    )  # fmt: skip
    assert code == 0, err
    text = await programs.protoc_decode("orderflow.events.v1.OrderEvent", value)
    assert "type: ORDER_EVENT_TYPE_ORDER_CREATED" in text
    assert f'order_id: "{order_id}"' in text

    events = await observer.read_events(bootstrap, "orders", "payments", "notifications")
    found = {event.metadata.correlation_id for event in events if event.order.order_id == order_id}
    assert found == {order_id}, (len(events), partition, offset)


async def test_one_trace_travels_through_every_hop(healthy: System, client: OrdersClient) -> None:
    created = await orders.place(client, phone="+491701234567")
    await orders.settled(client, created)
    bootstrap = f"127.0.0.1:{healthy.ports.kafka}"

    async def traces() -> set[bytes]:
        found = [
            dict(record.headers)["traceparent"].split(b"-")[1]
            for topic in ("orders", "payments", "notifications")
            for record in await observer.read_topic(bootstrap, topic)
            if record.key == created.order.order_id.encode()
        ]
        # CREATED, PROCESSING, PAID, and each told by e-mail and by text message
        return set(found) if len(found) == 9 else set()

    assert len(await observer.eventually(traces, within=15, what="three events and six notifications")) == 1


async def test_an_order_accepted_while_all_workers_are_down_is_paid_once_they_are_up(
    healthy: System, client: OrdersClient
) -> None:
    await asyncio.gather(*(healthy.stop_role(worker) for worker in WORKERS))
    try:
        created = await orders.place(client)
    finally:
        for worker in WORKERS:
            healthy.start_role(worker)
    order = await orders.settled(client, created, within=30)
    assert order.status == OrderStatus.ORDER_STATUS_PAID


@pytest.mark.timeout(300)  # it builds and installs the client
async def test_the_client_installed_alone_places_an_order(healthy: System, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    environment = await asyncio.to_thread(build, tmp_path_factory.mktemp("bare"))
    assert not environment.can_import("aiokafka")
    assert not environment.can_import("asyncpg")
    assert await asyncio.to_thread(environment.place_order, healthy.server_address)
