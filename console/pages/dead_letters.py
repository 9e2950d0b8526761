"""Dead letters: by reason, listed, one by one; replayed and discarded once that is confirmed."""

import re
import urllib.parse
from typing import TYPE_CHECKING, Final

from starlette.routing import Route

from console.context import form, see, visit
from console.pages.spans import SPANS, since
from console.stuck import order_id
from orderflow.operations.v1.dead_letter_service_pb2 import DeadLetterEntry, DeadLetterFilter, DeadLetterState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request
    from starlette.responses import Response

_TRACE: Final = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_FILTERS: Final = ("group", "error_class", "order_id", "since")


def dead_letter_filter(given: "Mapping[str, str]") -> DeadLetterFilter:
    """Returns the filter that a query or a form describes."""
    which = DeadLetterFilter(
        group=given.get("group", "").strip(),
        error_class=given.get("error_class", "").strip(),
        order_id=given.get("order_id", "").strip().lower(),
    )
    begin = since(given.get("since", ""))
    if begin is not None:
        which.since.FromDatetime(begin)
    return which


async def dead_letters(request: "Request") -> "Response":
    """Counts them by reason, and lists those that match."""
    asked = visit(request)
    query = request.query_params
    reasons = await asked.api.dead_letter_reasons()
    page = await asked.api.dead_letters(
        dead_letter_filter(query), include_resolved=query.get("resolved") == "yes", token=query.get("page", "")
    )
    kept = [(name, value) for name, value in query.multi_items() if name != "page"]
    return asked.page(
        "dead_letters.html",
        reasons=reasons,
        letters=page.dead_letters,
        groups=sorted({each.group for each in reasons} | {query.get("group", "")} - {""}),
        chosen={name: query.get(name, "") for name in _FILTERS},
        resolved=query.get("resolved") == "yes",
        spans=SPANS,
        order_id=order_id,
        more=urllib.parse.urlencode([*kept, ("page", page.next_page_token)]) if page.next_page_token else "",
    )


async def dead_letter(request: "Request") -> "Response":
    """Shows one."""
    asked = visit(request)
    entry = await asked.api.dead_letter(request.path_params["dead_letter_id"])
    trace = _trace_id(entry)
    url = asked.console.settings.trace_url
    return asked.page(
        "dead_letter.html",
        entry=entry,
        order_id=order_id(entry),
        is_open=entry.state == DeadLetterState.DEAD_LETTER_STATE_OPEN,
        trace=trace,
        trace_link=url.replace("{trace_id}", trace) if url and trace else "",
    )


async def confirm_replay(request: "Request") -> "Response":
    """Asks whether to replay it, and why."""
    return await _confirm(request, "replay")


async def confirm_discard(request: "Request") -> "Response":
    """Asks whether to discard it, and why."""
    return await _confirm(request, "discard")


async def replay(request: "Request") -> "Response":
    """Hands it to its group again."""
    asked, fields = visit(request), await form(request)
    identifier = request.path_params["dead_letter_id"]
    await asked.api.replay(identifier, fields.get("reason", "").strip())
    return see(f"/dead-letters/{identifier}")


async def discard(request: "Request") -> "Response":
    """Closes it without another try."""
    asked, fields = visit(request), await form(request)
    identifier = request.path_params["dead_letter_id"]
    await asked.api.discard(identifier, fields.get("reason", "").strip())
    return see(f"/dead-letters/{identifier}")


async def _confirm(request: "Request", verb: str) -> "Response":
    asked = visit(request)
    entry = await asked.api.dead_letter(request.path_params["dead_letter_id"])
    return asked.page("confirm.html", entry=entry, order_id=order_id(entry), verb=verb)


def _trace_id(entry: DeadLetterEntry) -> str:
    for header in entry.dead_letter.headers:
        found = _TRACE.fullmatch(header.value) if header.name == "traceparent" else None
        if found:
            return found.group(1).decode()
    return ""


ROUTES = [
    Route("/dead-letters", dead_letters),
    Route("/dead-letters/{dead_letter_id}", dead_letter),
    Route("/dead-letters/{dead_letter_id}/replay", confirm_replay, methods=["GET"]),
    Route("/dead-letters/{dead_letter_id}/replay", replay, methods=["POST"]),
    Route("/dead-letters/{dead_letter_id}/discard", confirm_discard, methods=["GET"]),
    Route("/dead-letters/{dead_letter_id}/discard", discard, methods=["POST"]),
]
