"""Replay plans: a frozen list of dead letters, shown first, applied at a rate, ended by anybody who may."""

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Final

import grpc
from starlette.routing import Route

from console.api import ApiError
from console.context import Visit, form, see, visit
from console.pages.dead_letters import dead_letter_filter
from console.replays import MOST, TooManyReplays
from orderflow.operations.v1.dead_letter_service_pb2 import ReplayPlanState

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

DEFAULT_RATE: Final = 20
LARGEST_RATE: Final = 1_000
_LOOK_SECONDS: Final = 0.5
_NOTHING: Final = {"reason": "", "rate": ""}


async def make(request: "Request") -> "Response":
    """Freezes the list of all that match. Nothing is replayed yet."""
    asked, fields = visit(request), await form(request)
    plan = await asked.api.create_plan(dead_letter_filter(fields))
    return see(f"/plans/{plan.plan_id}")


async def plan(request: "Request") -> "Response":
    """Shows a plan: what is in it, and how far it is."""
    asked = visit(request)
    return asked.page("plan.html", **await _state(asked, request.path_params["plan_id"]), wrong="", typed=_NOTHING)


async def plan_live(request: "Request") -> "Response":
    """Keeps its progress up to date, to its end."""
    asked = visit(request)
    return asked.stream(_follow(asked, request.path_params["plan_id"]))


async def apply(request: "Request") -> "Response":
    """Begins to replay it, once its size was typed."""
    asked, fields = visit(request), await form(request)
    plan_id = request.path_params["plan_id"]
    state = await _state(asked, plan_id)
    left = str(state["left"])
    wrong = ""
    rate = fields.get("rate", "")
    if fields.get("count", "").strip().replace(",", "") != left:
        wrong = f"Type {left} to confirm."
    elif not (rate.isascii() and rate.isdigit() and 1 <= int(rate[:5]) <= LARGEST_RATE):
        wrong = f"The rate is a number from 1 to {LARGEST_RATE}."
    elif not fields.get("reason", "").strip():
        wrong = "Say why, for the history."
    if wrong:
        return asked.page("plan.html", status=422, **state, wrong=wrong, typed=_NOTHING | fields)
    try:
        asked.console.replays.start(asked.api, plan_id, reason=fields["reason"].strip()[:255], rate=int(rate))
    except TooManyReplays:
        wrong = f"{MOST} replays run already: wait for one to end."
        return asked.page("plan.html", status=503, **state, wrong=wrong, typed=fields)
    return see(f"/plans/{plan_id}")


async def abort(request: "Request") -> "Response":
    """Ends a plan: what was not replayed yet stays as it is."""
    asked = visit(request)
    await form(request)
    await asked.api.abort_plan(request.path_params["plan_id"])
    return see(f"/plans/{request.path_params['plan_id']}")


async def _follow(asked: Visit, plan_id: str) -> AsyncGenerator[str, None]:
    while True:
        try:
            state = await _state(asked, plan_id)
        except ApiError as error:
            if error.code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                yield asked.render("_ended.html", problem=str(error))
                return
        else:
            yield asked.render("_plan.html", **state)
            if not state["is_open"]:
                return
        await asyncio.sleep(_LOOK_SECONDS)


async def _state(asked: Visit, plan_id: str) -> dict[str, Any]:
    found = await asked.api.plan(plan_id)
    replay = asked.console.replays.of(plan_id)
    done = found.replayed + found.skipped
    return {
        "plan": found,
        "done": done,
        "left": found.total - done,
        "is_open": found.state == ReplayPlanState.REPLAY_PLAN_STATE_OPEN,
        "is_running": replay is not None and replay.is_running,
        "problem": replay.problem if replay is not None else "",
        "default_rate": DEFAULT_RATE,
        "largest_rate": LARGEST_RATE,
    }


ROUTES = [
    Route("/plans", make, methods=["POST"]),
    Route("/plans/{plan_id}", plan),
    Route("/plans/{plan_id}/live", plan_live),
    Route("/plans/{plan_id}/apply", apply, methods=["POST"]),
    Route("/plans/{plan_id}/abort", abort, methods=["POST"]),
]
