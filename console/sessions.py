"""Who looks: a random session in a cookie, what proves a form to be ours, and the token of who signed in."""

import dataclasses
import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection
    from starlette.responses import Response

_MOST: Final = 1_000
_LIFETIME_SECONDS: Final = 12 * 3600.0
_ID: Final = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclasses.dataclass(frozen=True)
class Session:
    """One browser.

    Attributes:
        csrf: What a form of this session carries, and nobody else knows.
        token: The bearer token that its operator signed in with.
        is_new: Whether the browser has no cookie for it yet.
    """

    session_id: str
    csrf: str
    token: str | None
    is_new: bool


class Sessions:
    """All sessions. Tokens stay in memory: a cookie holds a random number only, and a restart signs everybody out."""

    def __init__(self, *, secure: bool, now: Callable[[], float] = time.monotonic) -> None:
        """`secure`: browsers send the cookie over TLS only."""
        self._secure = secure
        self._cookie = "__Host-orderflow-console" if secure else "orderflow-console"
        self._key = secrets.token_bytes(32)
        self._now = now
        self._signed_in: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def of(self, connection: "HTTPConnection") -> Session:
        """Returns the session of a request, a new one if it has none."""
        given = connection.cookies.get(self._cookie, "")
        is_new = not _ID.fullmatch(given)
        session_id = secrets.token_urlsafe(32) if is_new else given
        return Session(session_id, self._csrf(session_id), self._token(session_id), is_new)

    def is_ours(self, session: Session, given: str) -> bool:
        """Whether a form with that value was made for the session."""
        return hmac.compare_digest(session.csrf.encode(), given.encode())

    def sign_in(self, token: str) -> Session:
        """Returns a session of its own for an operator: the one before the sign-in may be known to others."""
        session_id = secrets.token_urlsafe(32)
        self._signed_in[session_id] = (self._now() + _LIFETIME_SECONDS, token)
        while len(self._signed_in) > _MOST:
            self._signed_in.popitem(last=False)
        return Session(session_id, self._csrf(session_id), token, is_new=True)

    def sign_out(self, session: Session) -> None:
        """Forgets the token."""
        self._signed_in.pop(session.session_id, None)

    def write(self, session: Session, response: "Response") -> None:
        """Gives the browser its cookie. It ends with the browser, and goes to no other site's request."""
        response.set_cookie(
            self._cookie, session.session_id, path="/", secure=self._secure, httponly=True, samesite="strict"
        )

    def _token(self, session_id: str) -> str | None:
        until, token = self._signed_in.get(session_id, (0.0, ""))
        if token and self._now() < until:
            return token
        self._signed_in.pop(session_id, None)
        return None

    def _csrf(self, session_id: str) -> str:
        return hmac.new(self._key, session_id.encode(), hashlib.sha256).hexdigest()
