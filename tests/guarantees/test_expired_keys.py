"""A dead letter is replayed after the gateway has forgotten its idempotency keys: nothing is charged again."""

import datetime

import grpc.aio
import pytest

from domain.failures import Permanent
from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.operations.v1 import dead_letter_service_pb2 as pb
from orderflow.operations.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub
from orderflow.orders.v1.order_pb2 import OrderStatus, PaymentStatus
from orderflow_client import OrdersClient
from storage.database import Database
from storage.order_decisions import OrderDecisions
from storage.payment_decisions import PaymentDecisions
from storage.stock import Stock
from tests import engines
from tests.builders import NOW, a_delivery, a_sku, an_item, an_order, order_created
from tests.e2e import observer, orders
from tests.guarantees.fronted import FrontedSystem
from workers import payment_processor
from workers.gateways.book import ChargeExecuted, Execution
from workers.gateways.gateway import Charge, ChargeUnknown
from workers.gateways.remote import HttpGateway
from workers.gateways.simulated import SimulatedGateway

KEYS_LAST = datetime.timedelta(hours=24)
WINDOW = datetime.timedelta(hours=23)
PAST_IT = datetime.timedelta(hours=25)


class Silent(SimulatedGateway):
    """A gateway that tells nothing while it is `silent`: answers are lost, look-ups lag behind."""

    def __init__(self, bench: "Bench", *, executes: bool) -> None:
        self.executed: list[Execution] = []
        super().__init__(
            key_ttl=KEYS_LAST.total_seconds(),
            clock=lambda: bench.now.timestamp(),
            on_execution=self.executed.append,
        )
        self.silent = True
        self.sent = 0
        self._executes = executes

    @property
    def charges(self) -> list[ChargeExecuted]:
        return [each for each in self.executed if isinstance(each, ChargeExecuted)]

    async def charge(
        self, key: str, *, order_id: str, amount_minor: int, currency_code: str, payment_method: str
    ) -> Charge:
        self.sent += 1
        asked = {"order_id": order_id, "amount_minor": amount_minor, "currency_code": currency_code}
        if not self.silent:
            return await super().charge(key, **asked, payment_method=payment_method)
        if self._executes:
            await super().charge(key, **asked, payment_method=payment_method)
        raise ChargeUnknown("the answer was lost")

    async def find(self, key: str) -> Charge | None:
        return None if self.silent else await super().find(key)


class Bench:
    """An order that waits for its payment, and the payment processor's handler at a time of the test's choosing."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = NOW

    async def begin(self, *, executes: bool) -> "Bench":
        sku = a_sku()
        await Stock(self.database).set_available(sku, 10)
        created = order_created(an_order(items=[an_item(sku, 3, 500)]), items=[an_item(sku, 3, 500)])
        (event,) = await OrderDecisions(self.database, now=lambda: NOW).accept(
            a_delivery(created, group="order-processor")
        )
        self.order_id = event.order.order_id
        self.delivery: Delivery = a_delivery(event, group="payment-processor", offset=7)
        self.gateway = Silent(self, executes=executes)
        return self

    async def handle(self) -> list[OrderEvent]:
        """Handles the record. A replayed dead letter is handed over with the coordinates of its origin."""
        return list(
            await payment_processor.charge(
                self.delivery,
                decisions=PaymentDecisions(self.database, now=lambda: self.now),
                gateway=self.gateway,
                key_window=WINDOW,
                now=lambda: self.now,
            )
        )

    async def becomes_a_dead_letter(self) -> None:
        with pytest.raises(Permanent, match="PAYMENT_UNKNOWN"):
            await self.handle()

    async def state(self) -> object:
        (row,) = await engines.fetch(self.database, "select state from payments where order_id = $1", self.order_id)
        return row["state"]


async def test_a_charge_that_was_executed_is_found_and_not_made_again(database: Database) -> None:
    bench = await Bench(database).begin(executes=True)
    await bench.becomes_a_dead_letter()
    assert len(bench.gateway.charges) == 1
    sent = bench.gateway.sent

    bench.now += PAST_IT
    bench.gateway.silent = False
    (paid,) = await bench.handle()

    assert paid.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID
    assert paid.order_paid.gateway_reference == bench.gateway.charges[0].reference
    assert (len(bench.gateway.charges), bench.gateway.sent) == (1, sent)
    assert await bench.state() == "captured"


async def test_a_charge_that_nobody_knows_of_stays_unknown_however_often_it_is_replayed(database: Database) -> None:
    bench = await Bench(database).begin(executes=False)
    await bench.becomes_a_dead_letter()
    sent = bench.gateway.sent

    bench.gateway.silent = False
    for _ in range(3):
        bench.now += PAST_IT
        await bench.becomes_a_dead_letter()

    assert (bench.gateway.charges, bench.gateway.sent) == ([], sent)
    assert await bench.state() == "unknown"


@pytest.mark.parametrize("executes", [True, False])
async def test_inside_the_window_a_replay_sends_once_under_the_same_key(database: Database, executes: bool) -> None:
    bench = await Bench(database).begin(executes=executes)
    await bench.becomes_a_dead_letter()
    sent = bench.gateway.sent

    bench.now += datetime.timedelta(hours=22)
    bench.gateway.silent = False
    (paid,) = await bench.handle()

    assert paid.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID
    assert (len(bench.gateway.charges), bench.gateway.sent) == (1, sent + 1)


async def test_a_replay_in_the_running_system_after_the_keys_have_expired(
    healthy: FrontedSystem, client: OrdersClient
) -> None:
    # The charge is sent twice before it becomes a dead letter, which has to happen before the key expires.
    await restart(healthy, key_ttl=5.0, window_hours=1 / 3600)
    try:
        healthy.front.loses_answers = healthy.front.forgets = True
        try:
            created = await orders.place(client)
            order_id = created.order.order_id
            letter = await dead_letter_of(healthy, order_id, replay=0)
        finally:
            healthy.front.loses_answers = healthy.front.forgets = False
        assert letter.dead_letter.error_class == "PAYMENT_UNKNOWN"
        (charge,) = healthy.charges(order_id)
        shown = await client.get_order(order_id)
        assert shown.order.status == OrderStatus.ORDER_STATUS_PROCESSING
        assert shown.order.payment_status == PaymentStatus.PAYMENT_STATUS_UNKNOWN

        await keys_have_expired(healthy)
        sent = len(healthy.front.calls)
        async with grpc.aio.insecure_channel(healthy.server_address) as channel:
            await DeadLetterServiceStub(channel).ReplayDeadLetter(
                pb.ReplayDeadLetterRequest(dead_letter_id=letter.dead_letter_id, reason="the gateway is back"),
                timeout=15,
            )
        settled = await orders.settled(client, created)

        assert settled.status == OrderStatus.ORDER_STATUS_PAID
        assert settled.payment_status == PaymentStatus.PAYMENT_STATUS_CAPTURED
        assert healthy.charges(order_id) == [charge]
        key = f"charge-{order_id}"
        # Perhaps several: a look-up that a stall cut off is repeated.
        assert {call.method for call in healthy.front.calls[sent:] if key in (call.key, call.path)} == {"GET"}
        paid = [
            event
            for event in await observer.read_events(healthy.bootstrap, "payments")
            if event.order.order_id == order_id
        ]
        assert [event.order_paid.gateway_reference for event in paid] == [charge["reference"]]
    finally:
        await restart(healthy, key_ttl=None, window_hours=None)


async def restart(system: FrontedSystem, *, key_ttl: float | None, window_hours: float | None) -> None:
    """Restarts gateway and payment processor: how long keys last, and how long the product believes that they do."""
    await system.stop_role("payment-processor")
    await system.stop_role("gateway")
    system.key_ttl_seconds = key_ttl
    system.start_stand_in("gateway")
    await system.gateway_answers()
    own = {} if window_hours is None else {"ORDERFLOW_GATEWAY_KEY_WINDOW_HOURS": str(window_hours)}
    system.start_role("payment-processor", own)
    await system.wait_healthy(["payment-processor"])


async def dead_letter_of(system: FrontedSystem, order_id: str, *, replay: int) -> pb.DeadLetterEntry:
    async with grpc.aio.insecure_channel(system.server_address) as channel:
        stub = DeadLetterServiceStub(channel)

        async def listed() -> list[pb.DeadLetterEntry]:
            request = pb.ListDeadLettersRequest(filter=pb.DeadLetterFilter(order_id=order_id))
            entries = (await stub.ListDeadLetters(request, timeout=5)).dead_letters
            return [each for each in entries if each.dead_letter.replay == replay]

        (entry,) = await observer.eventually(listed, within=30, what="the dead letter of the charge")
        return entry


async def keys_have_expired(system: FrontedSystem) -> None:
    """Waits until the gateway charges anew under a key that was used after all that matter."""
    gateway = HttpGateway(system.front.url)
    asked = {"order_id": "probe", "amount_minor": 1, "currency_code": "EUR", "payment_method": "pm_card_visa"}
    try:
        first = await gateway.charge(f"probe-{system.directory.name}", **asked)

        async def anew() -> bool:
            return (await gateway.charge(first.key, **asked)).reference != first.reference

        await observer.eventually(anew, within=20, what="expired keys")
    finally:
        await gateway.aclose()
