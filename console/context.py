"""What the pages share: who asks, what they may use, and how they answer."""

import dataclasses
import hashlib
import json
import shlex
import urllib.parse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from console import words
from console.api import Api, Server
from console.board import Boards
from console.replays import Replays
from console.scraping import Scraper
from console.sessions import Session, Sessions
from console.streams import Streams
from settings import ConsoleSettings

if TYPE_CHECKING:
    import jinja2

_LARGEST_FORM: Final = 64 * 1024


class SignInNeeded(Exception):
    """The page is for operators who signed in."""


class FormRefused(Exception):
    """A form that is not ours, or too large."""


@dataclasses.dataclass(frozen=True)
class Console:
    """What the pages are made of. `own_token` returns the token that the console was started with, if any."""

    settings: ConsoleSettings
    server: Server
    own_token: Callable[[], str | None]
    needs_sign_in: bool
    scraper: Scraper
    boards: Boards
    replays: Replays
    sessions: Sessions
    streams: Streams
    templates: "jinja2.Environment"
    version: str


@dataclasses.dataclass(frozen=True)
class Visit:
    """One request: the console, the browser's session, and the server with its operator's credentials.

    Attributes:
        key: Stands for the credentials, without being one.
    """

    console: Console
    session: Session
    api: Api
    key: str

    def page(self, template: str, *, status: int = 200, **values: Any) -> Response:
        """Answers with a page."""
        response = HTMLResponse(self.render(template, **values), status_code=status)
        if self.session.is_new:
            self.console.sessions.write(self.session, response)
        return response

    def render(self, template: str, **values: Any) -> str:
        """Returns a page, or a part of one."""
        return self.console.templates.get_template(template).render(visit=self, console=self.console, **values)

    def stream(self, messages: Any) -> Response:
        """Answers with server-sent events."""
        return self.console.streams.respond(messages)


def visit(request: Request) -> Visit:
    """Returns who asks, and with what.

    Raises:
        SignInNeeded: the console lends nobody its credentials, and this browser has not signed in.
    """
    console: Console = request.app.state.console
    session = console.sessions.of(request)
    if session.token is None and console.needs_sign_in:
        raise SignInNeeded
    if session.token is None:
        return Visit(console, session, console.server.as_operator(console.own_token), "")
    token = session.token
    key = hashlib.sha256(token.encode()).hexdigest()
    return Visit(console, session, console.server.as_operator(lambda: token), key)


async def form(request: Request) -> dict[str, str]:
    """Returns the fields of a form that this session was given.

    Raises:
        FormRefused: it was not, or it is too large.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST_FORM:
            raise FormRefused("the form is too large")
    try:
        fields = dict(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=100))
    except ValueError:  # not UTF-8, or too many fields
        raise FormRefused("the form cannot be read") from None
    sessions = request.app.state.console.sessions
    if not sessions.is_ours(sessions.of(request), fields.pop("csrf", "")):
        raise FormRefused("the form is not of this session: go back, load the page again and repeat it")
    return fields


def see(path: str, **query: str) -> Response:
    """Sends the browser on to another page, after a form was taken."""
    given = {name: value for name, value in query.items() if value}
    return RedirectResponse(path + (f"?{urllib.parse.urlencode(given)}" if given else ""), status_code=303)


def environment() -> "jinja2.Environment":
    """Returns the templates. What is put into one is escaped, and what is not there is an error."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("console"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: Mapping[str, Callable[..., Any]] = {
        "clock": words.clock,
        "count": words.count,
        "enum": words.enum_name,
        "masked": words.masked,
        "money": words.money,
        "pretty": lambda message: json.dumps(words.as_dict(message), indent=2, ensure_ascii=False),
        "quoted": shlex.quote,
        "rate": words.rate,
        "redacted": words.redacted,
        "span": words.span,
        "time": words.time,
    }
    made.filters.update(filters)
    return made
