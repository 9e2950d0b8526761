"""Bearer tokens: JWTs (RFC 7519) that an issuer of the settings has signed."""

import datetime
import re
import time
from collections.abc import Sequence
from typing import Any, Final

import jwt

from server.identity import Caller, is_name
from server.token_keys import TokenKeys
from settings import TokenSettings
from telemetry import metrics

_LONGEST_TOKEN: Final = 8 * 1024
_BEARER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] ([A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+)")
_REMEMBERED: Final = 4096
_LONGEST_LIFE: Final = datetime.timedelta(days=3650).total_seconds()
"""No timer counts further. A token may live longer, a single stream may not."""


class Refused(Exception):
    """The call proves nothing. The reason is for the metric; the caller is never told which."""


class BearerTokens:
    """Tells callers by their tokens."""

    def __init__(self, settings: TokenSettings, keys: TokenKeys) -> None:
        """Checks with these keys."""
        self._settings = settings
        self._keys = keys
        # A signature costs more than the rest of a small call; callers use a token for thousands.
        self._verified: dict[str, Caller] = {}
        self._version = keys.version

    async def caller(self, authorization: Sequence[str | bytes]) -> Caller:
        """Returns who calls, from all values of the call's `authorization`.

        Raises:
            Refused: there is not exactly one token, or it does not hold.
        """
        try:
            token = _token(authorization)
            if self._version != self._keys.version:
                self._verified.clear()
                self._version = self._keys.version
            caller = self._verified.get(token)
            if caller is None:
                caller = await self._verify(token)
                if len(self._verified) >= _REMEMBERED:
                    self._verified.clear()
                self._verified[token] = caller
            if caller.expires is not None and caller.expires <= time.time():
                raise Refused("expired")
        except Refused as refused:
            metrics.CREDENTIALS_REFUSED.labels(str(refused)).inc()
            raise
        return caller

    async def _verify(self, token: str) -> Caller:
        try:
            header = jwt.get_unverified_header(token)
            key_id = header.get("kid")
            if "crit" in header:  # we understand no extension
                raise Refused("critical_header")
            key = await self._keys.find(key_id) if isinstance(key_id, str) else None
            if key is None:
                raise Refused("unknown_key")
            claims = jwt.decode(
                token,
                key.public_key,
                algorithms=[key.algorithm],
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                leeway=self._settings.leeway,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            return self._caller(claims)
        except Refused:
            raise
        except jwt.PyJWTError as error:
            raise Refused(_snake(type(error).__name__)) from None
        except Exception:
            raise Refused("malformed") from None

    def _caller(self, claims: dict[str, Any]) -> Caller:
        scopes = claims.get("scope", "")
        if not is_name(claims["sub"]) or not isinstance(scopes, str):
            raise Refused("malformed")
        expires = min(float(claims["exp"]), time.time() + _LONGEST_LIFE) + self._settings.leeway
        return Caller(claims["sub"], frozenset(scopes.split()), expires)


def _token(authorization: Sequence[str | bytes]) -> str:
    if not authorization:
        raise Refused("missing")
    if len(authorization) != 1 or not isinstance(authorization[0], str) or len(authorization[0]) > _LONGEST_TOKEN:
        raise Refused("malformed")
    found = _BEARER.fullmatch(authorization[0])
    if found is None:
        raise Refused("malformed")
    return found.group(1)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.removesuffix("Error")).lower()
