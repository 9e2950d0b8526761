"""The keys that bearer tokens are signed with: a JWKS from a file or a URL of the settings, never of a token."""

import asyncio
import dataclasses
import json
import pathlib
import time
from collections.abc import Collection
from typing import Any, Final

import httpx
import jwt

from settings import SettingsError, TokenSettings
from telemetry import logs

log = logs.get()

_LARGEST_BYTES: Final = 1024 * 1024
_READ_SECONDS: Final = 5.0
_UNKNOWN_KEY_SECONDS: Final = 10.0
"""A token with an unknown key makes us look for it at most so often: anybody can make up a key id."""
_RETRY_SECONDS: Final = 1.0
_SMALLEST_RSA_BITS: Final = 2048

# One algorithm for each kind of key, so that no token can choose how it is checked.
_ALGORITHMS: Final = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}


class KeysUnreadable(Exception):
    """The key set cannot be read. The text says why and shows nothing of it."""


class NoUsableKey(KeysUnreadable):
    """It is a key set, and no token can be verified with it."""


@dataclasses.dataclass(frozen=True)
class TokenKey:
    """A public key and the one algorithm that it is used with."""

    algorithm: str
    public_key: Any


class TokenKeys:
    """The key set. It is read again at an interval, and when a token names a key that is not in it."""

    def __init__(self, settings: TokenSettings) -> None:
        """Reads nothing."""
        self._settings = settings
        self._keys: dict[str, TokenKey] = {}
        self._source = b""
        self._last_read = -_UNKNOWN_KEY_SECONDS
        self._reading = asyncio.Lock()
        self.version = 0

    @property
    def is_ready(self) -> bool:
        """Whether there are keys to check tokens with."""
        return bool(self._keys)

    async def open(self) -> None:
        """Reads the set for the first time. A URL may be away at that time, a file may not.

        Raises:
            SettingsError: the file is no key set.
        """
        try:
            await self._read()
        except KeysUnreadable as error:
            if self._settings.jwks_file:
                raise SettingsError(f"ORDERFLOW_SERVER_TOKEN_JWKS_FILE: {error}") from error
            log.warning("server.token_keys.unreadable", error=str(error))

    async def run(self) -> None:
        """Keeps the set up to date until cancelled. What was read last stays while it cannot be read."""
        while True:
            await asyncio.sleep(self._settings.jwks_refresh if self.is_ready else _RETRY_SECONDS)
            await self._read_if_older(0)

    async def find(self, key_id: str) -> TokenKey | None:
        """Returns a key, None if there is none of that id."""
        if key_id not in self._keys:
            await self._read_if_older(_UNKNOWN_KEY_SECONDS)
        return self._keys.get(key_id)

    async def _read_if_older(self, seconds: float) -> None:
        async with self._reading:
            if time.monotonic() - self._last_read < seconds:
                return
            try:
                await self._read()
            except KeysUnreadable as error:
                log.warning("server.token_keys.unreadable", error=str(error))

    async def _read(self) -> None:
        self._last_read = time.monotonic()
        source = await self._fetched() if self._settings.jwks_url else await asyncio.to_thread(self._from_file)
        if source == self._source:
            return
        try:
            keys = parse(source, self._settings.algorithms.split())
        except NoUsableKey as error:
            if not self._keys:
                raise
            log.warning("server.token_keys.unreadable", error=str(error))
            keys = {}  # all were withdrawn
        self._keys = keys
        self._source = source
        self.version += 1
        log.info("server.token_keys.read", keys=len(self._keys))

    def _from_file(self) -> bytes:
        try:
            with pathlib.Path(self._settings.jwks_file or "").open("rb") as file:
                return file.read(_LARGEST_BYTES + 1)
        except OSError as error:
            raise KeysUnreadable(f"cannot be read: {error.strerror}") from error

    async def _fetched(self) -> bytes:
        content = b""
        try:
            async with (
                asyncio.timeout(_READ_SECONDS),
                httpx.AsyncClient(follow_redirects=False, timeout=_READ_SECONDS) as client,
                client.stream("GET", self._settings.jwks_url or "") as response,
            ):
                if response.status_code != httpx.codes.OK:
                    raise KeysUnreadable(f"answered with status {response.status_code}")
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > _LARGEST_BYTES:
                        break
        except (httpx.HTTPError, TimeoutError) as error:
            raise KeysUnreadable(f"cannot be read: {type(error).__name__}") from error
        return content


def parse(source: bytes, allowed: Collection[str]) -> dict[str, TokenKey]:
    """Returns the keys of a JWKS that can verify a token, by id. Others are left out: a set may serve many purposes.

    Raises:
        KeysUnreadable: it is no JWKS.
        NoUsableKey: none of its keys can be used.
    """
    if len(source) > _LARGEST_BYTES:
        raise KeysUnreadable(f"is larger than {_LARGEST_BYTES} bytes")
    try:
        entries = json.loads(source)["keys"]
        keys = {entry["kid"]: key for entry in entries if (key := _key(entry, allowed)) is not None}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise KeysUnreadable("is no JSON Web Key Set") from error
    if not keys:
        raise NoUsableKey(f"has no public signature key with an id for {', '.join(allowed)}")
    return keys


def _key(entry: dict[str, Any], allowed: Collection[str]) -> TokenKey | None:
    algorithm = _ALGORITHMS.get((entry.get("kty", ""), entry.get("crv")))
    if algorithm is None or algorithm not in allowed or entry.get("use", "sig") != "sig":
        return None
    if entry.get("alg", algorithm) != algorithm:
        return None
    if not isinstance(entry.get("kid"), str) or "d" in entry:  # a private key has no business here
        return None
    try:
        public_key = jwt.PyJWK(entry, algorithm=algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if algorithm == "RS256" and public_key.key_size < _SMALLEST_RSA_BITS:
        return None
    return TokenKey(algorithm, public_key)
