"""What the server knows of a call beside its message: who calls, until when, in which trace."""

import asyncio
import re
from typing import TYPE_CHECKING, Final

from server import identity, scopes
from settings import ServerSettings

if TYPE_CHECKING:
    import grpc.aio

    Context = grpc.aio.ServicerContext[object, object]

_CORRELATION_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_ANSWER_SECONDS: Final = 0.1
"""What is kept of a deadline for our own answer, so that the caller sees it instead of its own time-out."""


def metadata(context: "Context") -> dict[str, str]:
    """Returns the call's text metadata."""
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


def caller(_: "Context") -> str:
    """Returns who calls. Without credentials, which only loopback does, everybody is `local`."""
    return identity.current().name


def may_see(context: "Context", owner: str) -> bool:
    """Whether the caller may see what `owner` placed: its own, or all with a wider scope."""
    return owner == caller(context) or scopes.see_all(identity.current().scopes)


def visible_owner(context: "Context") -> str | None:
    """Returns whose orders the caller may list: its own; None for everybody's, with a wider scope."""
    return None if scopes.see_all(identity.current().scopes) else caller(context)


def time_left(context: "Context", settings: ServerSettings) -> float:
    """Returns how long the call may take, seconds, with time left to answer."""
    remaining = context.time_remaining()
    left = settings.default_deadline if remaining is None else remaining
    return max(left - min(_ANSWER_SECONDS, left / 4), 0.0)


def correlation_id(context: "Context", default: str) -> str:
    """Returns the caller's `x-correlation-id`, or the default."""
    given = metadata(context).get("x-correlation-id", "")
    return given if _CORRELATION_ID.fullmatch(given) else default


def trace_headers(context: "Context") -> list[tuple[str, bytes | None]]:
    """Returns the caller's W3C trace context."""
    given = metadata(context)
    return [(name, given[name].encode("ascii", "replace")) for name in ("traceparent", "tracestate") if name in given]


def was_tried_before(context: "Context") -> bool:
    """Whether the caller's channel repeats the call by itself: an earlier try may have been accepted (gRFC A6)."""
    return metadata(context).get("grpc-previous-rpc-attempts", "0") != "0"


def is_read(method: str) -> bool:
    """Whether the method, given with its service, changes nothing: its errors have no outcome."""
    return method.rpartition("/")[2].startswith(("Get", "BatchGet", "List", "Find", "Watch", "Summarize"))


def is_cancelled() -> bool:
    """Whether this task is to end, as a call that its caller gave up; else CancelledError is of something inside."""
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0
