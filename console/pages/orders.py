"""Orders: found by any id, listed, and one's life as a timeline."""

import asyncio
import datetime
import re
import time
import urllib.parse
from collections.abc import AsyncGenerator, Awaitable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
from starlette.routing import Route

from console import explanation, timeline
from console.api import ApiError
from console.context import Visit, see, visit
from console.pages.spans import SPANS, since
from console.workers import workers
from orderflow.operations.v1.dead_letter_service_pb2 import DeadLetterFilter
from orderflow.orders.v1.order_pb2 import OrderStatus
from orderflow.orders.v1.order_service_pb2 import IdentifierKind

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

T = TypeVar("T")

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TRACE: Final = re.compile(r"[0-9a-f]{32}")
_DEAD_LETTER: Final = re.compile(r"(?:dlq/)?([0-9]{1,9}-[0-9]{1,18})")
_STATUSES: Final = [value.name.removeprefix("ORDER_STATUS_") for value in OrderStatus.DESCRIPTOR.values[1:]]
_NOT_THERE: Final = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)


async def search(request: "Request") -> "Response":
    """Leads to what an id stands for: a dead letter, an order by any id, a replay plan; else to a user's orders."""
    asked = visit(request)
    text = request.query_params.get("q", "").strip()
    letter = _DEAD_LETTER.fullmatch(text)
    if letter:
        return see(f"/dead-letters/{letter.group(1)}")
    is_uuid = _UUID.fullmatch(text.lower()) is not None
    if (found := await _unless_missing(asked.api.find(text))) is not None and found:
        # What a caller has named a request may be the name of a user, too.
        is_sure = is_uuid or found[0].kind != IdentifierKind.IDENTIFIER_KIND_REQUEST
        if len(found) == 1 and is_sure:
            return see(f"/orders/{found[0].order_id}")
        return asked.page("found.html", text=text, found=found)
    if is_uuid and await _unless_missing(asked.api.plan(text.lower())) is not None:
        return see(f"/plans/{text.lower()}")
    if is_uuid or _TRACE.fullmatch(text.lower()):
        return asked.page("not_found.html", status=404, text=text)
    return see("/orders", user=text)


async def _unless_missing(call: Awaitable[T]) -> T | None:
    """Returns what a call returns; None where the server knows of no such thing."""
    try:
        return await call
    except ApiError as error:
        if error.code not in _NOT_THERE:
            raise
        return None


async def orders(request: "Request") -> "Response":
    """Lists orders, newest first."""
    asked = visit(request)
    query = request.query_params
    chosen = [each for each in query.getlist("status") if each in _STATUSES]
    page = await asked.api.orders(
        statuses=[f"ORDER_STATUS_{each}" for each in chosen],
        user_id=query.get("user", ""),
        created_from=since(query.get("since", "")),
        token=query.get("page", ""),
    )
    kept = [(name, value) for name, value in query.multi_items() if name != "page"]
    return asked.page(
        "orders.html",
        page=page,
        statuses=_STATUSES,
        chosen=chosen,
        user=query.get("user", ""),
        since=query.get("since", ""),
        spans=SPANS,
        more=urllib.parse.urlencode([*kept, ("page", page.next_token)]) if page.next_token else "",
    )


async def order(request: "Request") -> "Response":
    """Shows one order and its life."""
    asked = visit(request)
    return asked.page("order.html", **await _life(asked, request.path_params["order_id"]))


async def order_live(request: "Request") -> "Response":
    """Keeps it up to date."""
    asked = visit(request)
    return asked.stream(_follow(asked, request.path_params["order_id"]))


async def _follow(asked: Visit, order_id: str) -> AsyncGenerator[str, None]:
    shown = ""
    while True:
        try:
            rendered = asked.render("_order.html", **await _life(asked, order_id))
        except ApiError as error:
            if error.code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                yield asked.render("_ended.html", problem=str(error))
                return
            rendered = shown  # it is as it was, as far as anybody knows
        if rendered != shown:
            shown = rendered
            yield rendered
        await asyncio.sleep(asked.console.settings.refresh_seconds)


async def _life(asked: Visit, order_id: str) -> dict[str, Any]:
    found, history, letters = await asyncio.gather(
        asked.api.order(order_id),
        asked.api.history(order_id),
        asked.api.dead_letters(DeadLetterFilter(order_id=order_id), size=100),
    )
    shown = workers(asked.console.scraper.processes, time.time())
    now = datetime.datetime.now(datetime.UTC)
    traces = asked.console.settings.order_traces_url
    return {
        "order": found,
        "rows": timeline.rows(history),
        "details": timeline.details,
        "explanation": explanation.explained(found, letters.dead_letters, shown, now),
        "letters": letters.dead_letters,
        "traces": traces.replace("{order_id}", urllib.parse.quote(order_id, safe="")) if traces else "",
    }


ROUTES = [
    Route("/search", search),
    Route("/orders", orders),
    Route("/orders/{order_id}", order),
    Route("/orders/{order_id}/live", order_live),
]
