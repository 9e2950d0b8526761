"""Errors as callers see them: a code to act on, an ErrorInfo, and what fits beside it (AIP-193).

Every text here is fixed or made by us; nothing of the input and nothing of a dependency's error is echoed.
"""

import dataclasses
from collections.abc import Sequence
from typing import Final, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from domain.commands import CommandRefused
from domain.validation import Violation
from orderflow.orders.v1.order_pb2 import OrderStatus

DOMAIN: Final = "orderflow"
_MOST_VIOLATIONS: Final = 20  # trailing metadata over 8 KiB fails at random


@dataclasses.dataclass(eq=False)  # not frozen: contextlib sets the traceback of what passes through it
class CallError(Exception):
    """A call that ends with an error. `outcome` is NOT_ACCEPTED or UNKNOWN on writes, empty on reads."""

    code: grpc.StatusCode
    reason: str
    message: str
    outcome: str = ""
    violations: Sequence[Violation] = ()
    retry_seconds: float | None = None
    required_scope: str = ""
    order_status: str = ""
    """Where an order stands that refused a command, as the API spells it."""
    details: Sequence[Message] = ()
    """What fits beside the ErrorInfo, such as a QuotaFailure."""

    def as_repeat(self) -> "CallError":
        """Returns the error as a repeat of a call has to tell it: an earlier try may have been accepted."""
        return dataclasses.replace(self, outcome="UNKNOWN") if self.outcome == "NOT_ACCEPTED" else self

    def status(self) -> status_pb2.Status:
        """Returns the error as a google.rpc.Status."""
        info = error_details_pb2.ErrorInfo(domain=DOMAIN, reason=self.reason)
        if self.outcome:
            info.metadata["outcome"] = self.outcome
        if self.required_scope:
            info.metadata["required_scope"] = self.required_scope
        if self.order_status:
            info.metadata["order_status"] = self.order_status
        details: list[Message] = [info, *self.details]
        if self.violations:
            details.append(
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(field=each.field, description=each.description)
                        for each in self.violations[:_MOST_VIOLATIONS]
                    ]
                )
            )
        if self.retry_seconds is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(int(self.retry_seconds * 1000))
            details.append(retry)
        packed = []
        for detail in details:
            packed.append(any_pb2.Any())
            packed[-1].Pack(detail)
        return status_pb2.Status(code=self.code.value[0], message=self.message, details=packed)


async def abort(context: "grpc.aio.ServicerContext[object, object]", error: CallError) -> NoReturn:
    """Ends the call with the error."""
    trailers: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", error.status().SerializeToString())]
    if error.retry_seconds is not None:
        # What a channel's own retries obey; they ignore RetryInfo (gRFC A6). Where the deadline comes first it is told
        # not to: it would wait for the deadline and lose our answer.
        remaining = context.time_remaining()
        fits = remaining is None or remaining > error.retry_seconds
        trailers.append(("grpc-retry-pushback-ms", str(int(error.retry_seconds * 1000) if fits else -1)))
    await context.abort(error.code, error.message, tuple(trailers))


def invalid(violations: Sequence[Violation], *, outcome: str = "") -> CallError:
    """Returns INVALID_ARGUMENT with all violations."""
    first = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return CallError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELDS",
        f"{first.field or 'the request'} {first.description}{more}",
        outcome=outcome,
        violations=violations,
    )


def undecodable(*, outcome: str = "") -> CallError:
    """Returns INVALID_ARGUMENT: the request is no message of its type."""
    return CallError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "UNDECODABLE",
        "the request is no protobuf message of the method's request type, or a text in it is not UTF-8",
        outcome=outcome,
    )


def unauthenticated(*, outcome: str = "") -> CallError:
    """Returns UNAUTHENTICATED: one and the same answer, whatever is wrong with the credential."""
    return CallError(
        grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "the call needs a valid credential", outcome=outcome
    )


def insufficient_scope(required: str, *, outcome: str = "") -> CallError:
    """Returns PERMISSION_DENIED: the caller is known, and its scopes do not include the method's."""
    return CallError(
        grpc.StatusCode.PERMISSION_DENIED,
        "INSUFFICIENT_SCOPE",
        f"the method needs the scope {required}",
        outcome=outcome,
        required_scope=required,
    )


def kafka_unavailable() -> CallError:
    """Returns UNAVAILABLE: nothing was handed to Kafka."""
    return CallError(
        grpc.StatusCode.UNAVAILABLE,
        "KAFKA_UNAVAILABLE",
        "nothing can be accepted right now, and nothing was",
        outcome="NOT_ACCEPTED",
        retry_seconds=1.0,
    )


def outcome_unknown() -> CallError:
    """Returns DEADLINE_EXCEEDED: the order was handed to Kafka and not acknowledged in time."""
    return _outcome_unknown(
        "the order was not acknowledged in time; repeat the call with the same request_id to learn what became of it"
    )


def replay_outcome_unknown() -> CallError:
    """Returns DEADLINE_EXCEEDED: the replay was handed to Kafka and not acknowledged in time."""
    return _outcome_unknown("the replay was not acknowledged in time; replay it again: it is handled once")


def command_outcome_unknown() -> CallError:
    """Returns DEADLINE_EXCEEDED: the command was handed over, and what it comes to is not known in time."""
    return _outcome_unknown(
        "it was not decided in time; repeat the call with the same request_id to learn what became of it"
    )


def _outcome_unknown(message: str) -> CallError:
    return CallError(grpc.StatusCode.DEADLINE_EXCEEDED, "OUTCOME_UNKNOWN", message, outcome="UNKNOWN")


def request_id_reused() -> CallError:
    """Returns FAILED_PRECONDITION: another payload was sent under the request_id before."""
    return failed_precondition(
        "REQUEST_ID_REUSED",
        "this request_id was used for another order; use a new one for a new order",
        ("REQUEST_ID", "request_id", "belongs to an order with other content"),
    )


def command_request_id_reused() -> CallError:
    """Returns FAILED_PRECONDITION: the same was asked of the order under the request_id before, in other words."""
    return failed_precondition(
        "REQUEST_ID_REUSED",
        "this request_id was used before with other content; use a new one",
        ("REQUEST_ID", "request_id", "belongs to a call with other content"),
    )


def command_refused(refusal: CommandRefused) -> CallError:
    """Returns what a caller is told whose command was refused: the order is as it was."""
    if refusal.reason == "ORDER_NOT_FOUND":
        return order_not_found(outcome="NOT_ACCEPTED")
    status = OrderStatus.Name(refusal.status).removeprefix("ORDER_STATUS_") if refusal.status else ""
    if refusal.reason == "ETAG_MISMATCH":
        return CallError(
            grpc.StatusCode.ABORTED,
            "ETAG_MISMATCH",
            "the order has changed since the etag was read; read it again and decide anew",
            outcome="NOT_ACCEPTED",
            order_status=status,
        )
    text = _REFUSALS.get(refusal.reason, "the order does not allow it")
    error = failed_precondition(refusal.reason, text, ("ORDER", "order", text))
    return dataclasses.replace(error, order_status=status)


_REFUSALS: Final = {
    "ILLEGAL_TRANSITION": "the order's status does not allow it",
    "REFUND_TOO_LARGE": "not so much is left of what was charged",
    "CURRENCY_MISMATCH": "the order is in another currency",
    "REFUND_REFUSED": "the payment gateway refuses the refund",
}


def failed_precondition(reason: str, message: str, violation: tuple[str, str, str] | None = None) -> CallError:
    """Returns FAILED_PRECONDITION: nothing was changed. `violation` is the type, subject and description of one."""
    details: list[Message] = []
    if violation is not None:
        kind, subject, description = violation
        failure = error_details_pb2.PreconditionFailure()
        failure.violations.add(type=kind, subject=subject, description=description)
        details.append(failure)
    return CallError(
        grpc.StatusCode.FAILED_PRECONDITION, reason, message, outcome="NOT_ACCEPTED", details=tuple(details)
    )


def rate_limited(*, outcome: str, limit: str, retry_seconds: float | None) -> CallError:
    """Returns RESOURCE_EXHAUSTED: the caller has used up its rate. Without `retry_seconds` no wait would help."""
    return _exhausted(
        "RATE_LIMITED",
        "too many calls of yours; a batch counts as many as it has orders",
        limit=f"rate: {limit} on each server",
        outcome=outcome,
        retry_seconds=retry_seconds,
    )


def too_many_calls(*, outcome: str, limit: int) -> CallError:
    """Returns RESOURCE_EXHAUSTED: the server has as many reads, or as many other calls, under way as it takes."""
    return _exhausted(
        "TOO_MANY_CALLS",
        "the server has too many calls under way",
        limit=f"calls under way: {limit} on each server",
        outcome=outcome,
        retry_seconds=0.5,
    )


def too_many_streams(*, outcome: str, limit: int, of_caller: bool) -> CallError:
    """Returns RESOURCE_EXHAUSTED: the server, or the caller, has as many streams open as it may."""
    whose = "of each caller " if of_caller else ""
    return _exhausted(
        "TOO_MANY_STREAMS",
        "you have too many streams open" if of_caller else "the server has too many streams open",
        limit=f"open streams: {limit} {whose}on each server",
        outcome=outcome,
        retry_seconds=1.0,
    )


def too_many_unacknowledged() -> CallError:
    """Returns RESOURCE_EXHAUSTED: Kafka is slow, and as many orders wait for it as the server keeps."""
    return CallError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "TOO_MANY_UNACKNOWLEDGED",
        "too many orders wait for Kafka's acknowledgement; this one was not accepted",
        outcome="NOT_ACCEPTED",
        retry_seconds=1.0,
    )


def _exhausted(reason: str, message: str, *, limit: str, outcome: str, retry_seconds: float | None) -> CallError:
    return CallError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        reason,
        message,
        outcome=outcome,
        retry_seconds=retry_seconds,
        details=(
            error_details_pb2.QuotaFailure(
                violations=[error_details_pb2.QuotaFailure.Violation(subject="caller", description=limit)]
            ),
        ),
    )


def order_not_found(*, outcome: str = "") -> CallError:
    """Returns NOT_FOUND."""
    return CallError(grpc.StatusCode.NOT_FOUND, "ORDER_NOT_FOUND", "there is no such order", outcome=outcome)


def order_purged() -> CallError:
    """Returns NOT_FOUND: there was such an order."""
    return CallError(grpc.StatusCode.NOT_FOUND, "ORDER_PURGED", "the order was purged: it was settled long ago")


def not_there_yet() -> CallError:
    """Returns UNAVAILABLE: the read model did not reach the token's revision within the deadline."""
    return CallError(
        grpc.StatusCode.UNAVAILABLE,
        "NOT_THERE_YET",
        "the order is not readable at that revision yet",
        retry_seconds=0.5,
    )


def store_unavailable(*, outcome: str = "") -> CallError:
    """Returns UNAVAILABLE: PostgreSQL is away."""
    return CallError(
        grpc.StatusCode.UNAVAILABLE,
        "STORE_UNAVAILABLE",
        "what is stored cannot be read right now",
        outcome=outcome,
        retry_seconds=1.0,
    )


def server_stopping() -> CallError:
    """Returns UNAVAILABLE: a watch ends because its server does; another one, or the next, goes on with it."""
    return CallError(
        grpc.StatusCode.UNAVAILABLE,
        "SERVER_STOPPING",
        "the server stops; watch again with the last resume_token",
        retry_seconds=0.2,
    )


def watched_long_enough() -> CallError:
    """Returns UNAVAILABLE: a watch reached the server's limit."""
    return CallError(
        grpc.StatusCode.UNAVAILABLE,
        "WATCH_LIMIT_REACHED",
        "the watch is as old as one may get; watch again with the last resume_token",
        retry_seconds=0.2,
    )


def internal(*, outcome: str) -> CallError:
    """Returns INTERNAL with a fixed text: the error is in the server's log."""
    return CallError(grpc.StatusCode.INTERNAL, "INTERNAL", "internal error; the server's log has it", outcome=outcome)
