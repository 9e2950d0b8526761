"""One trace for an order, as a collector receives it: exactly these spans, whatever happened to the order."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaProducer

from devstack.system import ROLES
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow_client import OrdersClient
from tests.collector import Collector, Node, Received, collecting, drawn, node
from tests.e2e import letters, observer, orders
from tests.e2e.observed import ObservedSystem

# Each one stops and starts all roles twice.
pytestmark = pytest.mark.timeout(300)

CALLER = "00f067aa0ba902b7"
DATABASE = "orderflow"
RETRY = "payment-processor.retry"
ATTRIBUTES = {
    "rpc.system.name", "rpc.method", "rpc.response.status_code",
    "messaging.system", "messaging.operation.name", "messaging.operation.type", "messaging.destination.name",
    "messaging.destination.partition.id", "messaging.consumer.group.name", "messaging.kafka.offset",
    "messaging.kafka.message.key",
    "db.system.name", "db.namespace", "db.operation.name",
    "peer.service", "orderflow.outcome", "orderflow.template",
}  # fmt: skip


class Traced:
    """The system with a collector, and the trace of one caller."""

    def __init__(self, system: ObservedSystem, collector: Collector) -> None:
        self.system = system
        self.collector = collector
        self.trace_id = uuid.uuid4().hex
        self.traceparent = f"00-{self.trace_id}-{CALLER}-01"

    async def spans(self) -> list[Received]:
        """Returns the trace's spans, all of them: what is under way ends, and every process sends what it has left."""
        await self.system.all_caught_up(within=60)
        await asyncio.gather(*(self.system.stop_role(role) for role in ROLES))
        return self.collector.of_trace(self.trace_id)

    def drawn(self) -> list[str]:
        return drawn(self.collector.below(self.trace_id, CALLER))


@pytest.fixture
async def traced(healthy: ObservedSystem) -> AsyncIterator[Traced]:
    assert healthy.postgres.dsn.endswith(f"/{DATABASE}")
    with collecting() as collector:
        settings = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_TRACES_SAMPLER": "parentbased_always_on",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            # What is read a second time has a second span: no member is to lose its partitions for being slow.
            "ORDERFLOW_KAFKA_SESSION_TIMEOUT": "25",
        }
        await asyncio.gather(*(healthy.stop_role(role) for role in ROLES))
        for role in ROLES:
            healthy.start_role(role, settings)
        await healthy.wait_healthy(ROLES)
        yield Traced(healthy, collector)
        await asyncio.gather(*(healthy.stop_role(role) for role in ROLES))
        for role in ROLES:
            healthy.start_role(role)


def transaction(service: str, *, failed: str = "") -> Node:
    return node(f"{service}: CLIENT transaction {DATABASE}{failed}")


def query(service: str) -> Node:
    return node(f"{service}: CLIENT query {DATABASE}")


def told(topic: str, *, channels: tuple[str, ...] = ("email", "sms")) -> list[Node]:
    """What follows from every lifecycle event: it is projected, and the customer is told of it."""
    groups = {
        channel: node(
            f"notification-{channel}: CONSUMER process {topic}",
            query(f"notification-{channel}"),
            node(f"notification-{channel}: CLIENT {channel} send"),
            query(f"notification-{channel}"),
            node(
                f"notification-{channel}: PRODUCER send notifications",
                node("projector: CONSUMER process notifications"),
            ),
        )
        for channel in channels
    }
    for channel in {"email", "sms"} - groups.keys():  # that there is nobody to tell is an outcome, too
        groups[channel] = node(f"notification-{channel}: CONSUMER process {topic}", query(f"notification-{channel}"))
    return [node(f"projector: CONSUMER process {topic}"), *groups.values()]


def charged(*, channels: tuple[str, ...] = ("email", "sms")) -> list[Node]:
    """What the payment processor does for an order, and what follows from it."""
    return [
        query("payment-processor"),
        node("payment-processor: CLIENT gateway charge"),
        transaction("payment-processor"),
        node("payment-processor: PRODUCER send payments", *told("payments", channels=channels)),
    ]


async def test_the_trace_of_an_order_has_exactly_these_spans(traced: Traced) -> None:
    async with OrdersClient(traced.system.server_address) as client:
        created = await orders.place(
            client, phone="+491701234567", request_id=f"trace-{traced.trace_id}",
            metadata=[("traceparent", traced.traceparent)],
        )  # fmt: skip
        await orders.settled(client, created, within=60)
    spans = await traced.spans()

    assert traced.drawn() == drawn(
        [
            node(
                "server: SERVER orderflow.orders.v1.OrderService/CreateOrder",
                query("server"),
                node(
                    "server: PRODUCER send orders",
                    *told("orders"),
                    node(
                        "order-processor: CONSUMER process orders",
                        transaction("order-processor"),
                        node(
                            "order-processor: PRODUCER send orders",
                            *told("orders"),
                            node("payment-processor: CONSUMER process orders", *charged()),
                        ),
                    ),
                ),
            )
        ]
    )
    assert not any(each.failed for each in spans)
    keys = {
        each.attributes.get("messaging.kafka.message.key") for each in spans if each.kind in ("PRODUCER", "CONSUMER")
    }
    assert keys == {created.order.order_id}
    # Ids, classes and names only: nothing of the customer, nothing of the money, nothing that an error said.
    assert {name for each in spans for name in each.attributes} == ATTRIBUTES
    assert {each.told for each in spans} == {("", 0)}


async def write(system: ObservedSystem, event: OrderEvent, traceparent: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=system.bootstrap, acks="all")
    await producer.start()
    try:
        await producer.send_and_wait(
            "orders",
            key=event.order.order_id.encode(),
            value=event.SerializeToString(),
            headers=[("traceparent", traceparent.encode())],
        )
    finally:
        await producer.stop()


def failed(topic: str, attempt: int, then: str = "") -> Node:
    marks = f" attempt {attempt}" * (attempt > 1) + " failed ORDER_UNKNOWN" + " linked" * (attempt > 1)
    # The intents of all, and, for the one that has no row, whether it was purged.
    below = [query("payment-processor"), transaction("payment-processor", failed=" failed ORDER_UNKNOWN")]
    if then:
        below.append(node(f"payment-processor: PRODUCER send {then}"))
    return node(f"payment-processor: CONSUMER process {topic}{marks}", *below)


async def test_retries_a_dead_letter_and_its_replay_are_in_the_orders_trace_and_linked(traced: Traced) -> None:
    system, order_id = traced.system, str(uuid.uuid4())
    event = letters.processing(order_id)
    await write(system, event, traced.traceparent)

    async def dead() -> list[dict[str, str]]:
        _, rows, _ = await letters.dlq(system, "list", "--order", order_id, "-o", "json")
        return rows or []

    [row] = await observer.eventually(dead, within=60, what="a dead letter of the payment processor")
    _, shown, _ = await letters.dlq(system, "show", row["id"])
    assert shown["dead_letter"]["traceparent"].startswith(f"00-{traced.trace_id}-")
    await letters.add_row(system, event)
    code, _, err = await letters.dlq(system, "replay", row["id"], "--reason", "the row is there now")
    assert code == 0, err

    async def paid() -> bool:
        found = [
            each for each in await observer.read_events(system.bootstrap, "payments") if each.order.order_id == order_id
        ]
        return [each.type for each in found] == [OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID]

    await observer.eventually(paid, within=60, what="ORDER_PAID")
    spans = await traced.spans()

    assert traced.drawn() == drawn(
        [
            *told("orders", channels=("email",)),
            failed("orders", 1),
            failed("orders", 2),
            failed("orders", 3, then=f"{RETRY}.1s"),
            failed(f"{RETRY}.1s", 4),
            failed(f"{RETRY}.1s", 5),
            failed(f"{RETRY}.1s", 6, then=f"{RETRY}.2s"),
            failed(f"{RETRY}.2s", 7),
            failed(f"{RETRY}.2s", 8),
            failed(f"{RETRY}.2s", 9, then="dlq"),
            node("projector: CONSUMER process dlq linked"),
            node(f"payment-processor: CONSUMER process {RETRY}.1s linked linked", *charged(channels=("email",))),
        ]
    )
    tries = {
        int(each.attributes.get("orderflow.attempt", 1)): each
        for each in spans
        if each.failed and each.kind == "CONSUMER"
    }
    assert sorted(tries) == list(range(1, 10))
    for number in range(2, 10):
        assert tries[number].links == [(traced.trace_id, tries[number - 1].span_id)]
    gave_up = (traced.trace_id, tries[9].span_id)
    [projected] = [each for each in spans if each.name == "process dlq"]
    assert projected.links == [gave_up]
    [replayed] = [each for each in spans if each.name == f"process {RETRY}.1s" and not each.failed]
    [asked] = [
        each
        for each in traced.collector.spans
        if each.service == "orderflow-server" and each.name == f"send {RETRY}.1s"
    ]
    assert asked.trace_id != traced.trace_id, "the operator's call is a trace of its own"
    assert asked.links == [gave_up]
    assert replayed.links == [gave_up, (asked.trace_id, asked.span_id)]
