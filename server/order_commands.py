"""CancelOrder and its like: hands a command over and waits for what it comes to. The server never writes the row."""

import asyncio
import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from domain import commands, events
from domain.commands import CommandRefused
from domain.failures import DependencyDown
from domain.identifiers import command_event_id, command_fingerprint
from messaging import envelope
from messaging.publisher import OutcomeUnknown, Publisher
from orderflow.events.v1.order_event_pb2 import CommandTerms, OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import Order
from orderflow.orders.v1.order_service_pb2 import (
    CancelOrderRequest,
    CancelOrderResponse,
    CompleteOrderRequest,
    CompleteOrderResponse,
    RefundOrderRequest,
    RefundOrderResponse,
    ShipOrderRequest,
    ShipOrderResponse,
)
from server import calls, errors, identity, scopes
from server.gathering import Gathering
from server.order_intake import error_of
from server.order_queries import check_order_id
from server.tokens import ConsistencyToken
from settings import ServerSettings
from storage.command_answers import CommandAnswer, CommandAnswers
from telemetry import logs

if TYPE_CHECKING:
    from server.calls import Context

log = logs.get()

_FIRST_LOOK_SECONDS: Final = 0.01
_SLOWEST_LOOK_SECONDS: Final = 0.1
_ROW_SECONDS: Final = 2.0
"""How long an order that was just placed may take until it has a row, before it counts as not there."""

Request = CancelOrderRequest | ShipOrderRequest | CompleteOrderRequest | RefundOrderRequest


class OrderCommands:
    """CancelOrder, ShipOrder, CompleteOrder and RefundOrder. Methods raise CallError."""

    def __init__(
        self,
        *,
        publisher: Publisher,
        is_kafka_reachable: Callable[[], bool],
        answers: CommandAnswers,
        settings: ServerSettings,
        now: Callable[[], datetime.datetime],
    ) -> None:
        """Collaborators are given; nothing is connected here."""
        self._publisher = publisher
        self._is_kafka_reachable = is_kafka_reachable
        self._owner = answers.owner
        self._answers: Gathering[tuple[str, str], CommandAnswer] = Gathering(answers.find)
        self._settings = settings
        self._now = now

    async def cancel(self, request: CancelOrderRequest, context: "Context") -> CancelOrderResponse:
        """Calls an order off."""
        command = self._command(OrderEventType.ORDER_EVENT_TYPE_ORDER_CANCEL_REQUESTED, request, context)
        command.order_cancel_requested.reason = request.reason or commands.DEFAULT_CANCEL_REASON
        order = await self._give(command, context)
        return CancelOrderResponse(order=order, consistency_token=_token(order))

    async def ship(self, request: ShipOrderRequest, context: "Context") -> ShipOrderResponse:
        """Records that an order was handed to the carrier."""
        command = self._command(OrderEventType.ORDER_EVENT_TYPE_ORDER_SHIP_REQUESTED, request, context)
        command.order_ship_requested.carrier = request.carrier
        command.order_ship_requested.tracking_code = request.tracking_code
        order = await self._give(command, context)
        return ShipOrderResponse(order=order, consistency_token=_token(order))

    async def complete(self, request: CompleteOrderRequest, context: "Context") -> CompleteOrderResponse:
        """Records that an order was delivered."""
        command = self._command(OrderEventType.ORDER_EVENT_TYPE_ORDER_COMPLETE_REQUESTED, request, context)
        command.order_complete_requested.SetInParent()
        order = await self._give(command, context)
        return CompleteOrderResponse(order=order, consistency_token=_token(order))

    async def refund(self, request: RefundOrderRequest, context: "Context") -> RefundOrderResponse:
        """Pays back a part of what was charged, or all that is left."""
        command = self._command(OrderEventType.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED, request, context)
        command.order_refund_requested.reason = request.reason
        if request.HasField("amount"):
            command.order_refund_requested.amount.currency_code = request.amount.currency_code
            command.order_refund_requested.amount.amount_minor = request.amount.amount_minor
        order = await self._give(command, context)
        return RefundOrderResponse(order=order, consistency_token=_token(order))

    def _command(self, command_type: OrderEventType, request: Request, context: "Context") -> OrderEvent:
        """Returns the command without its details.

        Raises:
            CallError: the order_id is none.
        """
        check_order_id(request.order_id, outcome="NOT_ACCEPTED")
        caller = calls.caller(context)
        return events.command(
            command_type,
            request.order_id,
            event_id=command_event_id(caller, command_type, request.order_id, request.request_id),
            caller=caller,
            terms=CommandTerms(
                scopes=sorted(_scopes(command_type)),
                request_id=request.request_id,
                request_fingerprint=command_fingerprint(request),
                etag=request.etag,
            ),
            correlation_id=calls.correlation_id(context, request.order_id),
            source="server",
            now=self._now(),
        )

    async def _give(self, command: OrderEvent, context: "Context") -> Order:
        """Returns the order after the command.

        Raises:
            CallError: it is not valid, was refused, or its outcome is not known in time.
        """
        deadline = asyncio.get_running_loop().time() + calls.time_left(context, self._settings)
        if violations := commands.violations_of_command(command):
            raise errors.invalid(violations, outcome="NOT_ACCEPTED")
        answer = await self._known(command, context, deadline)
        if answer is None:
            await self._publish(command, deadline)
            answer = await self._wait(command, deadline)
        if answer.fingerprint != command.command.request_fingerprint:
            raise errors.command_request_id_reused()
        refusal = answer.result if isinstance(answer.result, CommandRefused) else None
        log.info(
            "server.command.decided",
            command=envelope.type_name(command.type),
            order_id=command.order.order_id,
            by=command.metadata.caller,
            refusal=refusal.reason if refusal else "",
        )
        if isinstance(answer.result, CommandRefused):
            raise errors.command_refused(answer.result)
        return answer.result

    async def _known(self, command: OrderEvent, context: "Context", deadline: float) -> CommandAnswer | None:
        """Returns what a call with the same request_id came to before, None if there was none.

        Raises:
            CallError: the caller has no such order, or that cannot be told now. Nothing was handed over.
        """
        order_id = command.order.order_id
        try:
            async with asyncio.timeout_at(deadline):
                is_callers = await self._is_callers(order_id, context)
            if not is_callers:
                await self._wait_for_row(order_id, context, deadline)
            async with asyncio.timeout_at(deadline):
                return await self._answers.look(_key(command)) if command.command.request_id else None
        except (TimeoutError, DependencyDown):
            raise errors.store_unavailable(outcome="NOT_ACCEPTED") from None

    async def _wait_for_row(self, order_id: str, context: "Context", deadline: float) -> None:
        """Waits for the caller's order to have a row. Another's is the same as none, in time, too.

        A call with little time is told the same as one with much: PostgreSQL has answered once, so it is not away.
        """
        pause = _FIRST_LOOK_SECONDS
        try:
            async with asyncio.timeout_at(min(asyncio.get_running_loop().time() + _ROW_SECONDS, deadline)):
                while True:
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _SLOWEST_LOOK_SECONDS)
                    if await self._is_callers(order_id, context):
                        return
        except TimeoutError:
            raise errors.order_not_found(outcome="NOT_ACCEPTED") from None

    async def _is_callers(self, order_id: str, context: "Context") -> bool:
        owner = await self._owner(order_id)
        return owner is not None and calls.may_see(context, owner)

    async def _publish(self, command: OrderEvent, deadline: float) -> None:
        if not self._is_kafka_reachable():
            raise errors.kafka_unavailable()
        try:
            [failure] = await self._publisher.publish_all(
                [envelope.encode(command)], timeout=deadline - asyncio.get_running_loop().time()
            )
        except asyncio.CancelledError:
            # Cancelled by us and not by the caller: it was handed over, or may have been.
            if calls.is_cancelled():
                raise
            raise errors.command_outcome_unknown() from None
        if isinstance(failure, OutcomeUnknown):
            raise errors.command_outcome_unknown()
        if failure is not None:
            raise error_of(failure)

    async def _wait(self, command: OrderEvent, deadline: float) -> CommandAnswer:
        """Returns what the command came to. With PostgreSQL away it goes on looking: the command is on its way.

        Raises:
            CallError: that is not known in time.
        """
        pause = _FIRST_LOOK_SECONDS
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    try:
                        if (answer := await self._answers.look(_key(command))) is not None:
                            return answer
                    except DependencyDown:
                        pause = _SLOWEST_LOOK_SECONDS
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _SLOWEST_LOOK_SECONDS)
        except TimeoutError:
            raise errors.command_outcome_unknown() from None


def _scopes(command_type: OrderEventType) -> frozenset[str]:
    """Returns the caller's scopes, and the one that opened the method where nobody has to prove who they are.

    The worker that decides looks at them, and cannot know how a call was let in.
    """
    caller = identity.current()
    if caller is identity.LOCAL and command_type in commands.FOR_OPERATORS:
        return caller.scopes | {scopes.OPERATE}
    return caller.scopes


def _key(command: OrderEvent) -> tuple[str, str]:
    return command.event_id, command.order.order_id


def _token(order: Order) -> str:
    return ConsistencyToken(order.order_id, order.revision).encode()
