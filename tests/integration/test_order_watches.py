"""WatchOrder over a real server, and the one connection by which all watches hear of changes."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

import settings
from devstack import free_ports
from domain.lifecycle import SETTLED
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1 import order_service_pb2_grpc
from orderflow.orders.v1.order_pb2 import OrderStatus, PaymentStatus
from orderflow.orders.v1.order_service_pb2 import GetOrderRequest, WatchOrderRequest
from server import calls, order_watches
from server.app import serve
from server.tokens import ConsistencyToken
from settings import DatabaseSettings
from storage import migrate, order_notices
from storage.database import Database
from storage.order_history import OrderHistory
from tests import engines, served
from tests.builders import an_id, an_order, order_event
from tests.engines import eventually
from tests.served import ReadModel, Served, called_as, order_life, orders_of, refusal

E = OrderEventType
S = OrderStatus
NOT_FOUND = (grpc.StatusCode.NOT_FOUND, "ORDER_NOT_FOUND", [])
NOT_THERE_YET = (grpc.StatusCode.UNAVAILABLE, "NOT_THERE_YET", ["0.5"])
STOPPING = (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING", ["0.2"])
LIMIT = (grpc.StatusCode.UNAVAILABLE, "WATCH_LIMIT_REACHED", ["0.2"])


class Watching:
    """A watch at work: what it has received, and how it ended."""

    def __init__(self, stub: Any, order_id: str, resume_token: str = "", **options: Any) -> None:
        self.received: list[Any] = []
        self.refusal: Any = None
        self._call = stub.WatchOrder(WatchOrderRequest(order_id=order_id, resume_token=resume_token), **options)
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for response in self._call:
                self.received.append(response)
        except grpc.aio.AioRpcError as error:
            self.refusal = refusal(error)

    @property
    def revisions(self) -> list[int]:
        return [response.order.revision for response in self.received]

    async def until(self, *revisions: int) -> None:
        await eventually(lambda: self.revisions == list(revisions) or self.task.done(), f"{revisions} on the watch")
        assert self.revisions == list(revisions), self.refusal

    async def ended(self, *, seconds: float = engines.DEADLINE) -> Any:
        """Returns what it was refused with, None after OK."""
        async with asyncio.timeout(seconds):
            await self.task
        return self.refusal

    def cancel(self) -> None:
        self._call.cancel()


@contextlib.asynccontextmanager
async def watched(database: Database, reached: DatabaseSettings, **fields: Any) -> AsyncIterator[Served]:
    """A server whose watches are woken, by notices."""
    async with served.served(database, reached, **fields) as server:
        task = asyncio.create_task(server.watches.run())
        try:
            yield server
            assert not task.done(), "what wakes the watches has ended"
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def by_notice_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks by the clock would hide a notice that nobody sent."""
    monkeypatch.setattr(order_watches, "_LOOK_SECONDS", 600.0)


@pytest.fixture
async def server(database: Database, database_settings: DatabaseSettings) -> AsyncIterator[Served]:
    async with watched(database, database_settings) as server:
        yield server


@pytest.fixture
async def stub(server: Served) -> AsyncIterator[Any]:
    async with server.channel() as stub:
        yield stub


@pytest.fixture
def model(database: Database) -> ReadModel:
    return ReadModel(database)


def id_of(life: list[OrderEvent]) -> str:
    return life[0].order.order_id


def token(life: list[OrderEvent], revision: int) -> str:
    return ConsistencyToken(id_of(life), revision).encode()


# -- what is sent ------------------------------------------------------------------------------------------------------


async def test_the_current_state_then_each_revision_up_to_the_settled_one(stub: Any, model: ReadModel) -> None:
    life = order_life()
    await model.add(life[0])
    watch = Watching(stub, id_of(life))
    await watch.until(1)
    await model.add(life[1])
    await watch.until(1, 2)
    await model.add(*life[2:])
    assert await watch.ended() is None
    assert [response.order for response in watch.received] == [event.order for event in life[:3]]
    assert [response.resume_token for response in watch.received] == [token(life, n) for n in (1, 2, 3)]


async def test_a_settled_order_is_sent_once(stub: Any, model: ReadModel) -> None:
    life = order_life()
    await model.add(*life)
    watch = Watching(stub, id_of(life))
    assert await watch.ended() is None
    assert watch.revisions == [5]


@pytest.mark.parametrize("status", sorted(SETTLED))
async def test_every_settled_status_ends_it(stub: Any, model: ReadModel, status: int) -> None:
    life = order_life()
    life[2].order.status = status  # type: ignore[assignment]
    await model.add(life[0])
    watch = Watching(stub, id_of(life))
    await watch.until(1)
    await model.add(life[1], life[2])
    assert await watch.ended() is None
    assert watch.revisions[-1] == 3


async def test_a_hole_is_waited_at(stub: Any, model: ReadModel) -> None:
    life = order_life()
    await model.add(life[0])
    watch = Watching(stub, id_of(life))
    await watch.until(1)
    looks = counted_looks(model)
    await model.add(life[2])
    await looks.more("the watch has seen revision 3")
    assert watch.revisions == [1]
    await model.add(life[1])
    assert await watch.ended() is None
    assert watch.revisions == [1, 2, 3]


class counted_looks:  # noqa: N801 - reads as a verb
    """Tells that the histories were read again since, by the whole process."""

    def __init__(self, _: ReadModel) -> None:
        self._before = LOOKS[0]

    async def more(self, what: str) -> None:
        await eventually(lambda: LOOKS[0] > self._before, what)


LOOKS = [0]
QUERIES: list[int] = []


@pytest.fixture(autouse=True)
def looks_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    original = OrderHistory.runs

    async def runs(self: OrderHistory, wanted: Any) -> Any:
        found = await original(self, wanted)
        LOOKS[0] += 1
        QUERIES.append(len(wanted))
        return found

    monkeypatch.setattr(OrderHistory, "runs", runs)


async def test_a_token_leaves_out_what_was_shown(stub: Any, model: ReadModel) -> None:
    life = order_life()
    await model.add(*life[:2])
    watch = Watching(stub, id_of(life), token(life, 1))
    await watch.until(2)
    await model.add(*life[2:])
    assert await watch.ended() is None
    assert watch.revisions == [2, 3]


async def test_after_a_token_it_ends_at_the_first_settled_one_past_it(stub: Any, model: ReadModel) -> None:
    life = order_life()
    await model.add(*life)
    for after, sent in ((1, [2, 3]), (2, [3]), (3, [4]), (4, [5])):
        watch = Watching(stub, id_of(life), token(life, after))
        assert await watch.ended() is None
        assert watch.revisions == sent


async def test_two_watches_of_one_order_at_different_revisions(stub: Any, model: ReadModel) -> None:
    # Revision 2 is not there yet: one waits at that hole, the other is past it.
    life = order_life()
    await model.add(life[0], life[2])
    behind, ahead = Watching(stub, id_of(life), token(life, 1)), Watching(stub, id_of(life), token(life, 3))
    looks = counted_looks(model)
    await looks.more("both have looked")
    await model.add(life[3])
    assert await ahead.ended() is None
    assert (ahead.revisions, behind.revisions) == ([4], [])
    await model.add(life[1])
    assert await behind.ended() is None
    assert behind.revisions == [2, 3]


async def test_a_break_and_a_resume_repeat_nothing(stub: Any, model: ReadModel) -> None:
    life = order_life()
    await model.add(life[0])
    first = Watching(stub, id_of(life))
    await first.until(1)
    first.cancel()
    await model.add(*life[1:])
    second = Watching(stub, id_of(life), first.received[-1].resume_token)
    assert await second.ended() is None
    assert second.revisions == [2, 3]


async def test_a_token_of_the_last_state_that_there_can_be_ends_at_once(stub: Any, model: ReadModel) -> None:
    life = order_life()
    life[2].order.status = S.ORDER_STATUS_PAYMENT_FAILED
    await model.add(*life[:3])
    watch = Watching(stub, id_of(life), token(life, 3))
    assert await watch.ended() is None
    assert watch.revisions == []


async def test_a_copy_of_an_event_is_not_sent_again(stub: Any, model: ReadModel) -> None:
    life = order_life()
    await model.add(life[0])
    watch = Watching(stub, id_of(life))
    await watch.until(1)
    copy = order_event(E.ORDER_EVENT_TYPE_ORDER_PROCESSING, life[0].order, revision=2)
    await model.add(life[1], copy, life[2])
    assert await watch.ended() is None
    assert watch.revisions == [1, 2, 3]


async def test_what_has_no_revision_is_not_sent(stub: Any, model: ReadModel) -> None:
    life = order_life()
    await model.add(*life[:2])
    watch = Watching(stub, id_of(life))
    await watch.until(2)
    told = order_event(E.ORDER_EVENT_TYPE_NOTIFICATION_SENT, life[1].order, revision=0)
    letter = DeadLetter(group="payment-processor", error_class="PAYMENT_UNKNOWN", key=id_of(life).encode())
    await model.add(told, dead_letters=[letter])
    await model.add(life[2])
    assert await watch.ended() is None
    assert watch.revisions == [2, 3]
    assert watch.received[0].order.payment_status == PaymentStatus.PAYMENT_STATUS_PENDING


# -- what is not there, or not the caller's ----------------------------------------------------------------------------


async def test_without_a_token_an_order_has_to_be_there(stub: Any) -> None:
    assert await Watching(stub, an_id()).ended() == NOT_FOUND


async def test_with_a_token_it_may_come_later(stub: Any, model: ReadModel) -> None:
    life = order_life()
    watch = Watching(stub, id_of(life), token(life, 1), timeout=20)
    views = Watching(stub, an_id())  # looked for after the first one
    assert await views.ended() == NOT_FOUND
    await model.add(life[0])
    await model.add(life[1])
    await watch.until(2)
    await model.add(life[2])
    assert await watch.ended() is None
    assert watch.revisions == [2, 3]


async def test_with_a_token_the_deadline_ends_the_wait(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_ANSWER_SECONDS", 2.0)  # after a pause of 0.1 s it may be the channel that says so
    order_id = an_id()
    resume = ConsistencyToken(order_id, 2**64 - 1).encode()
    assert await Watching(stub, order_id, resume, timeout=8).ended() == NOT_THERE_YET


async def test_without_a_deadline_it_waits_as_long_as_other_calls(
    database: Database, database_settings: DatabaseSettings
) -> None:
    order_id = an_id()
    async with watched(database, database_settings, default_deadline=0.3) as server, server.channel() as stub:
        watch = Watching(stub, order_id, ConsistencyToken(order_id, 1).encode())
        assert await watch.ended() == NOT_THERE_YET


async def test_anothers_order_is_as_one_that_is_not_there(
    database: Database, database_settings: DatabaseSettings, model: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    called_as(monkeypatch)
    theirs = order_life(caller="them")
    await model.add(theirs[0])
    async with watched(database, database_settings, default_deadline=1) as server, server.channel() as stub:
        own = Watching(stub, id_of(theirs), metadata=(("caller", "them"),), timeout=60)
        await own.until(1)
        assert await Watching(stub, id_of(theirs), timeout=60).ended() == NOT_FOUND
        with_token = Watching(stub, id_of(theirs), token(theirs, 1))
        await model.add(*theirs[1:])
        assert await own.ended() is None
        assert await with_token.ended() == NOT_THERE_YET
        assert with_token.received == []


@pytest.mark.parametrize(
    ("order_id", "resume_token", "field"),
    [
        ("x", "", "order_id"),
        (an_id().upper(), "", "order_id"),
        (an_id(), "nonsense", "resume_token"),
        (an_id(), ConsistencyToken(an_id(), 1).encode(), "resume_token"),
    ],
    ids=["not-an-id", "not-as-it-is-written", "not-a-token", "anothers-token"],
)
async def test_a_watch_that_is_not_valid(stub: Any, order_id: str, resume_token: str, field: str) -> None:
    refused = await Watching(stub, order_id, resume_token).ended()
    assert refused == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS", [field])


# -- many --------------------------------------------------------------------------------------------------------------


async def listeners(database: Database, server: Served) -> int:
    name = f"orderflow {server.application} notices"
    (row,) = await engines.fetch(
        database, "select count(*) as n from pg_stat_activity where application_name = $1", name
    )
    return int(str(row["n"]))


async def test_500_watches_share_one_connection_and_look_together(
    database: Database, database_settings: DatabaseSettings, model: ReadModel
) -> None:
    lives = [order_life() for _ in range(500)]
    await model.add(*(life[0] for life in lives))
    async with watched(database, database_settings) as server, server.channel() as stub:
        watches = [Watching(stub, id_of(life)) for life in lives]
        for watch in watches:
            await watch.until(1)
        await until_listeners(1, database, server)
        await eventually(lambda: all(not watcher.woken.is_set() for watcher in watchers(server)), "all wait")
        QUERIES.clear()
        await model.add(*(event for life in lives for event in life[1:3]))
        for watch in watches:
            assert await watch.ended() is None
            assert watch.revisions == [1, 2, 3]
        print(f"{sum(QUERIES)} looks in {len(QUERIES)} queries")
        assert sum(QUERIES) >= 500
        assert len(QUERIES) < 50, "many orders in one query"
        assert await listeners(database, server) == 1
        await eventually(lambda: not server.watches._watchers, "nothing is left behind")


async def until_listeners(count: int, database: Database, server: Served) -> None:
    async with asyncio.timeout(engines.DEADLINE):
        while await listeners(database, server) != count:  # noqa: ASYNC110 - it is in PostgreSQL
            await asyncio.sleep(0.01)


def watchers(server: Served) -> list[Any]:
    return [watcher for some in server.watches._watchers.values() for watcher in some]


async def test_a_notice_of_many_orders_is_cut(own_database: Database) -> None:
    heard: list[str] = []
    notices = order_notices.OrderNotices(own_database._settings, application="tests")
    listening = asyncio.Event()
    task = asyncio.create_task(notices.listen(changed=heard.extend, missed=listening.set))
    try:
        await listening.wait()
        events = orders_of(1_001)
        await ReadModel(own_database).add(*events, *events[:5])
        await eventually(lambda: len(heard) >= 1_001, "all orders are told of")
        assert sorted(heard) == sorted(event.order.order_id for event in events)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# -- ends --------------------------------------------------------------------------------------------------------------


async def test_a_stop_ends_every_watch_at_once(
    database: Database, database_settings: DatabaseSettings, model: ReadModel
) -> None:
    lives = [order_life() for _ in range(20)]
    await model.add(*(life[0] for life in lives))
    async with watched(database, database_settings) as server, server.channel() as stub:
        watches = [Watching(stub, id_of(life)) for life in lives]
        absent = an_id()
        for watch in watches:
            await watch.until(1)
        waiting = Watching(stub, absent, ConsistencyToken(absent, 1).encode(), timeout=60)
        await eventually(lambda: absent in server.watches._watchers, "the last one waits")
        server.watches.close()
        assert await Watching(stub, id_of(lives[0])).ended() == STOPPING, "one that comes after"
        async with asyncio.timeout(5):
            await server.server.stop(60)
        for watch in (*watches, waiting):
            assert await watch.ended() == STOPPING
        assert not server.watches._watchers


async def test_the_servers_stop_ends_its_watches_first(own_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server as it is put together; reads need no Kafka."""
    port, kafka_port = free_ports(2)
    monkeypatch.setenv("ORDERFLOW_DATABASE_URL", own_database._settings.url.get_secret_value())
    monkeypatch.setenv("ORDERFLOW_KAFKA_BOOTSTRAP", f"127.0.0.1:{kafka_port}")
    monkeypatch.setenv("ORDERFLOW_SERVER_LISTEN", f"127.0.0.1:{port}")
    monkeypatch.setenv("ORDERFLOW_SERVER_METRICS_LISTEN", "127.0.0.1:0")
    monkeypatch.setenv("ORDERFLOW_SERVER_DRAIN_SECONDS", "60")
    life = order_life()
    model = ReadModel(own_database)
    await model.add(life[0])
    stop = asyncio.Event()
    server = asyncio.create_task(serve(settings.load(), stop))
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = order_service_pb2_grpc.OrderServiceStub(channel)
            watch = Watching(stub, id_of(life), wait_for_ready=True)
            await watch.until(1)
            await model.add(life[1])
            await watch.until(1, 2)
            stop.set()
            assert await watch.ended() == STOPPING
            async with asyncio.timeout(20):
                await asyncio.shield(server)
    finally:
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)


async def test_a_stop_does_not_wait_for_a_look(
    database: Database, database_settings: DatabaseSettings, model: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = order_life()
    await model.add(life[0])
    looking, answered = asyncio.Event(), asyncio.Event()

    async def runs(_: OrderHistory, wanted: Any) -> Any:
        looking.set()
        await answered.wait()
        return {}

    monkeypatch.setattr(OrderHistory, "runs", runs)
    async with watched(database, database_settings) as server, server.channel() as stub:
        watch = Watching(stub, id_of(life))
        await looking.wait()
        server.watches.close()
        assert await watch.ended() == STOPPING
        answered.set()


async def test_a_watch_has_a_limit(database: Database, database_settings: DatabaseSettings, model: ReadModel) -> None:
    life = order_life()
    await model.add(life[0])
    async with (
        watched(database, database_settings, watch_limit_seconds=2) as server,
        server.channel() as stub,
    ):
        watch = Watching(stub, id_of(life))
        assert await watch.ended() == LIMIT
        assert watch.revisions == [1]
        assert not server.watches._watchers


async def test_a_cancelled_watch_leaves_nothing_behind(server: Served, stub: Any, model: ReadModel) -> None:
    life = order_life()
    await model.add(life[0])
    watches = [Watching(stub, id_of(life)) for _ in range(3)]
    absent = an_id()
    watches.append(Watching(stub, absent, ConsistencyToken(absent, 1).encode(), timeout=60))
    for watch in watches[:3]:
        await watch.until(1)
    await eventually(lambda: absent in server.watches._watchers, "the last one waits")
    for watch in watches:
        watch.cancel()
    await eventually(lambda: not server.watches._watchers, "nothing is left behind")
    for watch in watches:
        with contextlib.suppress(asyncio.CancelledError):
            await watch.ended()
    gc.collect()
    assert await stub.GetOrder(GetOrderRequest(order_id=id_of(life)))


# -- PostgreSQL comes and goes -----------------------------------------------------------------------------------------


async def test_a_lost_listener_comes_back_and_all_look_again(
    database: Database, database_settings: DatabaseSettings, model: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = order_life()
    await model.add(life[0])
    async with watched(database, database_settings) as server, server.channel() as stub:
        watch = Watching(stub, id_of(life))
        await watch.until(1)
        await until_listeners(1, database, server)
        # Held back, so that the notice of revision 2 is missed for certain.
        again = asyncio.Event()
        connect = order_notices.asyncpg.connect

        async def connect_later(*args: Any, **options: Any) -> Any:
            await again.wait()
            return await connect(*args, **options)

        monkeypatch.setattr(order_notices.asyncpg, "connect", connect_later)
        await engines.fetch(
            database,
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1",
            f"orderflow {server.application} notices",
        )
        await until_listeners(0, database, server)
        await model.add(life[1])
        assert watch.revisions == [1]
        again.set()
        await watch.until(1, 2)
        await model.add(life[2])
        assert await watch.ended() is None
        assert watch.revisions == [1, 2, 3]


async def test_the_clock_stands_in_for_a_lost_notice(
    database: Database, database_settings: DatabaseSettings, model: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_watches, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(order_notices, "_CHANNEL", "nobody_sends_here")
    life = order_life()
    await model.add(life[0])
    async with watched(database, database_settings) as server, server.channel() as stub:
        watch = Watching(stub, id_of(life))
        await watch.until(1)
        monkeypatch.setattr(order_notices, "_CHANNEL", "nobody_hears_this")
        await model.add(*life[1:3])
        assert await watch.ended() is None
        assert watch.revisions == [1, 2, 3]


async def test_watches_outlive_a_restart_of_postgresql(tmp_path: Path) -> None:
    async with engines.postgres_server(tmp_path) as postgres:
        reached = engines.database_settings(postgres.dsn, connect_timeout=1, command_timeout=2)
        await migrate.migrate(reached)
        async with (
            engines.opened(reached) as database,
            watched(database, reached) as server,
            server.channel() as stub,
        ):
            model = ReadModel(database)
            lives = [order_life() for _ in range(50)]
            await model.add(*(life[0] for life in lives))
            watches = [Watching(stub, id_of(life)) for life in lives]
            for watch in watches:
                await watch.until(1)
            await postgres.stop()
            server.watches._wake_all()
            late = await Watching(stub, id_of(lives[0])).ended()
            assert late == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", ["1.0"]), "one that has shown nothing"
            postgres.start()
            await postgres.wait_ready()
            async with engines.opened(reached) as writer:
                await ReadModel(writer).add(*(event for life in lives for event in life[1:3]))
                for watch in watches:
                    assert await watch.ended() is None
                    assert watch.revisions == [1, 2, 3]
                # Asked by a new pool: a connection of before the restart may fail once.
                assert await listeners(writer, server) <= 1


async def test_what_changes_while_it_looks_is_heard(
    database: Database, database_settings: DatabaseSettings, model: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = order_life()
    await model.add(life[0])
    original = OrderHistory.runs
    projected: list[OrderEvent] = []

    async def runs(self: OrderHistory, wanted: Any) -> Any:
        found = await original(self, wanted)
        if not projected:  # after the first look's query, before its answer
            projected.extend(life[1:3])
            await model.add(*projected)
            await eventually(lambda: watchers(server)[0].woken.is_set(), "the notice is here")
        return found

    monkeypatch.setattr(OrderHistory, "runs", runs)
    async with watched(database, database_settings) as server, server.channel() as stub:
        watch = Watching(stub, id_of(life))
        assert await watch.ended() is None
        assert watch.revisions == [1, 2, 3]


async def test_revisions_that_come_while_it_begins(stub: Any, model: ReadModel) -> None:
    """Whatever is projected between the subscription and the looks is sent once."""
    for _ in range(20):
        order = an_order()
        life = order_life(order)
        await model.add(life[0])
        watch = Watching(stub, id_of(life))
        await model.add(life[1])
        await model.add(life[2])
        assert await watch.ended() is None
        assert watch.revisions in ([1, 2, 3], [2, 3], [3])
