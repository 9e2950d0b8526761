"""Proving who calls, and to whom: TLS, client certificates and tokens."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc

TokenSource = str | Callable[[], str]
AsyncTokenSource = str | Callable[[], str | Awaitable[str]]


def tls(
    *,
    root_certificates: bytes | str | Path | None = None,
    certificate: bytes | str | Path | None = None,
    private_key: bytes | str | Path | None = None,
) -> grpc.ChannelCredentials:
    """Returns the `channel_credentials` of a client. Each part is PEM: bytes, or the path of a file.

    Args:
        root_certificates: Who may vouch for the server; this machine's own list if not given.
        certificate: The client's certificate and what vouches for it, where the server asks for one (mutual TLS).
        private_key: The key of `certificate`.
    """
    if (certificate is None) is not (private_key is None):
        raise ValueError("certificate and private_key go together")
    return grpc.ssl_channel_credentials(_pem(root_certificates), _pem(private_key), _pem(certificate))


def _pem(source: bytes | str | Path | None) -> bytes | None:
    return source if source is None or isinstance(source, bytes) else Path(source).read_bytes()


class SyncToken:
    """The token of a blocking client: asked for at the first call, and anew when the server refuses it."""

    def __init__(self, source: TokenSource | None) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._token = source if isinstance(source, str) else None

    def get(self, refused: str | None = None) -> str | None:
        """Returns the token; not the refused one, if another can be had. One thread asks for all."""
        if not callable(self._source):
            return self._token
        with self._lock:
            if self._token is None or self._token == refused:
                self._token = self._source()
            return self._token


class AsyncToken:
    """The token of an asyncio client: asked for at the first call, and anew when the server refuses it."""

    def __init__(self, source: AsyncTokenSource | None) -> None:
        self._source = source
        self._lock = asyncio.Lock()
        self._token = source if isinstance(source, str) else None

    async def get(self, refused: str | None = None) -> str | None:
        """Returns the token; not the refused one, if another can be had. One task asks for all."""
        if not callable(self._source):
            return self._token
        async with self._lock:
            if self._token is None or self._token == refused:
                given = self._source()
                self._token = await given if inspect.isawaitable(given) else given
            return self._token
