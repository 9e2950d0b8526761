"""The server as one operator may use it: every call carries that operator's own credentials."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from orderflow.operations.v1 import dead_letter_service_pb2 as pb
from orderflow.operations.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub
from orderflow_client import OrderFilter, OrderflowError, OrdersClient

if TYPE_CHECKING:
    import datetime

    from orderflow.operations.v1.dead_letter_service_pb2_grpc import DeadLetterServiceAsyncStub
    from orderflow.orders.v1.order_history_pb2 import OrderHistoryEntry
    from orderflow.orders.v1.order_pb2 import Order, OrderStatus
    from orderflow.orders.v1.order_service_pb2 import FoundOrder

_CALL_SECONDS: Final = 10.0
_PLAN_SECONDS: Final = 60.0
_HISTORY_LIMIT: Final = 1_000


class ApiError(Exception):
    """A call that failed.

    Attributes:
        code: The gRPC status.
        reason: The server's own UPPER_SNAKE reason; empty if the status was not made by orderflow.
        message: What the server, or gRPC, says.
    """

    def __init__(self, code: grpc.StatusCode, reason: str, message: str) -> None:
        super().__init__(f"{reason or code.name}: {message}")
        self.code = code
        self.reason = reason
        self.message = message


@dataclasses.dataclass(frozen=True)
class OrderPage:
    """Orders, newest first."""

    orders: Sequence["Order"]
    next_token: str


class Server:
    """The connection, which all operators share. Make it inside the running loop, and close it."""

    def __init__(
        self, target: str, *, channel_credentials: grpc.ChannelCredentials | None = None, insecure: bool = False
    ) -> None:
        """Connects when it is first called.

        Raises:
            ValueError: orders would go to another machine in the clear.
        """
        self._orders = OrdersClient(target, channel_credentials=channel_credentials, insecure=insecure)
        self._letters = DeadLetterServiceStub(self._orders.channel)

    def as_operator(self, token: Callable[[], str | None]) -> "Api":
        """Returns the server as the operator with that bearer token may use it. It is asked for at every call."""
        return Api(self._orders, self._letters, token)

    async def close(self) -> None:
        """Closes the connection. Calls under way are cancelled."""
        await self._orders.close()


class Api:
    """What the console asks of the server. Every method raises ApiError."""

    def __init__(
        self, orders: OrdersClient, letters: "DeadLetterServiceAsyncStub", token: Callable[[], str | None]
    ) -> None:
        """See `Server.as_operator`."""
        self._orders = orders
        self._letters = letters
        self._token = token

    # -- orders ------------------------------------------------------------------------------------------------------

    async def order(self, order_id: str) -> "Order":
        """Returns an order."""
        with _errors():
            response = await self._orders.get_order(order_id, metadata=self._metadata(), timeout=_CALL_SECONDS)
            return response.order

    async def find(self, identifier: str) -> list["FoundOrder"]:
        """Returns the orders that an identifier has to do with, newest first."""
        with _errors():
            return await self._orders.find_orders(identifier, metadata=self._metadata(), timeout=_CALL_SECONDS)

    async def history(self, order_id: str) -> list["OrderHistoryEntry"]:
        """Returns what happened to an order, oldest first: a thousand entries at most."""
        with _errors():
            page = await self._orders.list_order_events_page(
                order_id, page_size=_HISTORY_LIMIT, metadata=self._metadata(), timeout=_CALL_SECONDS
            )
            return list(page.entries)

    async def orders(
        self,
        *,
        statuses: Sequence["OrderStatus | str"] = (),
        user_id: str = "",
        created_from: "datetime.datetime | None" = None,
        created_before: "datetime.datetime | None" = None,
        size: int = 50,
        token: str = "",
    ) -> OrderPage:
        """Returns a page of the orders that match."""
        which: OrderFilter = {"statuses": statuses, "user_id": user_id}
        if created_from is not None:
            which["created_from"] = created_from
        if created_before is not None:
            which["created_before"] = created_before
        with _errors():
            page = await self._orders.list_orders_page(
                **which,
                page_size=size,
                page_token=token,
                metadata=self._metadata(),
                timeout=_CALL_SECONDS,
            )
            return OrderPage(page.orders, page.next_page_token)

    # -- dead letters ------------------------------------------------------------------------------------------------

    async def dead_letter_reasons(self) -> Sequence[pb.DeadLetterSummary]:
        """Counts unresolved dead letters by group and error class, most first."""
        with _errors():
            response = await self._letters.SummarizeDeadLetters(
                pb.SummarizeDeadLettersRequest(), metadata=self._metadata(), timeout=_CALL_SECONDS
            )
            return response.summaries

    async def dead_letters(
        self, which: pb.DeadLetterFilter, *, include_resolved: bool = False, size: int = 50, token: str = ""
    ) -> pb.ListDeadLettersResponse:
        """Returns a page of dead letters, newest first."""
        request = pb.ListDeadLettersRequest(
            filter=which, include_resolved=include_resolved, page_size=size, page_token=token
        )
        with _errors():
            return await self._letters.ListDeadLetters(request, metadata=self._metadata(), timeout=_CALL_SECONDS)

    async def dead_letter(self, dead_letter_id: str) -> pb.DeadLetterEntry:
        """Returns one dead letter."""
        request = pb.GetDeadLetterRequest(dead_letter_id=dead_letter_id)
        with _errors():
            response = await self._letters.GetDeadLetter(request, metadata=self._metadata(), timeout=_CALL_SECONDS)
            return response.dead_letter

    async def replay(self, dead_letter_id: str, reason: str) -> None:
        """Hands one dead letter to its group again."""
        request = pb.ReplayDeadLetterRequest(dead_letter_id=dead_letter_id, reason=reason)
        with _errors():
            await self._letters.ReplayDeadLetter(request, metadata=self._metadata(), timeout=2 * _CALL_SECONDS)

    async def discard(self, dead_letter_id: str, reason: str) -> None:
        """Closes one dead letter without another try."""
        request = pb.DiscardDeadLetterRequest(dead_letter_id=dead_letter_id, reason=reason)
        with _errors():
            await self._letters.DiscardDeadLetter(request, metadata=self._metadata(), timeout=_CALL_SECONDS)

    # -- replay plans ------------------------------------------------------------------------------------------------

    async def create_plan(self, which: pb.DeadLetterFilter) -> pb.ReplayPlan:
        """Freezes the list of unresolved dead letters that match now."""
        request = pb.CreateReplayPlanRequest(filter=which)
        with _errors():
            response = await self._letters.CreateReplayPlan(request, metadata=self._metadata(), timeout=_PLAN_SECONDS)
            return response.plan

    async def plan(self, plan_id: str) -> pb.ReplayPlan:
        """Returns a plan and how far it is."""
        request = pb.GetReplayPlanRequest(plan_id=plan_id)
        with _errors():
            response = await self._letters.GetReplayPlan(request, metadata=self._metadata(), timeout=_CALL_SECONDS)
            return response.plan

    async def apply_plan(self, plan_id: str, *, reason: str, rate: int) -> AsyncIterator[pb.ReplayPlan]:
        """Replays a plan at a rate, records per second, and yields how far it is."""
        request = pb.ApplyReplayPlanRequest(plan_id=plan_id, reason=reason, rate=rate)
        call = self._letters.ApplyReplayPlan(request, metadata=self._metadata())
        try:
            with _errors():
                while (response := await call.read()) is not grpc.aio.EOF:
                    yield cast(pb.ApplyReplayPlanResponse, response).plan
        finally:
            call.cancel()

    async def abort_plan(self, plan_id: str) -> None:
        """Ends a plan: what was not replayed yet stays as it is."""
        request = pb.AbortReplayPlanRequest(plan_id=plan_id)
        with _errors():
            await self._letters.AbortReplayPlan(request, metadata=self._metadata(), timeout=_CALL_SECONDS)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        token = self._token()
        return (("authorization", f"Bearer {token}"),) if token else ()


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except OrderflowError as error:
        broken = "".join(f"; {field}: {description}" for field, description in error.violations)
        raise ApiError(error.code, error.reason, error.message + broken) from error
    except grpc.aio.AioRpcError as error:
        raise ApiError(error.code(), _reason(error), error.details() or "") from error


def _reason(error: grpc.aio.AioRpcError) -> str:
    info = ErrorInfo()
    try:
        status = rpc_status.from_call(error)
        for detail in status.details if status else ():
            detail.Unpack(info)  # does nothing for other types
    except (DecodeError, ValueError):  # broken, or not made for this status
        return ""
    return str(info.reason)
