"""Lets a call in: who calls, may it, and only then what it says."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
import grpc.aio

from server import calls, errors, identity, scopes
from server.bearer_tokens import BearerTokens, Refused
from server.identity import Caller
from settings import ClientCertificateSettings

if TYPE_CHECKING:
    from server.calls import Context

Authenticate = Callable[["Context"], Awaitable[Caller]]
"""Tells who calls. Raises Refused."""

_T = TypeVar("_T")
_ENDED: Final = object()


def by_token(tokens: BearerTokens) -> Authenticate:
    """Callers are who their token says."""

    async def caller(context: "Context") -> Caller:
        given = context.invocation_metadata() or ()
        return await tokens.caller([value for key, value in given if key == "authorization"])

    return caller


def by_certificate(settings: ClientCertificateSettings) -> Authenticate:
    """Callers are who their client certificate says."""

    async def caller(context: "Context") -> Caller:
        found = identity.certificate_caller(context.auth_context(), settings)
        if found is None:
            raise Refused("certificate_without_name")
        return found

    return caller


class CallerInterceptor(grpc.aio.ServerInterceptor):
    """Stands before every method but health. Admission, inside it, parses what a caller that was let in says."""

    def __init__(self, authenticate: Authenticate | None, *, reflects: bool = True) -> None:
        """Without `authenticate` everybody is LOCAL and may call everything, reflection only if it `reflects`."""
        self._authenticate = authenticate
        self._reflects = reflects

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the three kinds of methods that we have: unary, answering with a stream, and reflection's."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method.lstrip("/")
        if handler is None or method in scopes.OPEN:
            return handler
        if handler.unary_unary is not None:

            async def unary(request: Any, context: Any) -> Any:
                await self._let_in(method, context)
                return await handler.unary_unary(request, context)

            return grpc.unary_unary_rpc_method_handler(unary, handler.request_deserializer, handler.response_serializer)
        if handler.unary_stream is not None:

            async def answers(request: Any, context: Any) -> AsyncIterator[Any]:
                caller = await self._let_in(method, context)
                stream = handler.unary_stream(request, context)
                async with contextlib.aclosing(stream):
                    async for answer in _until_expired(stream, caller, method):
                        yield answer

            return grpc.unary_stream_rpc_method_handler(
                answers, handler.request_deserializer, handler.response_serializer
            )

        async def reflected(requests: Any, context: Any) -> AsyncIterator[Any]:
            try:
                await self._let_in(method, context)
            except errors.CallError as error:  # CallInterceptor lets reflection pass by
                await errors.abort(context, error)
            async for answer in handler.stream_stream(requests, context):
                yield answer

        return grpc.stream_stream_rpc_method_handler(
            reflected, handler.request_deserializer, handler.response_serializer
        )

    async def _let_in(self, method: str, context: "Context") -> Caller:
        if self._authenticate is None:
            if scopes.REQUIRED.get(method) == scopes.ADMIN and not self._reflects:
                raise errors.insufficient_scope(scopes.ADMIN)
            return identity.LOCAL
        try:
            caller = await self._authenticate(context)
        except Refused:
            raise errors.unauthenticated(outcome=_outcome(method)) from None
        required = scopes.REQUIRED.get(method, "none")
        if not scopes.allow(caller.scopes, required):
            raise errors.insufficient_scope(required, outcome=_outcome(method))
        identity.set_current(caller)
        return caller


def _outcome(method: str) -> str:
    return "" if calls.is_read(method) or scopes.REQUIRED.get(method) == scopes.ADMIN else "NOT_ACCEPTED"


async def _until_expired(stream: AsyncIterator[_T], caller: Caller, method: str) -> AsyncIterator[_T]:
    """Passes a stream on until its caller's credential expires.

    Raises:
        CallError: it has expired.
    """
    ends = None if caller.expires is None else asyncio.get_running_loop().time() + caller.expires - time.time()
    while True:
        try:
            # Around each step and not around the whole: a timeout that fires while gRPC sends would end without status.
            async with asyncio.timeout_at(ends) as limit:
                answer: Any = await anext(stream, _ENDED)
        except TimeoutError:
            if not limit.expired():
                raise
            raise errors.unauthenticated(outcome="" if calls.is_read(method) else "UNKNOWN") from None
        if answer is _ENDED:
            return
        yield answer
