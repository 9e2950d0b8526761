"""A console in this process, in front of the real servicers over memory and of processes that say what is asked."""

import asyncio
import contextlib
import dataclasses
import datetime
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import grpc.aio

from console.api import Server
from console.app import serve
from messaging.envelope import OutgoingRecord
from messaging.publisher import NotHandedOver, OutcomeUnknown, Publisher
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.operations.v1 import dead_letter_service_pb2 as pb
from orderflow.operations.v1.dead_letter_service_pb2_grpc import add_DeadLetterServiceServicer_to_server
from server.dead_letter_service import DeadLetterService
from server.testing import OrdersTestServer
from settings import ConsoleSettings, KafkaSettings, ServerSettings
from storage.dead_letters import AlreadyResolved, DeadLetterId, DeadLetters, DiscardRefused

_OPEN = pb.DeadLetterState.DEAD_LETTER_STATE_OPEN


class MemoryDeadLetters(DeadLetters):
    """Dead letters and plans in memory.

    Attributes:
        refuses_discard: Why discarding is refused, if it is.
    """

    def __init__(self) -> None:
        self.entries: dict[DeadLetterId, pb.DeadLetterEntry] = {}
        self.plans: dict[str, pb.ReplayPlan] = {}
        self.waiting: dict[str, list[DeadLetterId]] = {}
        self.refuses_discard = ""

    def add(self, letter: DeadLetter) -> str:
        which = DeadLetterId(0, len(self.entries))
        self.entries[which] = pb.DeadLetterEntry(dead_letter_id=str(which), dead_letter=letter, state=_OPEN)
        self.entries[which].record_time.GetCurrentTime()
        return str(which)

    async def summary(self) -> list[pb.DeadLetterSummary]:
        found: dict[tuple[str, str], list[pb.DeadLetterEntry]] = {}
        for entry in self._open(pb.DeadLetterFilter()):
            found.setdefault((entry.dead_letter.group, entry.dead_letter.error_class), []).append(entry)
        return [
            pb.DeadLetterSummary(
                group=group,
                error_class=error_class,
                count=len(entries),
                order_count=len({each.dead_letter.key for each in entries}),
                first_time=entries[0].record_time,
                last_time=entries[-1].record_time,
            )
            for (group, error_class), entries in sorted(found.items(), key=lambda each: -len(each[1]))
        ]

    async def page(
        self, which: pb.DeadLetterFilter, *, include_resolved: bool, size: int, before: DeadLetterId | None
    ) -> list[pb.DeadLetterEntry]:
        entries = [
            each
            for each in self._matching(which)
            if (include_resolved or each.state == _OPEN)
            and (before is None or DeadLetterId.parse(each.dead_letter_id) < before)
        ]
        return [_copy(each) for each in reversed(entries)][:size]

    async def get(self, which: DeadLetterId) -> pb.DeadLetterEntry | None:
        return _copy(self.entries[which]) if which in self.entries else None

    async def resolve(self, which: DeadLetterId, state: pb.DeadLetterState, *, by: str, reason: str) -> None:
        entry = self.entries[which]
        if entry.state != _OPEN:
            raise AlreadyResolved
        if state == pb.DeadLetterState.DEAD_LETTER_STATE_DISCARDED and self.refuses_discard:
            raise DiscardRefused(self.refuses_discard)
        entry.state, entry.resolved_by, entry.resolution_reason = state, by, reason
        entry.resolve_time.GetCurrentTime()

    async def create_plan(self, which: pb.DeadLetterFilter, *, by: str) -> pb.ReplayPlan | None:
        taken = self._open(which)
        if not taken:
            return None
        plan = pb.ReplayPlan(plan_id=str(uuid.uuid4()), filter=which, created_by=by, total=len(taken))
        plan.create_time.GetCurrentTime()
        plan.state = pb.ReplayPlanState.REPLAY_PLAN_STATE_OPEN
        self.plans[plan.plan_id] = plan
        self.waiting[plan.plan_id] = [DeadLetterId.parse(each.dead_letter_id) for each in taken]
        return plan

    async def plan(self, plan_id: str) -> pb.ReplayPlan | None:
        plan = self.plans.get(plan_id)
        return None if plan is None else _copied_plan(plan)

    async def next_of_plan(self, plan_id: str) -> pb.DeadLetterEntry | None:
        aborted = self.plans[plan_id].state == pb.ReplayPlanState.REPLAY_PLAN_STATE_ABORTED
        waiting = self.waiting[plan_id]
        return None if aborted or not waiting else _copy(self.entries[waiting[0]])

    async def tick_off(self, plan_id: str, which: DeadLetterId, *, replayed: bool) -> None:
        plan = self.plans[plan_id]
        self.waiting[plan_id].remove(which)
        plan.replayed += replayed
        plan.skipped += not replayed
        if not self.waiting[plan_id]:
            plan.state = pb.ReplayPlanState.REPLAY_PLAN_STATE_DONE

    async def abort_plan(self, plan_id: str) -> None:
        self.plans[plan_id].state = pb.ReplayPlanState.REPLAY_PLAN_STATE_ABORTED

    def _matching(self, which: pb.DeadLetterFilter) -> list[pb.DeadLetterEntry]:
        return [
            each
            for each in self.entries.values()
            if which.group in ("", each.dead_letter.group)
            and which.error_class in ("", each.dead_letter.error_class)
            and which.order_id in ("", each.dead_letter.key.decode(errors="replace"))
            and (not which.HasField("since") or each.record_time.ToDatetime() >= which.since.ToDatetime())
        ]

    def _open(self, which: pb.DeadLetterFilter) -> list[pb.DeadLetterEntry]:
        return [each for each in self._matching(which) if each.state == _OPEN]


def _copy(entry: pb.DeadLetterEntry) -> pb.DeadLetterEntry:
    copied = pb.DeadLetterEntry()
    copied.CopyFrom(entry)
    return copied


def _copied_plan(plan: pb.ReplayPlan) -> pb.ReplayPlan:
    copied = pb.ReplayPlan()
    copied.CopyFrom(plan)
    return copied


class Replayed(Publisher):
    """Takes replayed records.

    Attributes:
        is_away: True has it answer as it does while Kafka is.
    """

    def __init__(self) -> None:
        self.records: list[OutgoingRecord] = []
        self.is_away = False

    async def publish_all(
        self, records: Sequence[OutgoingRecord], *, timeout: float
    ) -> list[NotHandedOver | OutcomeUnknown | None]:
        if self.is_away:
            return [NotHandedOver("Kafka is not reachable") for _ in records]
        self.records += records
        return [None] * len(records)


class Metrics:
    """Serves /metrics for every process of the system, each on a path of its own host name: here, on one port each."""

    def __init__(self) -> None:
        self.pages: dict[str, str] = {}
        self._servers: dict[str, asyncio.Server] = {}

    async def start(self, name: str, page: str) -> str:
        """Returns `name=host:port`, for the setting."""
        self.pages[name] = page

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                body = self.pages[name].encode()
                writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
            writer.close()

        server = self._servers[name] = await asyncio.start_server(answer, "127.0.0.1", 0)
        return f"{name}=127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def stop(self, name: str) -> None:
        """Takes a process away."""
        self._servers.pop(name).close()

    async def close(self) -> None:
        for name in list(self._servers):
            await self.stop(name)


@dataclasses.dataclass
class System:
    """What a test of the console stands on."""

    orders: OrdersTestServer
    letters: MemoryDeadLetters
    replayed: Replayed
    metrics: Metrics
    stopping: contextlib.AsyncExitStack

    @property
    def target(self) -> str:
        """Where the gRPC server listens."""
        return self.orders.target

    def give_up(self, order_id: str, *, group: str, error_class: str, message: str = "") -> str:
        """Has a group give up on an order's last record and returns the dead letter's identifier."""
        return self.letters.add(
            self.orders.give_up(order_id, group=group, error_class=error_class, error_message=message)
        )

    async def stop_server(self) -> None:
        """Takes the gRPC server away."""
        await self.stopping.aclose()

    def age(self, order_id: str, seconds: float) -> None:
        """Lets an order have stood where it does for so long."""
        [order] = [each for each in self.orders.orders if each.order_id == order_id]
        for time in (order.create_time, order.update_time):
            time.FromDatetime(time.ToDatetime() - datetime.timedelta(seconds=seconds))


class Served(Protocol):
    """What a console is put in front of."""

    @property
    def target(self) -> str: ...


@contextlib.asynccontextmanager
async def system() -> AsyncIterator[System]:
    """Serves orders and dead letters, without a console."""
    letters, replayed, metrics = MemoryDeadLetters(), Replayed(), Metrics()
    service = DeadLetterService(letters=letters, publisher=replayed, kafka=KafkaSettings(), settings=ServerSettings())

    def add(server: grpc.aio.Server) -> None:
        add_DeadLetterServiceServicer_to_server(service, server)

    async with contextlib.AsyncExitStack() as stopping:
        orders = await stopping.enter_async_context(OrdersTestServer(add_services=add))
        yield System(orders, letters, replayed, metrics, stopping)
    await metrics.close()


@contextlib.asynccontextmanager
async def console(of: Served, *, token: str | None = None, **settings: Any) -> AsyncIterator[str]:
    """Serves a console meanwhile, as `orderflow console` does, and yields its address."""
    stop = asyncio.Event()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    chosen = {"listen": "127.0.0.1:0", "refresh_seconds": 0.2, "metrics": "", **settings}
    task = asyncio.create_task(
        serve(
            ConsoleSettings(**chosen),
            stop,
            connect=lambda: Server(of.target),
            own_token=lambda: token,
            lends_credentials=token is not None,
            started=address.set_result,
        )
    )
    await asyncio.wait((task, address), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        yield address.result()
    finally:
        stop.set()
        await task
