"""Cancel, ship, complete and refund through the running system, and races of them that one wins."""

import asyncio
import collections
import contextlib
import random
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import grpc
import grpc.aio
import pytest

from orderflow.orders.v1 import order_service_pb2 as pb
from orderflow.orders.v1.order_service_pb2_grpc import OrderServiceStub
from orderflow_client import Money, Order, OrdersClient, OrderStatus, PaymentStatus, item
from tests.e2e import observer, orders
from tests.e2e.observed import ObservedSystem

TOTAL = 3998
KILLED = ("order-processor", "payment-processor")


@pytest.fixture
async def stub(healthy: ObservedSystem) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(healthy.server_address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        yield OrderServiceStub(channel)


async def paid(client: OrdersClient) -> Order:
    order = await orders.settled(client, await orders.place(client))
    assert order.status == OrderStatus.ORDER_STATUS_PAID
    return order


async def until(client: OrdersClient, order_id: str, payment: int) -> Order:
    found: Order | None = None

    async def reached() -> bool:
        nonlocal found
        found = (await client.get_order(order_id)).order
        return bool(found.payment_status == payment)

    await observer.eventually(reached, within=20, what=PaymentStatus.Name(payment))
    assert found is not None
    return found


def kept(system: ObservedSystem) -> dict[str, int]:
    """Returns what the gateway has of each order: charged, less given back."""
    sums: collections.Counter[str] = collections.Counter()
    of_charge: dict[str, str] = {}
    for line in observer.journal(system.gateway_journal):
        if line["kind"] == "charge" and line["approved"]:
            of_charge[line["reference"]] = line["order_id"]
            sums[line["order_id"]] += line["amount_minor"]
        elif line["kind"] == "refund":
            sums[of_charge[line["charge_reference"]]] -= line["amount_minor"]
    return dict(sums)


async def test_a_paid_order_is_cancelled_and_its_money_follows(
    healthy: ObservedSystem, client: OrdersClient, stub: Any
) -> None:
    order = await paid(client)
    request = pb.CancelOrderRequest(order_id=order.order_id, reason="CHANGED_MIND", request_id=str(uuid.uuid4()))
    answer = await stub.CancelOrder(request, timeout=10)
    assert answer.order.status == OrderStatus.ORDER_STATUS_CANCELLED
    assert answer.order.failure_reason == "CHANGED_MIND"
    read = await client.get_order(order.order_id, consistency_token=answer.consistency_token)
    assert read.order.revision >= answer.order.revision
    assert await stub.CancelOrder(request, timeout=10) == answer
    ended = await until(client, order.order_id, PaymentStatus.PAYMENT_STATUS_REFUNDED)
    assert (ended.status, ended.refunded.amount_minor) == (OrderStatus.ORDER_STATUS_CANCELLED, TOTAL)
    assert kept(healthy)[order.order_id] == 0


async def test_a_paid_order_is_shipped_completed_and_refunded(
    healthy: ObservedSystem, client: OrdersClient, stub: Any
) -> None:
    order = await paid(client)
    ship = pb.ShipOrderRequest(order_id=order.order_id, carrier="Parcel Service", tracking_code="T-1", etag=order.etag)
    shipped = (await stub.ShipOrder(ship, timeout=10)).order
    assert (shipped.status, shipped.shipment.tracking_code) == (OrderStatus.ORDER_STATUS_SHIPPED, "T-1")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.CancelOrder(pb.CancelOrderRequest(order_id=order.order_id), timeout=10)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    completed = (await stub.CompleteOrder(pb.CompleteOrderRequest(order_id=order.order_id), timeout=10)).order
    assert completed.status == OrderStatus.ORDER_STATUS_COMPLETED
    part = Money(currency_code="EUR", amount_minor=998)
    refund = pb.RefundOrderRequest(order_id=order.order_id, amount=part, request_id=str(uuid.uuid4()))
    first, again = await asyncio.gather(*(stub.RefundOrder(refund, timeout=10) for _ in range(2)))
    assert first == again
    assert first.order.payment_status == PaymentStatus.PAYMENT_STATUS_PARTIALLY_REFUNDED
    rest = (await stub.RefundOrder(pb.RefundOrderRequest(order_id=order.order_id), timeout=10)).order
    assert (rest.status, rest.refunded.amount_minor) == (OrderStatus.ORDER_STATUS_REFUNDED, TOTAL)
    assert kept(healthy)[order.order_id] == 0

    async def told() -> bool:
        mail = [path.read_text() for path in healthy.mail_folder.glob("[!.]*")]
        return sum(order.order_id in text and "on its way" in text for text in mail) == 1

    await observer.eventually(told, within=20, what="a message that it is on its way")


async def test_an_order_that_was_just_placed_is_cancelled(client: OrdersClient, stub: Any) -> None:
    created = await orders.place(client)
    answer = await stub.CancelOrder(pb.CancelOrderRequest(order_id=created.order.order_id), timeout=10)
    assert answer.order.status == OrderStatus.ORDER_STATUS_CANCELLED


async def race(system: ObservedSystem, client: OrdersClient, stub: Any, *, count: int, within: float) -> None:
    """Has orders cancelled and shipped while they are being paid, and checks that each ends one way, money included."""
    dice, sku = random.Random(count), f"SKU-{uuid.uuid4().hex[:12]}"
    connection = await asyncpg.connect(system.postgres.dsn, timeout=5)
    await connection.execute("insert into stock (sku, available) values ($1, $2)", sku, 2 * count)

    async def ask(method: str, request: Any) -> None:
        await asyncio.sleep(dice.uniform(0, 0.15))  # anywhere in the order's first moments
        with contextlib.suppress(grpc.aio.AioRpcError):
            await getattr(stub, method)(request, timeout=20)

    async def one() -> str:
        placed = await orders.place(client, items=[item(sku, 2, 1999, "EUR")])
        order_id = placed.order.order_id
        await asyncio.gather(
            ask("CancelOrder", pb.CancelOrderRequest(order_id=order_id, request_id="c")),
            ask("ShipOrder", pb.ShipOrderRequest(order_id=order_id, carrier="C", request_id="s")),
        )
        return order_id

    async def left() -> list[str]:
        rows = await connection.fetch(
            "select order_id from orders where order_id = any($1::uuid[]) and status not in (6, 8)", placed
        )
        return [str(row["order_id"]) for row in rows]

    async def all_ended() -> bool:
        # Neither had its turn when it could: too early to ship, or the call was lost with a worker.
        ships = [ask("ShipOrder", pb.ShipOrderRequest(order_id=each, carrier="C")) for each in await left()]
        await asyncio.gather(*ships)
        return not await left()

    try:
        placed: list[str] = []
        for start in range(0, count, 60):
            placed += await asyncio.gather(*(one() for _ in range(start, min(start + 60, count))))
        await observer.eventually(all_ended, within=within, what="every order shipped or cancelled")
        await system.all_caught_up(within=60)
        at_gateway, shipped = kept(system), 0
        for order_id in placed:
            order = (await client.get_order(order_id)).order
            if order.status == OrderStatus.ORDER_STATUS_SHIPPED:
                shipped += 1
                assert (at_gateway[order_id], order.payment_status) == (TOTAL, PaymentStatus.PAYMENT_STATUS_CAPTURED)
            else:
                assert order.status == OrderStatus.ORDER_STATUS_CANCELLED
                assert at_gateway.get(order_id, 0) == 0, f"{order_id} is cancelled and its money kept"
                assert order.payment_status in (
                    PaymentStatus.PAYMENT_STATUS_NONE,
                    PaymentStatus.PAYMENT_STATUS_REFUNDED,
                )
            revisions = await connection.fetch(
                "select revision from order_events where order_id = $1 and revision > 0 order by revision", order_id
            )
            assert [row["revision"] for row in revisions] == list(range(1, order.revision + 1)), "each once"
        level = await connection.fetchrow("select available, held, sold from stock where sku = $1", sku)
        assert tuple(level.values()) == (2 * (count - shipped), 0, 2 * shipped)
    finally:
        await connection.close(timeout=5)


async def test_of_cancel_pay_and_ship_one_wins_60_times(
    healthy: ObservedSystem, client: OrdersClient, stub: Any
) -> None:
    await race(healthy, client, stub, count=60, within=60)


@pytest.mark.heavy
@pytest.mark.timeout(1200)
async def test_of_cancel_pay_and_ship_one_wins_1000_times_while_workers_die(
    healthy: ObservedSystem, client: OrdersClient, stub: Any
) -> None:
    async def kill() -> None:
        dice = random.Random(7)
        while True:
            await asyncio.sleep(dice.uniform(3, 6))
            role = dice.choice(KILLED)
            process = healthy.processes[role]
            process.kill()
            await process.wait_exit(10)
            healthy.start_role(role)

    killing = asyncio.create_task(kill())
    try:
        await race(healthy, client, stub, count=1000, within=300)
        assert not killing.done(), "workers died meanwhile"
    finally:
        killing.cancel()
        await asyncio.wait([killing])
        await healthy.mend()
