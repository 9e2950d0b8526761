"""A bearer token on each call of a channel."""

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: tuple[tuple[str, str | bytes], ...]
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: Any


class BearerInterceptor(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Adds the token, on plaintext too: loopback has no TLS, and call credentials would want it."""

    def __init__(self, token: str) -> None:
        """Takes the token as it is."""
        self._header = ("authorization", f"Bearer {token}")

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        """Adds the token to a call."""
        return continuation(self._with_token(details), request)

    def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        """Adds the token to a call that answers with a stream."""
        return continuation(self._with_token(details), request)

    def _with_token(self, given: Any) -> Any:
        metadata = (*(given.metadata or ()), self._header)
        return _Details(
            given.method, given.timeout, metadata, given.credentials, given.wait_for_ready, given.compression
        )
