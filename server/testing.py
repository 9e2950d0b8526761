"""A server for the tests of services that call orderflow: the real API, without Kafka and PostgreSQL.

async with OrdersTestServer() as server, OrdersClient(server.target) as orders:
placed = await orders.create_order(...)
server.pay(placed.order.order_id)
"""

import asyncio
import datetime
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, NoReturn, Self

import grpc.aio

from domain import commands, events, lifecycle
from domain.commands import CommandRefused
from domain.orders import etag_of
from domain.records import Coordinates, Delivery
from messaging import envelope
from messaging.envelope import OutgoingRecord
from messaging.publisher import NotHandedOver, OutcomeUnknown, Publisher
from orderflow.events.v1.dead_letter_pb2 import DeadLetter, RecordHeader, RecordOrigin
from orderflow.events.v1.order_event_pb2 import (
    NotificationSentDetails,
    OrderEvent,
    OrderEventType,
    OrderPaidDetails,
    OrderRejectedDetails,
    PaymentFailedDetails,
    PaymentRefundedDetails,
)
from orderflow.orders.v1 import order_service_pb2_grpc
from orderflow.orders.v1.order_pb2 import Money, NotificationChannel, Order, OrderStatus, PaymentStatus
from orderflow.orders.v1.order_service_pb2 import IdentifierKind
from server.admission import Admission
from server.channel_options import channel_options
from server.interceptors import CallInterceptor
from server.order_commands import OrderCommands
from server.order_intake import OrderIntake
from server.order_queries import OrderQueries
from server.order_service import OrderService
from server.order_watches import OrderWatches
from settings import ServerSettings
from storage.command_answers import CommandAnswer, CommandAnswers
from storage.known_requests import KnownRequest, KnownRequests
from storage.order_history import HistoryPosition, HistoryRow, OrderHistory
from storage.order_notices import OrderNotices
from storage.order_search import Found
from storage.order_views import ListFilter, ListPosition, OrderView, OrderViews
from telemetry import tracing
from telemetry.tracing import Span

_GROUP: Final = "test-server"
_NOWHERE: Final = Coordinates("orders", 0, 0)
_PAID: Final = (PaymentStatus.PAYMENT_STATUS_CAPTURED, PaymentStatus.PAYMENT_STATUS_PARTIALLY_REFUNDED)


class OrdersTestServer:
    """Serves the OrderService on a loopback port. Orders stay CREATED until the test, or a command, moves them.

    CancelOrder, ShipOrder, CompleteOrder and RefundOrder are decided at once, by the rules of the real server.

    Attributes:
        target: Where it listens, for `OrdersClient`.
        is_available: False makes it answer new orders and commands with UNAVAILABLE, as it does while Kafka is away.
    """

    target: str

    def __init__(self, *, add_services: Callable[[grpc.aio.Server], None] = lambda _: None) -> None:
        """Serves nothing yet: that begins with `async with`. `add_services` may add others to the same port."""
        self.is_available = True
        self._add_services = add_services
        self._store = _Store()
        self._settings = ServerSettings()
        views, history = _MemoryViews(self._store), _MemoryHistory(self._store)
        self._watches = OrderWatches(
            views=views, history=history, notices=_MemoryNotices(self._store), settings=self._settings
        )
        self._service = OrderService(
            intake=OrderIntake(
                publisher=_MemoryPublisher(self._store),
                is_kafka_reachable=lambda: self.is_available,
                known_requests=_MemoryRequests(self._store),
                settings=self._settings,
                now=_now,
            ),
            order_commands=OrderCommands(
                publisher=_MemoryPublisher(self._store),
                is_kafka_reachable=lambda: self.is_available,
                answers=_MemoryAnswers(self._store),
                settings=self._settings,
                now=_now,
            ),
            queries=OrderQueries(views=views, history=history, settings=self._settings),
            watches=self._watches,
        )

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server(
            interceptors=(CallInterceptor(), Admission(self._settings)), options=channel_options(self._settings)
        )
        order_service_pb2_grpc.add_OrderServiceServicer_to_server(self._service, self._server)
        self._add_services(self._server)
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._waking = asyncio.create_task(self._watches.run())
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watches.close()
        # Without a grace gRPC says on standard error that calls are cancelled, even where there are none.
        await self._server.stop(1.0)
        self._waking.cancel()
        await asyncio.wait([self._waking])

    @property
    def orders(self) -> list[Order]:
        """All orders as they stand, in the order of their placing."""
        return [history[-1].order for history in self._store.histories.values()]

    def process(self, order_id: str) -> Order:
        """Moves a CREATED order to PROCESSING."""
        cause, order = self._moved(
            order_id, OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING, PaymentStatus.PAYMENT_STATUS_PENDING
        )
        return self._store.add(events.order_processing(cause, order))

    def pay(self, order_id: str) -> Order:
        """Moves a CREATED or PROCESSING order to PAID."""
        self._process_if_created(order_id)
        cause, order = self._moved(
            order_id, OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID, PaymentStatus.PAYMENT_STATUS_CAPTURED
        )
        details = OrderPaidDetails(gateway_reference=f"test-{order_id}", amount=order.total)
        return self._store.add(events.order_paid(cause, order, details))

    def decline(self, order_id: str, *, reason: str = "CARD_DECLINED") -> Order:
        """Moves a CREATED or PROCESSING order to PAYMENT_FAILED."""
        self._process_if_created(order_id)
        cause, order = self._moved(
            order_id, OrderEventType.ORDER_EVENT_TYPE_PAYMENT_FAILED, PaymentStatus.PAYMENT_STATUS_DECLINED, reason
        )
        return self._store.add(events.payment_failed(cause, order, PaymentFailedDetails(reason=reason)))

    def reject(self, order_id: str, *, reason: str = "OUT_OF_STOCK") -> Order:
        """Moves a CREATED order to REJECTED."""
        cause, order = self._moved(
            order_id, OrderEventType.ORDER_EVENT_TYPE_ORDER_REJECTED, PaymentStatus.PAYMENT_STATUS_NONE, reason
        )
        return self._store.add(events.order_rejected(cause, order, OrderRejectedDetails(reason=reason)))

    def refund(self, order_id: str) -> Order:
        """Pays back what a CANCELLED order had paid."""
        cause = self._store.histories[order_id][-1]
        order = Order()
        order.CopyFrom(cause.order)
        if order.status != OrderStatus.ORDER_STATUS_CANCELLED or order.payment_status not in _PAID:
            raise lifecycle.IllegalTransitionError(order.status, OrderEventType.ORDER_EVENT_TYPE_PAYMENT_REFUNDED)
        left = order.total.amount_minor - order.refunded.amount_minor
        details = PaymentRefundedDetails(
            gateway_reference=f"test-{order_id}",
            amount=Money(currency_code=order.total.currency_code, amount_minor=left),
            whole=commands.add_refund(order, left),
            reason=order.failure_reason,
        )
        _step(order)
        delivery, owner = Delivery(cause, _GROUP, _NOWHERE), self._store.caller(order_id)
        return self._store.add(events.payment_refunded(delivery, order, details, owner=owner))

    def notify(
        self, order_id: str, channel: NotificationChannel = NotificationChannel.NOTIFICATION_CHANNEL_EMAIL
    ) -> None:
        """Adds a NOTIFICATION_SENT about its last event to an order's history."""
        cause = self._store.histories[order_id][-1]
        details = NotificationSentDetails(
            channel=channel,
            notified_type=cause.type,
            provider_message_id=f"test-{cause.event_id}",
            template=f"en/{envelope.type_name(cause.type).lower()}",
        )
        told = events.notification_sent(Delivery(cause, _GROUP, _NOWHERE), details, now=_now())
        self._store.add_entry(order_id, _now(), told.event_id, told)

    def give_up(self, order_id: str, *, group: str, error_class: str, error_message: str = "") -> DeadLetter:
        """Adds a dead letter to an order's history: `group` gave up on the record of its last event."""
        cause = self._store.histories[order_id][-1]
        record = envelope.encode(cause)
        offset = self._store.letters
        self._store.letters += 1
        letter = DeadLetter(
            key=record.key,
            value=record.value,
            headers=[RecordHeader(name=name, value=value) for name, value in record.headers],
            origin=RecordOrigin(topic=record.topic.name, offset=offset, record_time=cause.occur_time),
            group=group,
            error_class=error_class,
            error_message=error_message,
            attempts=1,
            first_failure_time=cause.occur_time,
        )
        self._store.add_entry(order_id, _now(), f"dlq/0-{offset}", letter)
        return letter

    def _process_if_created(self, order_id: str) -> None:
        if self._store.histories[order_id][-1].order.status == OrderStatus.ORDER_STATUS_CREATED:
            self.process(order_id)

    def _moved(
        self, order_id: str, event: OrderEventType, payment_status: PaymentStatus, failure_reason: str = ""
    ) -> tuple[Delivery, Order]:
        """Returns the order's last event as the cause of the next one, and the order after that.

        Raises:
            IllegalTransitionError: the event cannot happen to the order.
        """
        cause = self._store.histories[order_id][-1]
        order = Order()
        order.CopyFrom(cause.order)
        applied = lifecycle.apply(order.status, event)
        if isinstance(applied, lifecycle.AlreadyApplied):
            raise lifecycle.IllegalTransitionError(order.status, event)
        order.status, order.payment_status, order.failure_reason = applied.status, payment_status, failure_reason
        _step(order)
        return Delivery(cause, _GROUP, _NOWHERE), order


class _Store:
    """The events of each order, and who is told when one is added."""

    def __init__(self) -> None:
        self.histories: dict[str, list[OrderEvent]] = {}
        self.answers: dict[str, CommandAnswer] = {}
        self.others: dict[str, list[HistoryRow]] = {}
        self.letters = 0
        self.traces: dict[str, set[str]] = {}
        self.changed: Callable[[Iterable[str]], None] = lambda _: None

    def add(self, event: OrderEvent) -> Order:
        """Adds an event, once."""
        history = self.histories.setdefault(event.order.order_id, [])
        if all(event.event_id != known.event_id for known in history):
            history.append(event)
            self.changed([event.order.order_id])
        return event.order

    def add_entry(self, order_id: str, time: datetime.datetime, entry_id: str, what: OrderEvent | DeadLetter) -> None:
        """Adds what is no event of the order's life to its history."""
        self.others.setdefault(order_id, []).append(HistoryRow(HistoryPosition(time, 0, entry_id), what))

    def decide(self, command: OrderEvent) -> None:
        """Does at once what the workers would do, once."""
        if command.event_id not in self.answers:
            try:
                result: Order | CommandRefused = self._carried_out(command)
            except CommandRefused as refusal:
                result = refusal
            self.answers[command.event_id] = CommandAnswer(command.command.request_fingerprint, result)

    def _carried_out(self, command: OrderEvent) -> Order:
        order_id = command.order.order_id
        order, owner = Order(), self.caller(order_id)
        last = self.histories[order_id][-1]
        order.CopyFrom(last.order)
        if order.status == OrderStatus.ORDER_STATUS_CREATED:  # a command finds its order processed
            order.status = OrderStatus.ORDER_STATUS_PROCESSING
            order.payment_status = PaymentStatus.PAYMENT_STATUS_PENDING
            _step(order)
            self.add(events.order_processing(Delivery(last, _GROUP, _NOWHERE), order))
        if isinstance(commands.check(command, order, owner=owner), lifecycle.AlreadyApplied):
            return order
        cause = Delivery(command, _GROUP, _NOWHERE)
        details = None
        if command.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED:
            details = _refund(command, order)
        else:
            commands.carry_out(command, order, now=_now())
        _step(order)
        if details is not None:
            return self.add(events.payment_refunded(cause, order, details, owner=owner))
        return self.add(events.carried_out(cause, order, owner=owner))

    def identifiers(self, order_id: str) -> dict[IdentifierKind, set[str]]:
        """Returns by what an order is found."""
        history, others = self.histories[order_id], self.others.get(order_id, [])
        references = {each.order_paid.gateway_reference for each in history}
        references |= {each.payment_refunded.gateway_reference for each in history}
        references |= {each.payment_failed.gateway_reference for each in history}
        return {
            IdentifierKind.IDENTIFIER_KIND_ORDER: {order_id},
            IdentifierKind.IDENTIFIER_KIND_REQUEST: {history[0].order_created.request_id} - {""},
            IdentifierKind.IDENTIFIER_KIND_EVENT: {event.event_id for event in history}
            | {row.position.entry_id for row in others},
            IdentifierKind.IDENTIFIER_KIND_TRACE: self.traces.get(order_id, set()),
            IdentifierKind.IDENTIFIER_KIND_GATEWAY: references - {""},
        }

    def caller(self, order_id: str) -> str:
        """Returns who placed the order."""
        return self.histories[order_id][0].order_created.caller


def _step(order: Order) -> None:
    """Moves the order on by a revision."""
    order.revision += 1
    order.etag = etag_of(order.order_id, order.revision)
    order.update_time.FromDatetime(_now())


def _refund(command: OrderEvent, order: Order) -> PaymentRefundedDetails:
    """Adds a refund to the order.

    Raises:
        CommandRefused: not so much is left.
    """
    asked = command.order_refund_requested
    remaining = order.total.amount_minor - order.refunded.amount_minor
    amount = asked.amount.amount_minor if asked.HasField("amount") else remaining
    if asked.HasField("amount") and asked.amount.currency_code != order.total.currency_code:
        raise CommandRefused("CURRENCY_MISMATCH", order.status)
    if not 0 < amount <= remaining:
        raise CommandRefused("REFUND_TOO_LARGE", order.status)
    return PaymentRefundedDetails(
        gateway_reference=f"test-{command.event_id}",
        amount=Money(currency_code=order.total.currency_code, amount_minor=amount),
        whole=commands.add_refund(order, amount),
        reason=asked.reason,
    )


class _MemoryAnswers(CommandAnswers):
    def __init__(self, store: _Store) -> None:
        self._store = store

    async def owner(self, order_id: str) -> str | None:
        return self._store.caller(order_id) if order_id in self._store.histories else None

    async def find(self, asked: Collection[tuple[str, str]]) -> dict[tuple[str, str], CommandAnswer]:
        return {each: self._store.answers[each[0]] for each in asked if each[0] in self._store.answers}


class _MemoryRequests(KnownRequests):
    def __init__(self, store: _Store) -> None:
        self._store = store

    def span(self) -> AbstractContextManager[Span]:
        return tracing.NO_SPAN

    async def find(self, requests: Collection[tuple[str, str]]) -> dict[tuple[str, str], KnownRequest]:
        return {
            request: KnownRequest(history[-1].order, created.request_fingerprint)
            for history in self._store.histories.values()
            if (request := ((created := history[0].order_created).caller, created.request_id)) in requests
        }


class _MemoryViews(OrderViews):
    def __init__(self, store: _Store) -> None:
        self._store = store

    async def get_many(self, order_ids: Collection[str]) -> dict[str, OrderView]:
        known = [order_id for order_id in order_ids if order_id in self._store.histories]
        return {each: OrderView(self._store.histories[each][-1].order, self._store.caller(each)) for each in known}

    async def find(self, text: str, *, owner: str | None, most: int) -> list[Found]:
        found: list[Found] = []
        for order_id in reversed(self._store.histories):
            if owner in (None, self._store.caller(order_id)):
                known = self._store.identifiers(order_id)
                found += [
                    Found(order_id, kind) for kind in sorted(known) if not known[kind].isdisjoint((text, text.lower()))
                ][:1]
        return found[:most]

    async def page(self, which: ListFilter, *, size: int) -> list[tuple[ListPosition, OrderView]]:
        found = []
        for order_id, view in (await self.get_many(list(self._store.histories))).items():
            at = ListPosition(view.order.create_time.ToDatetime(datetime.UTC), uuid.UUID(order_id))
            if (
                which.caller in (None, view.caller)
                and which.user_id in (None, view.order.user_id)
                and view.order.status in which.statuses
                and which.created_from <= at.create_time
                and at < which.before
            ):
                found.append((at, view))
        return sorted(found, key=lambda each: each[0], reverse=True)[:size]


class _MemoryHistory(OrderHistory):
    def __init__(self, store: _Store) -> None:
        self._store = store

    async def page(self, order_id: str, *, size: int, after: HistoryPosition | None) -> list[HistoryRow]:
        rows = [
            HistoryRow(
                HistoryPosition(event.occur_time.ToDatetime(datetime.UTC), event.revision, event.event_id), event
            )
            for event in self._store.histories[order_id]
        ]
        rows += self._store.others.get(order_id, [])
        rows.sort(key=lambda row: row.position)
        return [row for row in rows if after is None or row.position > after][:size]

    async def runs(self, wanted: Collection[tuple[str, int]]) -> dict[tuple[str, int], list[OrderEvent]]:
        return {(order_id, after): self._store.histories.get(order_id, [])[after:] for order_id, after in wanted}


class _MemoryNotices(OrderNotices):
    def __init__(self, store: _Store) -> None:
        self._store = store

    async def listen(self, *, changed: Callable[[Iterable[str]], None], missed: Callable[[], None]) -> NoReturn:
        self._store.changed = changed
        missed()
        await asyncio.Event().wait()
        raise AssertionError("not reached")


class _MemoryPublisher(Publisher):
    """Hands events straight to the read model, and decides commands at once."""

    def __init__(self, store: _Store) -> None:
        self._store = store

    @property
    def is_ready(self) -> bool:
        return True

    async def publish_all(
        self,
        records: Sequence[OutgoingRecord],
        *,
        timeout: float,  # noqa: ARG002 - it never waits
    ) -> list[NotHandedOver | OutcomeUnknown | None]:
        for record in records:
            event = envelope.decode(record.topic.name, record.key, record.value)
            if (trace_id := tracing.trace_id_in(record.headers)) is not None:
                self._store.traces.setdefault(event.order.order_id, set()).add(trace_id)
            if event.type in commands.LEADS_TO:
                self._store.decide(event)
            else:
                self._store.add(event)
        return [None] * len(records)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
