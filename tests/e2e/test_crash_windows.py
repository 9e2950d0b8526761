"""Each crash window of docs/reliability.md by name: the process dies right there, and the order still ends, once."""

import asyncio
import collections
import os
import pathlib
import signal
import sys
import uuid

import asyncpg
import grpc.aio
import pytest

import fault_points
from devstack.process import ManagedProcess
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.operations.v1 import dead_letter_service_pb2 as pb
from orderflow.operations.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub
from orderflow_client import Order, OrderflowError, OrdersClient, OrderStatus
from tests.e2e import observer, orders
from tests.e2e.letters import add_row, processing
from tests.e2e.observed import ObservedSystem
from tests.e2e.test_dead_letters import letters_of

_ROOT = pathlib.Path(__file__).resolve().parents[2]
TOPICS = "orders", "payments", "notifications"
WORKER_WINDOWS = {
    "W2": "order-processor",
    "W3": "order-processor",
    "W4": "payment-processor",
    "W5": "payment-processor",
    "W7": "payment-processor",
    "W8": "payment-processor",
    "W9": "notification-email",
    "W10": "notification-email",
    "W11": "notification-email",
    "W12": "projector",
}
ELSEWHERE = {"W1", "W13", "W14", "W15", "W16"}


def test_every_window_is_hit_here() -> None:
    assert set(fault_points.WINDOWS) == set(WORKER_WINDOWS) | ELSEWHERE


async def armed(system: ObservedSystem, role: str, window: str) -> ManagedProcess:
    """Starts the role again, to die at the window: by what comes now, not by what others left to do."""
    await system.all_caught_up(within=60)
    await system.stop_role(role)
    system.start_role(role, {fault_points.VARIABLE: window})
    await system.wait_healthy([role])
    return system.processes[role]


async def dies(process: ManagedProcess) -> None:
    assert await process.wait_exit(20) == -signal.SIGKILL


async def events_of(system: ObservedSystem, order_id: str) -> list[OrderEvent]:
    events = await observer.read_events(system.bootstrap, *TOPICS)
    return [event for event in events if event.order.order_id == order_id]


async def ended_once(system: ObservedSystem, order: Order, *, copies_of_mail: int = 1) -> None:
    """Checks a paid order from outside: events, charge and messages."""

    async def told() -> bool:
        return len([event for event in await events_of(system, order.order_id) if not event.revision]) >= 6

    await observer.eventually(told, within=20, what="six notifications")
    events = await events_of(system, order.order_id)
    assert sorted(event.revision for event in events if event.revision) == [1, 2, 3]
    assert len({event.event_id for event in events}) == len(events) == 9
    assert order.status == OrderStatus.ORDER_STATUS_PAID
    charges = [line for line in observer.journal(system.gateway_journal) if line.get("order_id") == order.order_id]
    assert len(charges) == 1
    mail = [path.read_text() for path in system.mail_folder.glob("[!.]*")]  # not those that are being written
    ids = collections.Counter(
        line for text in mail if order.order_id in text for line in text.splitlines() if line.startswith("Message-ID:")
    )
    assert len(ids) == 6
    assert max(ids.values()) <= copies_of_mail
    assert sum(ids.values()) <= 6 + copies_of_mail - 1


@pytest.mark.parametrize("window", WORKER_WINDOWS)
async def test_a_worker_dies_in_the_window(healthy: ObservedSystem, client: OrdersClient, window: str) -> None:
    role = WORKER_WINDOWS[window]
    process = await armed(healthy, role, window)
    # One message alone is under way when it dies: of others nobody could tell whether they were accepted.
    held_back = ["order-processor"] if role == "notification-email" else []
    for other in held_back:
        await healthy.stop_role(other)
    created = await orders.place(client, phone="+491701234567")
    await dies(process)
    for each in (role, *held_back):
        healthy.start_role(each)
    order = await orders.settled(client, created, within=30)
    # W10: nobody can tell whether the message was accepted, so it is sent again with its Message-ID.
    await ended_once(healthy, order, copies_of_mail=2 if window == "W10" else 1)


async def test_w1_the_server_dies_before_its_answer(healthy: ObservedSystem, client: OrdersClient) -> None:
    process = await armed(healthy, "server", "W1")
    request_id = f"w1-{uuid.uuid4()}"
    async with OrdersClient(healthy.server_address) as caller:
        with pytest.raises(OrderflowError) as unanswered:
            await orders.place(caller, request_id=request_id, phone="+491701234567", timeout=3)
    assert unanswered.value.outcome == "UNKNOWN"
    await dies(process)
    healthy.start_role("server")
    await healthy.wait_healthy(["server"])
    again = await orders.place(client, request_id=request_id, phone="+491701234567")
    await ended_once(healthy, await orders.settled(client, again, within=30))


async def paid_once(system: ObservedSystem, order_id: str) -> None:
    async def paid() -> list[OrderEvent]:
        events = await events_of(system, order_id)
        return [each for each in events if each.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID]

    assert len(await observer.eventually(paid, within=30, what="ORDER_PAID")) == 1
    charges = [line for line in observer.journal(system.gateway_journal) if line.get("order_id") == order_id]
    assert len(charges) == 1


async def write_orphan(system: ObservedSystem) -> OrderEvent:
    event = processing(str(uuid.uuid4()))
    record = event.order.order_id.encode(), event.SerializeToString()
    await observer.write(system.bootstrap, "orders", [record])
    return event


async def test_w13_a_worker_dies_while_it_parks_a_record(healthy: ObservedSystem) -> None:
    process = await armed(healthy, "payment-processor", "W13")
    event = await write_orphan(healthy)
    await dies(process)
    healthy.start_role("payment-processor")

    async def dead() -> bool:
        letters = await letters_of(healthy, event.order.order_id)
        return any(each["dlq_group"] == "payment-processor" for each in letters)

    await observer.eventually(dead, within=40, what="a dead letter")
    letters = await letters_of(healthy, event.order.order_id)
    assert [each["dlq_group"] for each in letters].count("payment-processor") == 1


async def write_a_retry(system: ObservedSystem, process: ManagedProcess) -> OrderEvent:
    """Writes a record that is parked, then the row that it lacks; returns once the process or the retries end."""
    event = await write_orphan(system)
    order_id = event.order.order_id

    async def parked() -> bool:
        records = await observer.read_topic(system.bootstrap, "payment-processor.retry.1s", partitions=1)
        return any(record.key == order_id.encode() for record in records)

    async def over() -> bool:
        return not process.running or bool(await letters_of(system, order_id))

    await observer.eventually(parked, within=20, what="a parked record")
    await add_row(system, event)
    await observer.eventually(over, within=20, what="a due retry that is handled, or a dead letter")
    return event


async def test_w14_a_worker_dies_after_a_due_retry(healthy: ObservedSystem) -> None:
    process = await armed(healthy, "payment-processor", "W14")
    for _ in range(3):
        event = await write_a_retry(healthy, process)
        if not process.running:
            break  # else the row came too late, after the last retry
    await dies(process)
    healthy.start_role("payment-processor")
    await paid_once(healthy, event.order.order_id)


async def test_w15_the_server_dies_amid_a_replay(healthy: ObservedSystem) -> None:
    event = await write_orphan(healthy)
    order_id = event.order.order_id

    async def dead() -> str:
        async with grpc.aio.insecure_channel(healthy.server_address) as channel:
            request = pb.ListDeadLettersRequest(
                filter=pb.DeadLetterFilter(order_id=order_id, group="payment-processor")
            )
            letters = (await DeadLetterServiceStub(channel).ListDeadLetters(request, timeout=5)).dead_letters
            return letters[0].dead_letter_id if letters else ""

    letter = await observer.eventually(dead, within=40, what="a dead letter")
    await add_row(healthy, event)
    process = await armed(healthy, "server", "W15")
    request = pb.ReplayDeadLetterRequest(dead_letter_id=letter, reason="drill")
    async with grpc.aio.insecure_channel(healthy.server_address) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await DeadLetterServiceStub(channel).ReplayDeadLetter(request, timeout=10)
    await dies(process)
    healthy.start_role("server")
    await healthy.wait_healthy(["server"])
    async with grpc.aio.insecure_channel(healthy.server_address) as channel:
        await DeadLetterServiceStub(channel).ReplayDeadLetter(request, timeout=10)
    await paid_once(healthy, order_id)

    async def both_consumed() -> bool:
        return bool(
            observer.metric(healthy.metrics_address("payment-processor"), "orderflow_worker_inflight_records") == 0
        )

    await observer.eventually(both_consumed, within=20, what="both copies of the replay consumed")
    await paid_once(healthy, order_id)


@pytest.mark.parametrize("command", [["topics", "apply"], ["db", "migrate"]])
async def test_w16_a_half_applied_set_up_is_finished_by_the_next_run(
    healthy: ObservedSystem, command: list[str]
) -> None:
    connection = await asyncpg.connect(healthy.postgres.dsn)
    name = f"w16_{uuid.uuid4().hex[:8]}"
    try:
        await connection.execute(f"create database {name}")
    finally:
        await connection.close()
    environment = {
        **os.environ,
        **healthy.environment(),
        "ORDERFLOW_DATABASE_URL": healthy.postgres.dsn_of(name),
        "ORDERFLOW_KAFKA_RETRY_DELAYS": "71,72",  # topics that nobody has made yet
        "PYTHONPATH": f"{_ROOT}:{_ROOT / 'generated'}",
    }

    async def run(**more: str) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cli", *command, env={**environment, **more},
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        return await asyncio.wait_for(process.wait(), 60)

    assert await run(**{fault_points.VARIABLE: "W16"}) == -signal.SIGKILL
    assert await run() == 0
    assert await run() == 0
