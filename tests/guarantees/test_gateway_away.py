"""The payment gateway is away while orders are in flight: they wait, nothing is used up, nobody else notices."""

import asyncio
import collections
import dataclasses
import datetime
import functools
import itertools
import json
import time

import pytest

from devstack.system import WORKERS, is_serving
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import NotificationChannel
from orderflow_client import OrdersClient, OrderStatus
from tests.e2e import observer, orders
from tests.guarantees.fronted import BREAKER_RESET, GATEWAY_TIMEOUT, FrontedSystem

PAYMENTS = "payment-processor"
OTHERS = [worker for worker in WORKERS if worker != PAYMENTS]
SETTLED = GATEWAY_TIMEOUT + 1.0  # so long after the breaker opened, all that was sent before has failed


@dataclasses.dataclass(frozen=True)
class Sample:
    """What the metrics say at a moment of the outage. `at` is monotonic, `clock` is the time that logs carry."""

    at: float
    clock: datetime.datetime
    state: str
    paused: float
    failures: float
    not_permitted: float
    others_paused: float


async def sample(system: FrontedSystem) -> Sample:
    states = ("closed", "open", "half_open")
    at, clock = time.monotonic(), datetime.datetime.now(datetime.UTC)
    *shown, paused, failures, not_permitted = await system.metrics(
        *((PAYMENTS, "orderflow_breaker_state", {"breaker": "gateway", "state": state}) for state in states),
        (PAYMENTS, "orderflow_worker_paused_partitions", {"group": PAYMENTS, "reason": "dependency_down"}),
        (PAYMENTS, "orderflow_breaker_calls_total", {"breaker": "gateway", "outcome": "failure"}),
        (PAYMENTS, "orderflow_breaker_calls_total", {"breaker": "gateway", "outcome": "not_permitted"}),
    )
    others = await system.metrics(
        *((other, "orderflow_worker_paused_partitions", {"reason": "dependency_down"}) for other in OTHERS)
    )
    state = next((state for state, value in zip(states, shown, strict=True) if value == 1), "between two")
    return Sample(at, clock, state, paused, failures, not_permitted, sum(others))


def half_openings(system: FrontedSystem) -> list[datetime.datetime]:
    """Returns when the breaker half-opened, from the payment processor's log."""
    lines = system.processes[PAYMENTS].log_file.read_text().splitlines()
    entries = [json.loads(line) for line in lines if '"gateway.breaker"' in line]
    return [datetime.datetime.fromisoformat(each["timestamp"]) for each in entries if each["new"] == "half_open"]


async def told_of_creation(system: FrontedSystem) -> set[str]:
    """Returns the orders whose customer was told that the order is there."""
    events = await observer.read_events(system.bootstrap, "notifications")
    return {
        event.order.order_id
        for event in events
        if event.notification_sent.notified_type == OrderEventType.ORDER_EVENT_TYPE_ORDER_CREATED
        and event.notification_sent.channel == NotificationChannel.NOTIFICATION_CHANNEL_EMAIL
    }


@pytest.mark.parametrize("kind", ["refuse", "hang"])
async def test_orders_wait_for_a_gateway_that_is_away(healthy: FrontedSystem, client: OrdersClient, kind: str) -> None:
    await orders_wait_for_the_gateway(healthy, client, kind, count=60, seconds=5, probes=2)


@pytest.mark.heavy
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["refuse", "hang"])
async def test_500_orders_wait_30_s_for_a_gateway_that_is_away(
    healthy: FrontedSystem, client: OrdersClient, kind: str
) -> None:
    await orders_wait_for_the_gateway(healthy, client, kind, count=500, seconds=30, probes=4)


async def orders_wait_for_the_gateway(
    system: FrontedSystem, client: OrdersClient, kind: str, *, count: int, seconds: float, probes: int
) -> None:
    letters = await system.ends("dlq")
    counters = [
        (PAYMENTS, "orderflow_worker_retries_total", {"group": PAYMENTS}),
        (PAYMENTS, "orderflow_dead_letters_total", {"group": PAYMENTS}),
    ]
    used = await system.metrics(*counters)
    assert (await sample(system)).state == "closed"
    calls_before = len(system.front.calls)

    visible = {"open", "half_open"} if kind == "hang" else {"open"}  # a refused probe is over too soon for a scrape
    samples: list[Sample] = []
    async with system.front.away(kind):
        began = time.monotonic()
        created = await asyncio.gather(*(orders.place(client) for _ in range(count)))
        ids = {each.order.order_id for each in created}

        async def over() -> bool:
            """Samples until the outage was long enough, all groups went on, and probes were seen."""
            samples.append(await sample(system))
            steady = [each for each in samples if each.at > opened_at(samples) + SETTLED]
            return (
                samples[-1].at > began + seconds
                and visible <= {each.state for each in steady}
                and steady[-1].failures - steady[0].failures >= probes
                and ids <= await told_of_creation(system)
            )

        await observer.eventually(
            over, within=seconds + 45, what="an outage with probes, and every customer told that the order is there"
        )
        for other in ("server", *OTHERS):
            await observer.eventually(
                functools.partial(is_serving, system.health_address(other)), within=20, what=f"{other} does not notice"
            )
        assert not await is_serving(system.health_address(PAYMENTS)), "it says that it cannot work"
        paid = [each for each in ids if system.charges(each)]
        assert not paid, "the outage let charges through: it proves nothing"

    settled = await asyncio.gather(*(orders.settled(client, each, within=60) for each in created))
    assert {order.status for order in settled} == {OrderStatus.ORDER_STATUS_PAID}

    # Visible: what an operator sees on a dashboard during the outage.
    steady = [each for each in samples if each.at > opened_at(samples) + SETTLED]
    assert {each.state for each in steady} <= {"open", "half_open", "between two"}
    assert {each.paused for each in steady} == {3.0}, "every partition of orders is paused"
    assert {each.others_paused for each in samples} == {0.0}, "other groups pause"

    # One probe per half-open period. One may have begun before the first of these samples and failed after it.
    first, last = steady[0], steady[-1]
    within = [each for each in half_openings(system) if first.clock <= each <= last.clock]
    assert last.failures - first.failures <= len(within) + 1
    # The records that wait do not knock at the breaker either: only the probe's own look-up, after it failed.
    assert last.not_permitted - first.not_permitted <= len(within) + 1
    assert len(within) >= probes - 1
    assert len(within) <= (last.at - first.at) / BREAKER_RESET + 1
    reached = [each for each in system.front.calls[calls_before:] if first.at < each.began < last.at]
    charges = [each for each in reached if each.method == "POST"]
    if kind == "hang":
        assert probes - 1 <= len(charges) <= len(within) + 1, (reached, within)
        # One call after the other; a look-up only of the charge that just got no answer, which is the same probe.
        for earlier, later in itertools.pairwise(reached):
            # Half of it: both are when the door, busy with all the rest in one loop, got to them.
            assert later.began > earlier.began + 0.5 * GATEWAY_TIMEOUT, (earlier, later)
            assert later.method == "POST" or (earlier.method, earlier.key) == ("POST", later.key), (earlier, later)
    else:
        assert not reached

    # Nothing used up, nothing lost, nothing twice.
    assert await system.metrics(*counters) == used, "an attempt was used"
    await system.caught_up(PAYMENTS, within=60)
    assert await system.ends("dlq") == letters, "a dead letter was written"
    events = await observer.read_events(system.bootstrap, "orders", "payments", "notifications")
    mine = [event for event in events if event.order.order_id in ids]
    assert {event.metadata.attempt for event in mine if event.metadata.causation_id} == {1}
    assert paid_once(mine, ids)
    assert {each: len(system.charges(each)) for each in ids} == dict.fromkeys(ids, 1)


def opened_at(samples: list[Sample]) -> float:
    return next((each.at for each in samples if each.state in ("open", "half_open")), float("inf"))


def paid_once(events: list[OrderEvent], ids: set[str]) -> bool:
    paid = collections.Counter(
        event.order.order_id for event in events if event.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID
    )
    return paid == dict.fromkeys(ids, 1)
