"""The system on three brokers: one may die under load and nothing is lost; two may not, and the callers are told."""

import asyncio
import collections
import itertools
import pathlib
import time
import uuid
from collections.abc import AsyncIterator

import pytest

from devstack.kafka import KafkaBroker
from devstack.system import ROLES, Ports, System, is_serving
from orderflow_client import CreateOrderResponse, OrderflowError, OrdersClient, OrderStatus, Unavailable
from tests.e2e import observer, orders
from tests.e2e.observed import ObservedSystem

MOST_PAUSE = 15.0

CALLERS = 4
REFUSALS = {"Unavailable NOT_ACCEPTED", "Unavailable UNKNOWN", "DeadlineExceeded UNKNOWN"}

# The first one waits for the start of the system, on three brokers.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
async def three(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ObservedSystem]:
    running = ObservedSystem(tmp_path_factory.mktemp("three"), Ports.chosen(brokers=3), settings={})
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


@pytest.fixture
async def system(three: ObservedSystem) -> AsyncIterator[ObservedSystem]:
    """The system, its brokers in sync and its roles healthy before and after the test."""
    await restore(three)
    yield three
    await restore(three)


async def restore(system: ObservedSystem) -> None:
    assert system.kafka is not None
    for broker in system.brokers:
        if not broker.running:
            broker.start()
    await system.kafka.wait_ready()
    await system.mend()


class Load:
    """Callers that place one order after the other, each again under its request_id until it is OK."""

    def __init__(self, system: ObservedSystem, *, deadline: float) -> None:
        self._system = system
        self._deadline = deadline
        self._stop = asyncio.Event()
        self._callers: list[asyncio.Task[None]] = []
        self.accepted: list[tuple[float, CreateOrderResponse]] = []
        """When each was answered OK, and the answer."""
        self.refused: list[tuple[str, float]] = []
        """What other calls ended with, and after how long."""

    async def __aenter__(self) -> "Load":
        self._callers = [asyncio.create_task(self._call()) for _ in range(CALLERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for caller in self._callers:
            caller.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)

    async def _call(self) -> None:
        async with OrdersClient(self._system.server_address) as client:
            while not self._stop.is_set():
                await self._place(client, uuid.uuid4().hex)
                await asyncio.sleep(0.15)  # the rate of the load, which the workers keep up with

    async def _place(self, client: OrdersClient, request_id: str) -> None:
        while True:
            started = time.monotonic()
            try:
                answer = await orders.place(client, request_id=request_id, timeout=self._deadline)
            except OrderflowError as error:
                self.refused.append((f"{type(error).__name__} {error.outcome}", time.monotonic() - started))
                await asyncio.sleep(0.15)
            else:
                self.accepted.append((time.monotonic(), answer))
                return

    async def more(self, count: int, *, within: float) -> None:
        """Waits until so many more orders were answered OK."""
        target = len(self.accepted) + count

        async def there() -> bool:
            return len(self.accepted) >= target

        await observer.eventually(there, within=within, what=f"{count} more orders")

    async def finish(self, *, within: float) -> list[CreateOrderResponse]:
        """Places no more, waits until those under way are OK too, and returns all answers."""
        self._stop.set()
        done, waiting = await asyncio.wait(self._callers, timeout=within)
        assert not waiting, f"{len(waiting)} orders are not accepted within {within} s"
        for caller in done:
            caller.result()
        return [answer for _, answer in self.accepted]

    def longest_pause(self) -> float:
        """Returns the longest time between two OKs, seconds."""
        return max(later - earlier for (earlier, _), (later, _) in itertools.pairwise(self.accepted))


async def all_paid_and_charged_once(system: ObservedSystem, created: list[CreateOrderResponse]) -> None:
    ids = {each.order.order_id for each in created}
    assert len(ids) == len(created), "two request_ids, one order"
    async with OrdersClient(system.server_address) as client:
        for start in range(0, len(created), 50):
            settled = await asyncio.gather(
                *(orders.settled(client, each, within=120) for each in created[start : start + 50])
            )
            assert {each.status for each in settled} == {OrderStatus.ORDER_STATUS_PAID}
    charged = collections.Counter(
        line["order_id"] for line in observer.journal(system.gateway_journal) if line.get("order_id") in ids
    )
    assert charged == dict.fromkeys(ids, 1)
    ended = [name for name, process in system.processes.items() if not process.running]
    assert not ended, "nothing but brokers was killed"


async def kill_in_turn(system: ObservedSystem, brokers: list[KafkaBroker], *, orders_between: int) -> None:
    assert system.kafka is not None
    async with Load(system, deadline=20) as load:
        for broker in brokers:
            await load.more(orders_between, within=60)
            broker.kill()
            await load.more(orders_between, within=60)
            assert not broker.running
            broker.start()
            await system.kafka.wait_ready()
        await load.more(orders_between, within=60)
        created = await load.finish(within=60)
    assert load.longest_pause() < MOST_PAUSE, load.refused
    await all_paid_and_charged_once(system, created)


async def kill_two(system: ObservedSystem, victims: list[KafkaBroker], *, orders_between: int) -> None:
    assert system.kafka is not None
    deadline = 3.0
    async with Load(system, deadline=deadline) as load:
        await load.more(orders_between, within=60)
        for broker in victims:
            broker.kill()
        before = len(load.refused)

        async def told() -> bool:
            return not await is_serving(system.server_address)

        await observer.eventually(told, within=MOST_PAUSE, what="a server that is NOT_SERVING")
        accepted = len(load.accepted)
        async with OrdersClient(system.server_address) as fresh:
            for _ in range(3):
                with pytest.raises(Unavailable) as refused:  # not DeadlineExceeded: it does not wait for Kafka
                    await orders.place(fresh, timeout=10)
                assert refused.value.reason == "KAFKA_UNAVAILABLE"

        async def all_refused() -> bool:
            return len(load.refused) >= before + CALLERS

        await observer.eventually(all_refused, within=30, what="every caller refused")
        seen = load.refused[before:]
        assert {outcome for outcome, _ in seen} <= REFUSALS
        assert max(took for _, took in seen) < deadline + 5, "an answer past its deadline"
        assert len(load.accepted) == accepted, "one broker has no say"

        for broker in victims:
            broker.start()
        await system.kafka.wait_ready()
        await system.wait_healthy(ROLES)
        await load.more(orders_between, within=60)
        created = await load.finish(within=60)
    await all_paid_and_charged_once(system, created)


@pytest.mark.heavy
async def test_one_of_three_dies_under_load(system: ObservedSystem) -> None:
    await kill_in_turn(system, [system.brokers[0]], orders_between=20)


async def test_two_of_three_dead_and_nobody_asked_meanwhile(tmp_path: pathlib.Path) -> None:
    """It is not the calls that find it out: 15 s later the first one is told so at once."""
    system = System(tmp_path, Ports.chosen(brokers=3), roles=("server",))
    try:
        await system.start()
        for broker in system.brokers[:2]:
            broker.kill()

        async def told() -> bool:
            return not await is_serving(system.server_address)

        await observer.eventually(told, within=MOST_PAUSE, what="a server that is NOT_SERVING")
        async with OrdersClient(system.server_address) as fresh:
            with pytest.raises(Unavailable) as refused:
                await orders.place(fresh, timeout=10)
        assert refused.value.reason == "KAFKA_UNAVAILABLE"
    finally:
        for each in (*system.brokers, *system.processes.values()):
            each.kill()  # what is left would wait for what is dead
        await system.stop()


@pytest.mark.heavy
@pytest.mark.timeout(1800)
async def test_each_of_three_dies_in_turn_twice_under_load(system: ObservedSystem) -> None:
    await kill_in_turn(system, [*system.brokers, *system.brokers], orders_between=100)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("survivor", [0, 1, 2])
async def test_any_two_of_three_die_under_load(system: ObservedSystem, survivor: int) -> None:
    victims = [broker for number, broker in enumerate(system.brokers) if number != survivor]
    await kill_two(system, victims, orders_between=50)
