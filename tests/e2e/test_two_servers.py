"""Two servers on one Kafka: a request_id is one order whichever is asked, and one at a time may be restarted."""

import asyncio
import collections
import random
import signal
import time
import uuid
from collections.abc import AsyncIterator

import pytest

from devstack.ports import free_ports
from devstack.process import ManagedProcess
from devstack.system import ROLES, System, is_serving
from orderflow_client import (
    CreateOrderResponse,
    Order,
    OrderflowError,
    OrdersClient,
    OrderStatus,
    RequestIdReused,
    item,
)
from tests.e2e import observer, orders

SECOND = "second server"
LIVE = {OrderStatus.ORDER_STATUS_CREATED, OrderStatus.ORDER_STATUS_PROCESSING, OrderStatus.ORDER_STATUS_PAID}


class Second:
    """The second server's place."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._port, self._metrics = free_ports(2)
        self.address = f"127.0.0.1:{self._port}"

    def start(self, **settings: str) -> None:
        own = {
            **settings,
            "ORDERFLOW_SERVER_LISTEN": self.address,
            "ORDERFLOW_SERVER_METRICS_LISTEN": f"127.0.0.1:{self._metrics}",
        }
        self._system.start_another("server", SECOND, own)

    @property
    def process(self) -> ManagedProcess:
        return self._system.processes[SECOND]

    async def healthy(self) -> None:
        await observer.eventually(lambda: is_serving(self.address), within=30, what="the second server is healthy")


@pytest.fixture
async def second(healthy: System) -> AsyncIterator[Second]:
    place = Second(healthy)
    place.start()
    try:
        await place.healthy()
        yield place
    finally:
        await healthy.stop_role(SECOND)


@pytest.fixture
async def clients(healthy: System, second: Second) -> AsyncIterator[list[OrdersClient]]:
    addresses = healthy.server_address, second.address
    async with OrdersClient(addresses[0], timeout=60) as one, OrdersClient(addresses[1], timeout=60) as two:
        yield [one, two]


async def cut_off(placing: "asyncio.Task[CreateOrderResponse]", after: float) -> CreateOrderResponse | None:
    """Returns the answer, None if the caller has gone before."""
    done, _ = await asyncio.wait([placing], timeout=after)
    if done:
        return placing.result()
    placing.cancel()
    await asyncio.wait([placing])
    return None


async def created(system: System, prefix: str) -> int:
    """Returns how many orders came under the request_ids, by what is on Kafka."""
    events = await observer.read_events(f"127.0.0.1:{system.ports.kafka}", "orders")
    return len({e.order.order_id for e in events if e.order_created.request_id.startswith(prefix)})


async def test_a_request_id_is_one_order_whichever_server_is_asked(
    healthy: System, clients: list[OrdersClient]
) -> None:
    calls, ids = 1_000, 100
    dice = random.Random(calls)
    prefix = uuid.uuid4().hex
    request_ids = [f"{prefix}-{number % ids}" for number in range(calls)]
    dice.shuffle(request_ids)

    async def place(request_id: str) -> tuple[str, CreateOrderResponse | None]:
        placing = asyncio.create_task(orders.place(dice.choice(clients), request_id=request_id, timeout=30))
        if dice.random() < 0.2:
            return request_id, await cut_off(placing, dice.uniform(0.001, 0.1))
        return request_id, await placing

    answers = await asyncio.gather(*(place(each) for each in request_ids))
    gone = sum(answer is None for _, answer in answers)
    assert 0 < gone < calls / 2, "some callers have gone before the answer, and not all"
    by_id = collections.defaultdict(set)
    for request_id, answer in answers:
        if answer is not None:
            by_id[request_id].add(answer.order.order_id)
    for request_id in sorted(set(request_ids)):  # whoever repeats learns the order, also when all before had gone
        answer = await orders.place(dice.choice(clients), request_id=request_id)
        assert by_id[request_id] <= {answer.order.order_id}
        by_id[request_id].add(answer.order.order_id)
        assert (await orders.settled(clients[0], answer, within=60)).status == OrderStatus.ORDER_STATUS_PAID
    assert len(set.union(*by_id.values())) == ids
    assert await created(healthy, prefix) == ids


async def test_a_request_id_with_two_contents_never_makes_two_live_orders(
    healthy: System, clients: list[OrdersClient]
) -> None:
    dice = random.Random(7)
    prefix = uuid.uuid4().hex
    ids = 20

    async def place(request_id: str, quantity: int) -> tuple[str, CreateOrderResponse | None]:
        content = [item("SKU-1", quantity, 1999, "EUR")]
        try:
            return request_id, await orders.place(
                dice.choice(clients), request_id=request_id, items=content, timeout=30
            )
        except RequestIdReused:
            return request_id, None

    wanted = [(f"{prefix}-{number % ids}", 1 + dice.randrange(2)) for number in range(200)]
    answers = await asyncio.gather(*(place(*each) for each in wanted))
    # By now one content of each has won, and the other is refused at once, or was accepted and is rejected.
    settled: dict[str, Order] = {}
    by_id = collections.defaultdict(set)
    for request_id, answer in answers:
        if answer is not None:
            by_id[request_id].add(answer.order.order_id)
            if answer.order.order_id not in settled:
                settled[answer.order.order_id] = await orders.settled(clients[1], answer, within=60)
    assert len(by_id) == ids
    assert any(len(each) == 2 for each in by_id.values()), "no two contents met: the test has proved nothing"
    for request_id, order_ids in by_id.items():
        live = [each for each in order_ids if settled[each].status in LIVE]
        assert len(live) == 1, request_id
        assert settled[live[0]].status == OrderStatus.ORDER_STATUS_PAID
        for other in order_ids - set(live):
            assert settled[other].status == OrderStatus.ORDER_STATUS_REJECTED
            assert settled[other].failure_reason == "REQUEST_ID_REUSED"
        for quantity in (1, 2):
            _, answer = await place(request_id, quantity)
            if answer is not None and answer.order.order_id != live[0]:  # the look-up was too slow to refuse it at once
                late = await orders.settled(clients[1], answer, within=60)
                assert (late.status, late.failure_reason) == (OrderStatus.ORDER_STATUS_REJECTED, "REQUEST_ID_REUSED")


async def test_a_stopping_server_says_so_first_and_takes_calls_until_balancers_know(
    healthy: System, second: Second
) -> None:
    async def told() -> bool:
        return not await is_serving(second.address)

    for delay in (5, 10, 20):  # a machine that was too slow to see it in time gets more
        await healthy.stop_role(SECOND)
        second.start(ORDERFLOW_SERVER_SHUTDOWN_DELAY_SECONDS=str(delay))
        await second.healthy()
        async with OrdersClient(second.address, timeout=60) as client:
            await orders.place(client)
            began = time.monotonic()
            second.process.send(signal.SIGTERM)
            try:
                await observer.eventually(told, within=delay - 1, what="NOT_SERVING")
                assert second.process.running
                await orders.place(client)
            except (AssertionError, OrderflowError):
                if time.monotonic() - began < delay or delay == 20:
                    raise
                continue
        assert await second.process.wait_exit(30) == 0
        assert time.monotonic() - began >= delay
        break


async def test_a_rolling_restart_fails_no_call(healthy: System, second: Second, client: OrdersClient) -> None:
    both = f"ipv4:{healthy.server_address},{second.address}"
    answers: list[CreateOrderResponse] = []
    failures: list[BaseException] = []
    stop = asyncio.Event()

    async with OrdersClient(both) as balanced:

        async def caller() -> None:
            while not stop.is_set():
                try:
                    answers.append(await orders.place(balanced))
                except Exception as error:
                    failures.append(error)
                await asyncio.sleep(0.1)  # the rate of the load, which the workers keep up with

        async def more(count: int) -> None:
            target = len(answers) + count

            async def there() -> bool:
                return len(answers) >= target or bool(failures)

            await observer.eventually(there, within=30, what=f"{count} more orders")

        callers = [asyncio.create_task(caller()) for _ in range(4)]
        try:
            for name in ("server", SECOND):
                await more(20)
                process = healthy.processes[name]
                await healthy.stop_role(name)
                assert process.exit_code == 0
                await more(20)
                if name == "server":
                    healthy.start_role("server")
                    await healthy.wait_healthy(ROLES)
                else:
                    second.start()
                    await second.healthy()
            await more(20)
        finally:
            stop.set()
            await asyncio.gather(*callers)
        assert not failures, failures
        assert len({each.order.order_id for each in answers}) == len(answers)
        for answer in answers[::25]:
            assert (await orders.settled(client, answer, within=60)).status == OrderStatus.ORDER_STATUS_PAID
