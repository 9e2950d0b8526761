"""One order whose charge takes very long does not hold up the others of its partition."""

import asyncio
import datetime
import functools
import statistics
import time
from collections.abc import Sequence

import pytest
from aiokafka import AIOKafkaProducer

from domain.events import order_processing
from messaging import clients, envelope, topics
from messaging.runtime import WorkerRuntime
from messaging.worker import Limits
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import OrderStatus, PaymentStatus
from settings import KafkaSettings
from storage.database import Database
from storage.payment_decisions import PaymentDecisions
from tests import engines
from tests.builders import a_delivery, a_sku, an_item, an_order, order_created
from tests.engines import Tail
from workers import payment_processor
from workers.gateways.gateway import Charge
from workers.gateways.guard import GuardedGateway
from workers.gateways.simulated import SimulatedGateway

SKUS = 100
USUAL_CHARGE = 0.02
FEWEST_ROUNDS = 2
MOST_ROUNDS = 6


class SlowForOne(SimulatedGateway):
    """A gateway that takes 20 ms, and until it is told for the order `slow`."""

    def __init__(self) -> None:
        super().__init__(latency=USUAL_CHARGE)
        self.slow = ""
        self.goes_on = asyncio.Event()
        self.is_charging_the_slow_one = asyncio.Event()

    async def charge(
        self, key: str, *, order_id: str, amount_minor: int, currency_code: str, payment_method: str
    ) -> Charge:
        if order_id == self.slow:
            self.is_charging_the_slow_one.set()
            await self.goes_on.wait()
        return await super().charge(
            key,
            order_id=order_id,
            amount_minor=amount_minor,
            currency_code=currency_code,
            payment_method=payment_method,
        )


async def waiting_orders(database: Database, count: int) -> list[OrderEvent]:
    """Puts orders into the database as the order processor leaves them; returns their ORDER_PROCESSING, partition 0."""
    skus = [a_sku() for _ in range(SKUS)]  # many, so that no row of the stock is everybody's
    now = datetime.datetime.now(datetime.UTC)
    prepared, rows = [], []
    for number, order_id in enumerate(engines.order_ids(count, topics.ORDERS)):
        order = an_order(order_id=order_id, now=now, items=[an_item(skus[number % SKUS], 1)])
        content = order.SerializeToString()
        created = a_delivery(order_created(order), group="order-processor", offset=number)
        order.status, order.payment_status = OrderStatus.ORDER_STATUS_PROCESSING, PaymentStatus.PAYMENT_STATUS_PENDING
        order.revision = 2
        prepared.append(order_processing(created, order))
        rows.append(
            (order_id, "shop", content, order.status, order.payment_status, 2, now + datetime.timedelta(hours=1), now)
        )
    async with database.transaction() as connection:
        await connection.executemany(
            "insert into stock (sku, available, held) values ($1, 0, $2)", [(sku, count) for sku in skus]
        )
        await connection.copy_records_to_table(
            "orders",
            records=rows,
            columns=[
                "order_id", "caller", "content", "status", "payment_status", "revision", "expire_time", "update_time",
            ],
        )  # fmt: skip
    return prepared


class Meter:
    """Sends ORDER_PROCESSING at a rate and notes when each output is visible to readers of committed records."""

    def __init__(self, producer: AIOKafkaProducer, outputs: Tail, *, rate: float) -> None:
        self._rate = rate
        self._producer = producer
        self._outputs = outputs
        self._appended: dict[str, float] = {}
        self._visible: dict[str, float] = {}

    async def read(self) -> None:
        """Reads outputs until cancelled."""
        while True:
            await self._outputs.read()
            seen = time.perf_counter()
            for record in self._outputs.records:
                event = OrderEvent.FromString(record.value)
                if event.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID:
                    assert event.order.order_id not in self._visible, "an output twice"
                    self._visible[event.order.order_id] = seen
            self._outputs.records.clear()

    async def send(self, events: Sequence[OrderEvent]) -> None:
        """Sends at the rate, whatever becomes of it."""
        began = time.perf_counter()
        for number, event in enumerate(events):
            ahead = began + number / self._rate - time.perf_counter()
            if ahead > 0:
                await asyncio.sleep(ahead)
            record = envelope.encode(event)
            sent = await self._producer.send(
                record.topic.name, key=record.key, value=record.value, headers=record.headers
            )
            sent.add_done_callback(functools.partial(self._note, event.order.order_id))

    def _note(self, order_id: str, sent: "asyncio.Future[object]") -> None:
        sent.result()
        self._appended[order_id] = time.perf_counter()

    async def p99(self, events: Sequence[OrderEvent]) -> float:
        """Returns the p99 of the time from appended to visible."""
        ids = [event.order.order_id for event in events]
        await engines.eventually(
            lambda: all(each in self._visible and each in self._appended for each in ids), "all outputs are visible"
        )
        return statistics.quantiles([self._visible[each] - self._appended[each] for each in ids], n=100)[98]

    def is_visible(self, event: OrderEvent) -> bool:
        return event.order.order_id in self._visible


@pytest.mark.alone
async def test_one_slow_charge_leaves_the_others_their_time(kafka: KafkaSettings, own_database: Database) -> None:
    await others_keep_their_time(kafka, own_database, rate=90, seconds=2, slack=0.1)


@pytest.mark.heavy
@pytest.mark.timeout(300)
async def test_a_charge_of_10_s_leaves_the_others_their_time(kafka: KafkaSettings, own_database: Database) -> None:
    await others_keep_their_time(kafka, own_database, rate=200, seconds=10, slack=0.0)


async def others_keep_their_time(
    kafka: KafkaSettings, database: Database, *, rate: int, seconds: float, slack: float
) -> None:
    """Compares the p99 of rounds without and with one charge that lasts as long as the round, in turns.

    The machine has other things to do, which lengthens some rounds: the best of each kind are compared. One order that
    holds up others does so in every round.

    `slack`, in seconds, is for short rounds: the p99 of so few orders is the second slowest, which one hiccup decides.
    An order that holds up others costs them about as long as the round lasts.
    """
    gateway = SlowForOne()
    spec = payment_processor.SPEC
    await engines.start_at_end(kafka, spec.group, *spec.reads)
    handle = functools.partial(
        payment_processor.charge,
        decisions=PaymentDecisions(database, now=lambda: datetime.datetime.now(datetime.UTC)),
        gateway=GuardedGateway(gateway, fail_max=5, reset_timeout=1.0),
        key_window=datetime.timedelta(hours=23),
        now=lambda: datetime.datetime.now(datetime.UTC),
    )
    runtime = WorkerRuntime(spec, handle, kafka=kafka, limits=Limits(), client_id="tests")
    a_round = int(rate * seconds)
    alone: list[float] = []
    beside: list[float] = []
    async with (
        engines.tail(kafka, topics.PAYMENTS) as outputs,
        engines.started(clients.idempotent_producer(kafka, client_id="tests")) as producer,
        engines.running(runtime),
    ):
        meter = Meter(producer, outputs, rate=rate)
        reading = asyncio.create_task(meter.read())
        try:
            warm_up = await waiting_orders(database, rate)
            await meter.send(warm_up)
            await meter.p99(warm_up)
            while len(alone) < FEWEST_ROUNDS or (min(beside) > 2 * min(alone) + slack and len(alone) < MOST_ROUNDS):
                usual = await waiting_orders(database, a_round)
                await meter.send(usual)
                alone.append(await meter.p99(usual))
                beside.append(await with_a_slow_one(gateway, meter, await waiting_orders(database, a_round), seconds))
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
    assert reading.cancelled(), reading.exception()
    print(f"p99 alone {alone}, beside a slow charge {beside}")
    assert min(beside) <= 2 * min(alone) + slack, (alone, beside)


async def with_a_slow_one(gateway: SlowForOne, meter: Meter, events: Sequence[OrderEvent], seconds: float) -> float:
    """Returns the p99 of orders that were all handled while one charge was under way."""
    slow, *others = events
    gateway.slow = slow.order.order_id
    gateway.goes_on.clear()
    gateway.is_charging_the_slow_one.clear()
    began = time.perf_counter()
    try:
        await meter.send([slow])
        async with asyncio.timeout(engines.DEADLINE):
            await gateway.is_charging_the_slow_one.wait()
        await meter.send(others)
        p99 = await meter.p99(others)
        assert not meter.is_visible(slow)
        assert time.perf_counter() - began >= seconds * 0.9, "the charge was not slow: it proves nothing"
    finally:
        gateway.goes_on.set()
    await engines.eventually(lambda: meter.is_visible(slow), "the slow order is paid, too")
    return p99
