"""A fault of each kind: the right alert fires, the console shows it, and what the runbook says ends it.

The real programs, scraped by a real Prometheus whose rules have seconds for minutes. A test fails, too, if a page fires
that its fault is no reason for. Together they take minutes, so only two of the faults are raised in `make test`.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final

import asyncpg
import pytest

from devstack.system import ROLES
from orderflow_client import NewOrder, OrdersClient, OrderStatus, item
from tests.e2e import observer, orders
from tests.faults.board import Board
from tests.faults.watched import WatchedSystem

PAID: Final = OrderStatus.ORDER_STATUS_PAID
READERS: Final = ("order-processor", "payment-processor", "notification-email", "notification-sms")


@contextlib.asynccontextmanager
async def meanwhile(work: Callable[[], Coroutine[Any, Any, Any]], *, every: float) -> AsyncIterator[None]:
    """Does something again and again, every so many seconds."""

    async def again() -> None:
        while True:
            await work()
            await asyncio.sleep(every)

    task = asyncio.create_task(again())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


async def all_paid(client: OrdersClient, placed: list[Any]) -> None:
    settled = await asyncio.gather(*(orders.settled(client, each) for each in placed))
    assert {order.status for order in settled} == {PAID}


@pytest.mark.heavy
async def test_the_gateway_is_away(watched: WatchedSystem, client: OrdersClient) -> None:
    operator = watched.operator
    async with watched.only(
        {("OrderflowBreakerOpenLong", "gateway"), ("OrderflowDependencyDown", "payment-processor")}
    ):
        await watched.gateway_faults(refuse=True)
        placed = [await orders.place(client) for _ in range(6)]
        is_open = await watched.alert("OrderflowBreakerOpen", breaker="gateway")
        waits = await watched.alert("OrderflowDependencyDown", group="payment-processor")
        for_long = await watched.alert("OrderflowBreakerOpenLong", breaker="gateway")

        def shows(board: Board) -> bool:
            return (
                "closed" not in board.tile("Breakers")
                and "gateway" in board.tile("Breakers")
                and "dependency down" in board.process("payment-processor")
            )

        await watched.console_shows("the breaker, and who waits for it", shows)
        explained = await operator.runs(is_open, "orderflow order explain ORDER", ORDER=placed[0].order.order_id)
        assert "if the gateway is away it goes on when that is back" in explained
        assert "gateway.breaker" in watched.events("payment-processor")
        operator.reads(is_open, "it is the gateway's to mend")
        await watched.gateway_faults()

        operator.reads(is_open, "**Over:** the breaker is closed and lag falls")
        await all_paid(client, placed)
        await watched.console_shows("that it is closed", lambda board: "closed" in board.tile("Breakers"))
        await watched.resolved(is_open, waits, for_long)


@pytest.mark.heavy
async def test_postgresql_is_away(watched: WatchedSystem, client: OrdersClient) -> None:
    operator = watched.operator
    async with watched.only({("OrderflowDependencyDown", group) for group in (*READERS, "projector")}):
        await watched.postgres.stop()
        placed = [await orders.place(client) for _ in range(6)]
        waits = await watched.alert("OrderflowDependencyDown", group="order-processor")
        await watched.alert("OrderflowDependencyDown", group="projector")

        def shows(board: Board) -> bool:
            return (
                "dependency down" in board.process("order-processor")
                and "dependency down" in board.process("projector")
                and "Unknown since" in board.section("Failing now")
            )

        await watched.console_shows("who waits, and that the rest is not known", shows)
        operator.reads(waits, "`worker.dependency.down` in its log names what")
        assert {line["dependency"] for line in watched.log("order-processor", "worker.dependency.down")} == {"postgres"}
        operator.reads(waits, "bring that back. Do not restart workers")
        watched.postgres.start()
        await watched.postgres.wait_ready()

        operator.reads(waits, "**Over:** `worker.dependency.up`; paused partitions are 0; lag falls")
        await all_paid(client, placed)
        await watched.console_shows(
            "that nobody waits", lambda board: "dependency down" not in board.section("Processes")
        )
        await watched.resolved(waits)
        assert "worker.dependency.up" in watched.events("order-processor")


@pytest.mark.heavy
async def test_records_are_poisoned(watched: WatchedSystem, client: OrdersClient) -> None:
    operator = watched.operator

    async def write() -> None:
        await observer.write(watched.bootstrap, "orders", [(b"k", os.urandom(50)) for _ in range(6)])

    async with watched.only({("OrderflowDeadLettersMany", group) for group in (*READERS, "projector")}):
        async with meanwhile(write, every=0.5):
            many = await watched.alert("OrderflowDeadLettersMany", group="order-processor")
            some = await watched.alert("OrderflowDeadLetters", group="order-processor", reason="UNDECODABLE")
            await watched.console_shows(
                "what is given up on",
                lambda board: (
                    board.tile("Dead letters") not in ("0 unresolved", "unknown unresolved")
                    and "UNDECODABLE order-processor" in board.section("Failing now").replace(" |", "")
                ),
            )
            assert "UNDECODABLE" in await operator.runs(many, "orderflow dlq reasons")
            listed = await operator.runs(many, "orderflow dlq list --group GROUP", GROUP="order-processor")
            letter = next(word for line in listed.splitlines() for word in line.split() if word.startswith("0-"))
            shown = json.loads(await operator.runs(many, "orderflow dlq show ID", ID=letter))
            assert shown["dead_letter"]["error_class"] == "UNDECODABLE"
            # The order of another customer is not held up.
            await all_paid(client, [await orders.place(client)])
            operator.reads_class("UNDECODABLE", "stop the writer")

        async def none_is_left() -> bool:
            """What the flood wrote last may become a dead letter only now."""
            lines = await operator.runs_class(
                "UNDECODABLE", "orderflow dlq list --error-class UNDECODABLE --limit 1000 -o jsonl"
            )
            if ids := [json.loads(line)["id"] for line in lines.splitlines()]:
                await operator.runs_class("UNDECODABLE", 'orderflow dlq discard --reason "no events"', more=ids)
            return not ids

        await observer.eventually(none_is_left, within=60, what="no dead letter")
        operator.reads(many, "**Over:** `orderflow dlq reasons` is empty")
        assert await operator.runs(many, "orderflow dlq reasons") == ""
        await watched.console_shows("none", lambda board: board.tile("Dead letters") == "0 unresolved")
        await watched.resolved(many, some)


async def test_a_worker_is_dead(watched: WatchedSystem, client: OrdersClient) -> None:
    operator = watched.operator
    async with watched.only({("OrderflowRoleDown", "payment-processor"), ("OrderflowOrdersOverdue", "processing")}):
        watched.processes["payment-processor"].kill()
        placed = await orders.place(client)
        nobody = await watched.alert("OrderflowRoleDown", component="payment-processor")
        one_less = await watched.alert("OrderflowTargetDown", component="payment-processor")
        await watched.console_shows(
            "that it does not answer", lambda board: "0 of 1 since" in board.process("payment-processor")
        )
        operator.reads(nobody, "the process's last log lines. `process.failed` says why it ended")
        assert not {"process.failed", "process.stopping"} & set(watched.events("payment-processor")[-3:])
        operator.reads(nobody, "start it (`orderflow run ROLE`)")
        watched.start_role("payment-processor")

        operator.reads(nobody, "is 1 for a process of the role, and its lag falls to where it was")
        await all_paid(client, [placed])
        await watched.console_shows("that it does", lambda board: "1 of 1" in board.process("payment-processor"))
        await watched.resolved(nobody, one_less)


@pytest.mark.heavy
async def test_lag_grows(watched: WatchedSystem, client: OrdersClient) -> None:
    """The gateway has become slow, and the payment processor may ask it one thing at a time."""
    operator, group = watched.operator, "payment-processor"
    await watched.gateway_faults(latency_seconds=0.5)
    await watched.stop_role(group)
    watched.start_role(group, {"ORDERFLOW_WORKER_MAX_IN_FLIGHT": "1"})
    await watched.wait_healthy([group])
    order = NewOrder(
        user_id="u-1",
        items=[item("SKU-1", 2, 1999, "EUR")],
        payment_method="pm_card_visa",
        email="a@example.com",
        muted_channels=["NOTIFICATION_CHANNEL_EMAIL"],
    )

    async def place() -> None:
        async for result in client.create_orders([order] * 20):
            result.get()

    # An order that waits for so long is too old, and overdue, as well. And a restart takes seconds, here as elsewhere.
    pages = {("OrderflowOldestRecordTooOld", group), ("OrderflowOrdersOverdue", "processing")}
    async with watched.only(pages | {("OrderflowRoleDown", group)}):
        async with meanwhile(place, every=1):
            rises = await watched.alert("OrderflowLagRises", group=group)
            await watched.console_shows("the lag", lambda board: lag(board, group) > 100)
            operator.reads(rises, "*Slots*: are all used?")

            async def all_are_used() -> bool:
                """One for each partition of `orders`."""
                return observer.metric(watched.metrics_address(group), "orderflow_worker_slots", state="used") >= 3

            await observer.eventually(all_are_used, within=10, what="three slots in use")
            operator.reads(rises, "raise `ORDERFLOW_WORKER_MAX_IN_FLIGHT` and restart the group's processes")
            await watched.stop_role(group)
            watched.start_role(group)
            await watched.resolved(rises)
        await watched.console_shows("that it is gone", lambda board: lag(board, group) == 0)
        await watched.gateway_faults()


def lag(board: Board, name: str) -> int:
    """Returns what the console shows of a process; -1 if it does not know."""
    shown = board.process(name).split(" | ")[1]
    return int(shown.replace(",", "")) if shown != "unknown" else -1


@pytest.mark.heavy
async def test_mail_is_refused(watched: WatchedSystem, client: OrdersClient) -> None:
    operator = watched.operator
    async with watched.only(set()):
        await watched.refuse_mail(True)
        placed = await orders.place(client)
        async with meanwhile(lambda: orders.place(client), every=1):
            fail = await watched.alert("OrderflowNotificationsFail", channel="email")
            await watched.console_shows(
                "how many are refused", lambda board: int(board.funnel("messages refused").replace(",", "")) > 0
            )
            events = await operator.runs(fail, "orderflow order events ORDER", ORDER=placed.order.order_id)
            assert "SMTP_550" in events
            operator.reads(fail, "one reason for all: the provider has blocked the sender")
            await watched.refuse_mail(False)
            operator.reads(fail, "**Over:** the share is below 5 %")
            await watched.resolved(fail)


@pytest.mark.heavy
async def test_the_mail_server_is_away(watched: WatchedSystem, client: OrdersClient) -> None:
    operator = watched.operator
    async with watched.only({("OrderflowDependencyDown", "notification-email")}):
        await watched.stop_role("mail")
        before = len(list(watched.mail_folder.glob("*.eml")))
        await all_paid(client, [await orders.place(client)])
        waits = await watched.alert("OrderflowDependencyDown", group="notification-email")
        await watched.console_shows("who waits", lambda board: "dependency down" in board.process("notification-email"))
        assert watched.log("notification-email", "worker.dependency.down")
        operator.reads(waits, "bring that back. Do not restart workers")
        watched.start_stand_in("mail")

        async def told() -> bool:
            return len(list(watched.mail_folder.glob("*.eml"))) - before == 3

        await observer.eventually(told, within=30, what="the customer is told of all three events")
        await watched.resolved(waits)


@contextlib.asynccontextmanager
async def slow_statement(watched: WatchedSystem) -> AsyncIterator[asyncpg.Connection]:
    """A statement of the projector's takes over a second, until the trigger is dropped."""
    connection = await asyncpg.connect(watched.postgres.dsn)
    try:
        await connection.execute(
            "create function slow() returns trigger language plpgsql as"
            " $$ begin perform pg_sleep(1.05); return null; end $$;"
            " create trigger slow before insert on order_events for each statement execute function slow()"
        )
        yield connection
    finally:
        await connection.execute("drop trigger if exists slow on order_events; drop function slow()")
        await connection.close()


async def test_reads_are_behind(watched: WatchedSystem, client: OrdersClient) -> None:
    operator = watched.operator
    pages = {("OrderflowProjectionBehind", ""), ("OrderflowOldestRecordTooOld", "projector")}
    async with watched.only(pages), slow_statement(watched) as database:
        async with meanwhile(lambda: orders.place(client), every=0.5):
            behind = await watched.alert("OrderflowProjectionBehind")
            await watched.console_shows("by how much", lambda board: oldest(board, "projector") > 1)
        operator.reads(behind, "its statements' duration")
        durations = "sum by (component, le) (rate(db_client_operation_duration_seconds_bucket[10s]))"
        slow = await watched.prometheus.query(f"histogram_quantile(0.9, {durations}) > 1")
        assert "projector" in {each["component"] for each in slow}
        operator.reads(behind, "PostgreSQL slow: mend that")
        await database.execute("drop trigger slow on order_events")

        operator.reads(behind, "**Over:** `orderflow_projection_lag_seconds` is below 1")
        await watched.resolved(behind)
        await watched.console_shows("that they are not", lambda board: oldest(board, "projector") < 1)


def oldest(board: Board, name: str) -> float:
    """Returns the age that the console shows of a process, in seconds; 0 if it does not know."""
    number, unit = (board.process(name).split(" | ")[2] + " x").split()[:2]
    return {"ms": 0.001, "s": 1, "m": 60}.get(unit, 0) * float(number if unit != "x" else 0)


async def test_nothing_is_wrong(watched: WatchedSystem, client: OrdersClient) -> None:
    """Orders that go well raise no alert: what the other tests see comes from their faults."""
    assert set(ROLES) <= {each["component"] for each in await watched.prometheus.query("up == 1")}
    async with watched.only(set()):
        await all_paid(client, [await orders.place(client) for _ in range(10)])
        assert await watched.prometheus.firing() == []
