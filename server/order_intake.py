"""Takes orders in: validates, prices, publishes. OK means that the order is durable.

One order and a batch take the same way; each order has a result of its own.
"""

import asyncio
import dataclasses
import datetime
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import fault_points
from domain import events
from domain.failures import DependencyDown
from domain.identifiers import created_event_id, order_id_for, request_fingerprint
from domain.orders import fill, new_order, unpaid
from domain.validation import Violation, violations_of
from messaging import envelope
from messaging.envelope import OutgoingRecord
from messaging.publisher import NotHandedOver, OutcomeUnknown, Publisher, TooManyWaiting
from messaging.topics import MAX_MESSAGE_BYTES
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_pb2 import Order
from orderflow.orders.v1.order_service_pb2 import (
    BatchCreateOrdersRequest,
    BatchCreateOrdersResponse,
    CreateOrderRequest,
    CreateOrderResponse,
)
from server import calls, errors
from server.errors import CallError
from server.gathering import Gathering
from server.tokens import ConsistencyToken
from settings import ServerSettings
from storage.known_requests import KnownRequest, KnownRequests
from telemetry import logs, metrics

if TYPE_CHECKING:
    from server.calls import Context

log = logs.get()

MAX_BATCH: Final = 500
MAX_ORDER_BYTES: Final = MAX_MESSAGE_BYTES // 2
"""Largest CreateOrderRequest: what each event of its order adds fits into the other half of a record."""

_LOOKUP_BREAK_SECONDS: Final = 2.0
_LONG_AGO: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_AT_ONCE: Final = 25
"""Orders of a batch that are worked on before other calls get their turn: a few milliseconds."""

Result = Order | CallError


@dataclasses.dataclass(slots=True)
class _Intake:
    """An order on its way in. `result` is set once it is known."""

    request: CreateOrderRequest
    fingerprint: bytes = b""
    correlation_id: str = ""
    record: OutgoingRecord | None = None
    order: Order | None = None
    result: Result | None = None


class OrderIntake:
    """CreateOrder and BatchCreateOrders. Methods raise CallError."""

    def __init__(
        self,
        *,
        publisher: Publisher,
        is_kafka_reachable: Callable[[], bool],
        known_requests: KnownRequests,
        settings: ServerSettings,
        now: Callable[[], datetime.datetime],
    ) -> None:
        """Collaborators are given; nothing is connected here."""
        self._publisher = publisher
        self._is_kafka_reachable = is_kafka_reachable
        self._known_requests = known_requests
        self._known: Gathering[tuple[str, str], KnownRequest] = Gathering(
            self._look_up, pause=settings.gathering_ms / 1000
        )
        self._settings = settings
        self._now = now
        self._no_lookup_before = 0.0

    async def create(self, request: CreateOrderRequest, context: "Context") -> CreateOrderResponse:
        """Accepts an order; OK means that it is durable."""
        [result] = await self._take_in((request,), context)
        if isinstance(result, CallError):
            raise result
        response = CreateOrderResponse()
        _tell(response, result)
        return response

    async def create_batch(self, request: BatchCreateOrdersRequest, context: "Context") -> BatchCreateOrdersResponse:
        """Accepts many orders, each with its own result."""
        if violations := _violations_of_batch(request.requests):
            raise errors.invalid(violations, outcome="NOT_ACCEPTED")
        results = await self._take_in(request.requests, context)
        repeated = calls.was_tried_before(context)
        response = BatchCreateOrdersResponse()
        for result in results:
            if isinstance(result, CallError):
                response.results.add(error=(result.as_repeat() if repeated else result).status())
            else:
                _tell(response.results.add().created, result)
        return response

    async def _take_in(self, requests: Sequence[CreateOrderRequest], context: "Context") -> list[Result]:
        """Returns what became of each, in their order."""
        deadline = asyncio.get_running_loop().time() + calls.time_left(context, self._settings)
        caller = calls.caller(context)
        intakes = [_Intake(request) for request in requests]
        for number, intake in enumerate(intakes, 1):
            if not number % _AT_ONCE:
                await asyncio.sleep(0)
            _check(intake)
        wanted = [(caller, each.request.request_id) for each in intakes if each.fingerprint and each.request.request_id]
        known = await self._find(wanted)
        correlation_id = calls.correlation_id(context, "")
        alike = events.orders_created(unpaid(self._now(), self._settings.time_to_pay), caller=caller)
        for number, intake in enumerate(intakes, 1):
            if not number % _AT_ONCE:
                await asyncio.sleep(0)
            if intake.result is None:
                self._accept(intake, known.get((caller, intake.request.request_id)), alike, correlation_id)
        await self._publish([each for each in intakes if each.result is None], deadline)
        results = [each.result for each in intakes if each.result is not None]
        assert len(results) == len(intakes)
        return results

    def _accept(self, intake: _Intake, known: KnownRequest | None, alike: OrderEvent, correlation_id: str) -> None:
        """Sets the result if nothing is to be published, else the record, and the order for when it is there.

        `alike` is what the events of all orders of the call have in common.
        """
        request = intake.request
        if known is not None and known.fingerprint != intake.fingerprint:
            intake.result = errors.request_id_reused()
            return
        if known is not None:
            order = _purged(request, known.order) if known.is_purged else known.order
            intake.result = _as_if(order) if request.validate_only else order
            return
        event = OrderEvent()
        event.CopyFrom(alike)
        if request.validate_only:
            fill(event.order, request, order_id="")
            intake.result = _as_if(event.order)
            return
        order_id = order_id_for(alike.metadata.caller, request.request_id, intake.fingerprint)
        fill(event.order, request, order_id=order_id)
        intake.correlation_id = correlation_id or order_id
        event.event_id = created_event_id(order_id)
        event.metadata.correlation_id = intake.correlation_id
        details = event.order_created
        details.request_id = request.request_id
        details.request_fingerprint = intake.fingerprint
        intake.record = envelope.encode(event)
        intake.order = event.order

    async def _publish(self, intakes: Sequence[_Intake], deadline: float) -> None:
        """Publishes the records together, and sets the results."""
        records = [each.record for each in intakes if each.record is not None]
        if not records:
            return
        if not self._is_kafka_reachable():
            for intake in intakes:
                intake.result = errors.kafka_unavailable()
            return
        try:
            left = deadline - asyncio.get_running_loop().time()
            failures = await self._publisher.publish_all(records, timeout=left)
        except asyncio.CancelledError:
            # Cancelled by us and not by the caller: they were handed over, or may have been.
            if calls.is_cancelled():
                raise
            raise errors.outcome_unknown() from None
        for intake, failure in zip(intakes, failures, strict=True):
            intake.result = intake.order if failure is None else error_of(failure)
        if accepted := failures.count(None):
            fault_points.reached("W1")
            _log_accepted(intakes, accepted)

    async def _find(self, wanted: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], KnownRequest]:
        if not wanted:
            return await self._known.look_all(wanted)
        # The query is that of many calls; to each of them it is the time that it waited and took.
        with self._known_requests.span():
            return await self._known.look_all(wanted)

    async def _look_up(self, requests: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], KnownRequest]:
        """Returns those that were used before, none if that cannot be told soon: it never holds an order up."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._no_lookup_before:
            return {}
        try:
            async with asyncio.timeout(self._settings.request_lookup_timeout):
                return await self._known_requests.find(requests)
        except (DependencyDown, TimeoutError, asyncio.CancelledError):
            if calls.is_cancelled():
                raise
            self._no_lookup_before = loop.time() + _LOOKUP_BREAK_SECONDS
            log.warning("server.request_lookup.skipped")
            return {}


def _violations_of_batch(requests: Sequence[CreateOrderRequest]) -> list[Violation]:
    """Returns what is wrong with the batch as such; what is wrong with an order is that order's result."""
    if not 1 <= len(requests) <= MAX_BATCH:
        return [Violation("requests", f"must have 1 to {MAX_BATCH} orders")]
    violations = []
    seen: set[str] = set()
    validate_only = requests[0].validate_only
    for index, request in enumerate(requests):
        if (request_id := request.request_id) and request_id in seen:
            violations.append(Violation(f"requests[{index}].request_id", "stands in an earlier request of the batch"))
        seen.add(request_id)
        if request.validate_only != validate_only:
            violations.append(Violation(f"requests[{index}].validate_only", "must be that of the first request"))
    return violations


def _check(intake: _Intake) -> None:
    """Sets the fingerprint, or the result if the order is not valid."""
    if intake.request.ByteSize() > MAX_ORDER_BYTES:
        violations = [Violation("", f"must have at most {MAX_ORDER_BYTES} bytes for an order")]
    else:
        violations = violations_of(intake.request)
    if violations:
        intake.result = errors.invalid(violations, outcome="NOT_ACCEPTED")
    else:
        intake.fingerprint = request_fingerprint(intake.request)


def error_of(failure: NotHandedOver | OutcomeUnknown) -> CallError:
    """Returns what a caller is told whose record Kafka has not acknowledged."""
    if isinstance(failure, OutcomeUnknown):
        return errors.outcome_unknown()
    if isinstance(failure, TooManyWaiting):
        error = errors.too_many_unacknowledged()
        metrics.SHED.labels(error.reason).inc()
        return error
    return errors.kafka_unavailable()


def _log_accepted(intakes: Sequence[_Intake], accepted: int) -> None:
    if len(intakes) > 1:
        log.info("server.batch.accepted", accepted=accepted, of=len(intakes))
        return
    [intake] = intakes
    assert intake.order is not None
    log.info("server.order.accepted", order_id=intake.order.order_id, correlation_id=intake.correlation_id)


def _tell(response: CreateOrderResponse, order: Order) -> None:
    """Answers with the order, and with a token if there is one."""
    response.order.CopyFrom(order)
    if order.order_id:
        response.consistency_token = ConsistencyToken(order.order_id, order.revision).encode()


def _purged(request: CreateOrderRequest, left: Order) -> Order:
    """Returns an order that was purged: what the same request says of it again, and what is left of it."""
    order = new_order(request, order_id=left.order_id, now=_LONG_AGO, time_to_pay=datetime.timedelta())
    for unknown in ("create_time", "update_time", "expire_time", "payment_status", "status", "revision", "etag"):
        order.ClearField(unknown)
    order.MergeFrom(left)
    return order


def _as_if(order: Order) -> Order:
    """Returns the answer to a request that is only checked: what tells an order from others is left out."""
    answer = Order()
    answer.CopyFrom(order)
    answer.ClearField("order_id")
    answer.ClearField("etag")
    return answer
