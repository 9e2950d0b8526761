"""What can go wrong, by meaning.

OrderflowError
  InvalidOrder            the request breaks rules: see `violations`
  OrderNotFound           no such order, or not yours
  PreconditionFailed      the order's state, or an earlier call, forbids it
    RequestIdReused       the request_id belongs to a call with other content
    IllegalTransition     the order's status does not allow it: see `order_status`
    EtagMismatch          the order has changed since the etag was read
  Unauthenticated         who is calling?
  PermissionDenied        not you
  Overloaded              too much at the moment: wait `retry_delay`
  Unavailable             no server, or what the server needs is away
  DeadlineExceeded        no answer in time
  UnexpectedStatus        any other status
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, NamedTuple, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

DOMAIN = "orderflow"


class Outcome(StrEnum):
    """What became of an order whose placing failed, or of what a failed call asked of one."""

    NOT_ACCEPTED = "NOT_ACCEPTED"
    """The server handed nothing over, or what was asked for was refused: there is no order, and none has changed."""
    UNKNOWN = "UNKNOWN"
    """There may be an order, or it may have changed. The same call with the same request_id tells, and does it once."""


class FieldViolation(NamedTuple):
    """A rule that the request breaks."""

    field: str
    description: str


class OrderflowError(Exception):
    """Base of all errors that a call ends in.

    Attributes:
        safe_to_repeat: The same call, with the same request_id, may succeed and never does its work twice. False means
            that the answer stands until something else changes.
        message: What the server, or gRPC, says.
        code: The gRPC status.
        reason: The server's own UPPER_SNAKE reason; empty when the status was not made by orderflow.
        metadata: What the server adds to the reason.
        violations: The broken rules of an `InvalidOrder`.
        request_id: That of the failed call; None for reads.
        request_ids: Those of a batch that failed as a whole, in its order.
        outcome: What became of the order, or of each order of the batch; None for reads.
        retry_delay: Seconds to wait before a repeat, if the server says so.
    """

    safe_to_repeat: bool = True

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: tuple[FieldViolation, ...] = (),
        request_id: str | None = None,
        request_ids: tuple[str, ...] = (),
        outcome: Outcome | None = None,
        retry_delay: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = violations
        self.request_id = request_id
        self.request_ids = request_ids
        self.outcome = outcome
        self.retry_delay = retry_delay

    @property
    def order_status(self) -> str:
        """Where the order stands that refused what was asked of it, for example SHIPPED; empty if not told."""
        return self.metadata.get("order_status", "")

    def __str__(self) -> str:
        parts = [f"{self.reason or self.code.name}: {self.message}"]
        parts += [f"{field}: {description}" for field, description in self.violations]
        if self.order_status:
            parts.append(f"order status {self.order_status}")
        if self.request_id is not None:
            parts.append(f"request_id {self.request_id}")
        if self.outcome is not None:
            parts.append(f"outcome {self.outcome}")
        if self.retry_delay is not None:
            parts.append(f"wait {self.retry_delay:g} s")
        parts.append(f"safe to repeat: {'yes' if self.safe_to_repeat else 'no'}")
        return "; ".join(parts)


class InvalidOrder(OrderflowError):
    """The request breaks rules, all listed in `violations`."""

    safe_to_repeat = False


class OrderNotFound(OrderflowError):
    """There is no such order. One just placed is found by its consistency_token."""

    safe_to_repeat = False


class PreconditionFailed(OrderflowError):
    """The order's state, or an earlier call, forbids it. Of a refund `reason` says why."""

    safe_to_repeat = False


class RequestIdReused(PreconditionFailed):
    """The request_id belongs to an earlier call with other content. That one stands, this one did nothing."""


class IllegalTransition(PreconditionFailed):
    """The order's status does not allow it: `order_status`. The order is as it was."""


class EtagMismatch(PreconditionFailed):
    """The order has changed since the etag was read, and is as it was: read it again and decide anew."""


class Unauthenticated(OrderflowError):
    """The server does not know who calls."""

    safe_to_repeat = False


class PermissionDenied(OrderflowError):
    """The caller may not do this."""

    safe_to_repeat = False


class Overloaded(OrderflowError):
    """More than the server takes at the moment: wait `retry_delay`. Without one it is more than it ever takes."""

    def __init__(self, message: str, **told: Any) -> None:
        super().__init__(message, **told)
        self.safe_to_repeat = self.retry_delay is not None


class Unavailable(OrderflowError):
    """No server could be reached, or what it needs is away."""


class DeadlineExceeded(OrderflowError):
    """No answer in time."""


class UnexpectedStatus(OrderflowError):
    """Any other status."""


_BY_CODE: dict[grpc.StatusCode, type[OrderflowError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidOrder,
    grpc.StatusCode.NOT_FOUND: OrderNotFound,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionFailed,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}
_BY_REASON: dict[tuple[grpc.StatusCode, str], type[OrderflowError]] = {
    (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_ID_REUSED"): RequestIdReused,
    (grpc.StatusCode.FAILED_PRECONDITION, "ILLEGAL_TRANSITION"): IllegalTransition,
    (grpc.StatusCode.ABORTED, "ETAG_MISMATCH"): EtagMismatch,
}
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


@contextmanager
def errors_by_meaning(*request_ids: str) -> Iterator[None]:
    """Maps what gRPC raises, in asyncio or not; `request_ids` are those of what the call asks for, none for reads."""
    try:
        yield
    except grpc.RpcError as error:
        call = cast(grpc.Call, error)  # both flavours raise errors that are calls as well
        raise _translate(call.code(), call.details() or "", _status(call), request_ids) from error
    except asyncio.CancelledError as error:
        # grpc.aio says the same when the client is closed during the call: nobody cancelled the task then.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        text = "the client was closed during the call"
        raise _translate(grpc.StatusCode.CANCELLED, text, None, request_ids) from error


@contextmanager
def after(refused: OrderflowError) -> Iterator[None]:
    """Around the repeat of a `refused` call: where that one may have been accepted, no error says otherwise."""
    try:
        yield
    except OrderflowError as error:
        if refused.outcome is Outcome.UNKNOWN and error.outcome is Outcome.NOT_ACCEPTED:
            error.outcome = Outcome.UNKNOWN
        raise


def error_of_status(status: Status, *request_ids: str) -> OrderflowError:
    """Returns the error of one order of a batch."""
    return _translate(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, status, request_ids)


def error_of_one(failed: OrderflowError, request_id: str) -> OrderflowError:
    """Returns what the error of a whole batch means for one of its orders."""
    one = type(failed)(
        failed.message,
        code=failed.code,
        reason=failed.reason,
        metadata=failed.metadata,
        violations=failed.violations,
        request_id=request_id,
        outcome=failed.outcome,
        retry_delay=failed.retry_delay,
    )
    one.__cause__ = failed
    return one


def _translate(
    code: grpc.StatusCode, message: str, status: Status | None, request_ids: tuple[str, ...]
) -> OrderflowError:
    info, bad_request, retry_info = _details(status)
    kind = _BY_REASON.get((code, info.reason)) or _BY_CODE.get(code, UnexpectedStatus)
    return kind(
        message,
        code=code,
        reason=info.reason,
        metadata=info.metadata,
        violations=tuple(FieldViolation(v.field, v.description) for v in bad_request.field_violations),
        request_id=request_ids[0] if len(request_ids) == 1 else None,
        request_ids=request_ids,
        outcome=_outcome(info.metadata.get("outcome")) if request_ids else None,
        retry_delay=retry_info.retry_delay.ToTimedelta().total_seconds()
        if retry_info.HasField("retry_delay")
        else None,
    )


def _outcome(told: str | None) -> Outcome:
    """Only the server can say that nothing was accepted: any other failure may hide an answer that was lost."""
    return Outcome.NOT_ACCEPTED if told == Outcome.NOT_ACCEPTED else Outcome.UNKNOWN


def _status(call: grpc.Call) -> Status | None:
    try:
        return cast("Status | None", rpc_status.from_call(call))
    except (DecodeError, ValueError):  # broken, or not made for this status
        return None


def _details(status: Status | None) -> tuple[ErrorInfo, BadRequest, RetryInfo]:
    """Returns the google.rpc details, empty where absent. Nothing a proxy may send raises."""
    info, bad_request, retry_info = ErrorInfo(), BadRequest(), RetryInfo()
    try:
        for detail in status.details if status else ():
            for message in (info, bad_request, retry_info):
                detail.Unpack(message)  # does nothing for other types
    except DecodeError:
        return ErrorInfo(), BadRequest(), RetryInfo()
    return (info if info.domain == DOMAIN else ErrorInfo()), bad_request, retry_info
