"""What flows, what fails, who works: the first page, and the orders that are stuck."""

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from starlette.routing import Route

from console.api import ApiError
from console.context import Visit, visit

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


async def overview(request: "Request") -> "Response":
    """Shows the board."""
    asked = visit(request)
    return asked.page("overview.html", board=await asked.console.boards.look(asked.key, asked.api))


async def live(request: "Request") -> "Response":
    """Keeps it up to date."""
    asked = visit(request)
    return asked.stream(_follow(asked, "_board.html"))


async def stuck(request: "Request") -> "Response":
    """Lists the orders that should have moved on."""
    asked = visit(request)
    return asked.page("stuck.html", board=await asked.console.boards.look(asked.key, asked.api))


async def stuck_live(request: "Request") -> "Response":
    """Keeps the list up to date."""
    asked = visit(request)
    return asked.stream(_follow(asked, "_stuck.html"))


async def _follow(asked: Visit, template: str) -> AsyncGenerator[str, None]:
    try:
        async for board in asked.console.boards.watch(asked.key, asked.api):
            yield asked.render(template, board=board)
    except ApiError as error:
        yield asked.render("_ended.html", problem=str(error))


ROUTES = [
    Route("/", overview),
    Route("/live", live),
    Route("/stuck", stuck),
    Route("/stuck/live", stuck_live),
]
