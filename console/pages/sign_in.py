"""Signing in with a bearer token of one's own, and out."""

from typing import TYPE_CHECKING

import grpc
from starlette.routing import Route

from console.api import ApiError
from console.board import REFUSALS
from console.context import Console, Visit, form, see

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


async def ask(request: "Request") -> "Response":
    """Asks for the token."""
    return _anybody(request).page("sign_in.html", wrong="", then=_own_path(request.query_params.get("then", "")))


async def sign_in(request: "Request") -> "Response":
    """Takes the token if the server does."""
    console: Console = request.app.state.console
    fields = await form(request)
    token, then = fields.get("token", "").strip(), _own_path(fields.get("then", ""))
    if not token or not all("!" <= character <= "~" for character in token):
        return _anybody(request).page("sign_in.html", status=422, wrong="That is no token.", then=then)
    try:
        await console.server.as_operator(lambda: token).dead_letter_reasons()
    except ApiError as error:
        if error.code in REFUSALS:
            return _anybody(request).page("sign_in.html", status=403, wrong=_refusal(error), then=then)
        # The server, or what it needs, is away: the token is asked for again with each call.
    response = see(then)
    console.sessions.write(console.sessions.sign_in(token), response)
    return response


async def sign_out(request: "Request") -> "Response":
    """Forgets the token."""
    await form(request)
    sessions = request.app.state.console.sessions
    sessions.sign_out(sessions.of(request))
    return see("/sign-in")


def _anybody(request: "Request") -> Visit:
    console: Console = request.app.state.console
    return Visit(console, console.sessions.of(request), console.server.as_operator(lambda: None), "")


def _refusal(error: ApiError) -> str:
    if error.code is grpc.StatusCode.PERMISSION_DENIED:
        return "The server knows this token, and it may not do what operators do: it needs the scope orders:operate."
    return "The server does not take this token: it has ended, or is another's."


def _own_path(path: str) -> str:
    """Returns the path if it leads to a page of ours, else the first page."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() else "/"


ROUTES = [
    Route("/sign-in", ask, methods=["GET"]),
    Route("/sign-in", sign_in, methods=["POST"]),
    Route("/sign-out", sign_out, methods=["POST"]),
]
