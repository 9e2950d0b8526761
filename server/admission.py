"""Limits on what callers may have of a server at once. What is over one is refused before its message is parsed.

Health and reflection are never limited: an overloaded server is not a broken one.
"""

import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from limits import parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from server import calls, errors
from server.errors import CallError
from settings import ServerSettings
from telemetry import metrics

_SHORTEST_RETRY_SECONDS: Final = 0.05


class RateLimit:
    """Calls of each caller in a sliding window, counted by this server alone."""

    def __init__(self, rate: str) -> None:
        """`rate` is as settings.py describes it; empty for no limit."""
        self._limit = parse(rate) if rate else None
        self._rate = rate
        self._window = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def check(self, caller: str, *, outcome: str) -> None:
        """Raises CallError if not even a call that costs one is left."""
        if self._limit is not None and not await self._window.test(self._limit, caller):
            raise await self._refusal(caller, outcome)

    async def take(self, caller: str, cost: int, *, outcome: str) -> None:
        """Takes `cost` off what the caller has left, all or nothing; raises CallError if there is less."""
        if self._limit is None or await self._window.hit(self._limit, caller, cost=cost):
            return
        if cost > self._limit.amount:
            raise errors.rate_limited(outcome=outcome, limit=self._rate, retry_seconds=None)
        raise await self._refusal(caller, outcome)

    async def _refusal(self, caller: str, outcome: str) -> CallError:
        assert self._limit is not None
        window = await self._window.get_window_stats(self._limit, caller)
        retry_seconds = max(window.reset_time - time.time(), _SHORTEST_RETRY_SECONDS)
        return errors.rate_limited(outcome=outcome, limit=self._rate, retry_seconds=retry_seconds)


class Admission(grpc.aio.ServerInterceptor):
    """Innermost: who calls is known by then, and the message is still bytes."""

    def __init__(self, settings: ServerSettings) -> None:
        """Nothing is under way."""
        self._settings = settings
        self._rate = RateLimit(settings.rate_limit)
        self._calls: Counter[str] = Counter()
        self._streams: Counter[str] = Counter()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the methods of our own services in handlers that take bytes, and parse them once let in."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method.lstrip("/")
        if handler is None or not method.startswith("orderflow."):
            return handler
        if handler.unary_unary is not None:
            unary = self._unary(method, handler)
            return grpc.unary_unary_rpc_method_handler(unary, None, handler.response_serializer)
        stream = self._stream(method, handler)
        return grpc.unary_stream_rpc_method_handler(stream, None, handler.response_serializer)

    def _unary(self, method: str, handler: Any) -> Callable[[bytes, Any], Awaitable[Any]]:
        # Counted apart: reads that wait for what is not there yet leave room for orders.
        kind, outcome = ("read", "") if calls.is_read(method) else ("write", "NOT_ACCEPTED")
        is_batch = method.rpartition("/")[2].startswith("Batch")
        parsed = handler.request_deserializer
        respond = handler.unary_unary

        async def admitted(message: bytes, context: Any) -> Any:
            if self._calls[kind] >= self._settings.max_concurrent_calls:
                raise _shed(errors.too_many_calls(outcome=outcome, limit=self._settings.max_concurrent_calls))
            self._calls[kind] += 1
            try:
                request = await self._within_rate(message, parsed, calls.caller(context), outcome, is_batch=is_batch)
                return await respond(request, context)
            finally:
                self._calls[kind] -= 1

        return admitted

    def _stream(self, method: str, handler: Any) -> Callable[[bytes, Any], AsyncIterator[Any]]:
        outcome = "" if calls.is_read(method) else "NOT_ACCEPTED"
        parsed = handler.request_deserializer
        respond = handler.unary_stream

        async def admitted(message: bytes, context: Any) -> AsyncIterator[Any]:
            caller = calls.caller(context)
            most, most_of_caller = self._settings.max_streams, self._settings.max_streams_per_caller
            if self._streams.total() >= most:
                raise _shed(errors.too_many_streams(outcome=outcome, limit=most, of_caller=False))
            if self._streams[caller] >= most_of_caller:
                raise _shed(errors.too_many_streams(outcome=outcome, limit=most_of_caller, of_caller=True))
            self._streams[caller] += 1
            try:
                request = await self._within_rate(message, parsed, caller, outcome)
                async with contextlib.aclosing(respond(request, context)) as answers:
                    async for each in answers:
                        yield each
            finally:
                self._streams[caller] -= 1
                if not self._streams[caller]:
                    del self._streams[caller]

        return admitted

    async def _within_rate(
        self, message: bytes, parsed: Callable[[bytes], Any], caller: str, outcome: str, *, is_batch: bool = False
    ) -> Any:
        """Returns the message, parsed, and has taken what it costs off the caller's rate."""
        try:
            if not is_batch:
                await self._rate.take(caller, 1, outcome=outcome)
                return _parse(message, parsed, outcome)
            await self._rate.check(caller, outcome=outcome)
            request = _parse(message, parsed, outcome)
            await self._rate.take(caller, max(len(request.requests), 1), outcome=outcome)
        except CallError as error:
            if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                _shed(error)
            raise
        return request


def _parse(message: bytes, parsed: Callable[[bytes], Any], outcome: str) -> Any:
    try:
        return parsed(message)
    except DecodeError:
        raise errors.undecodable(outcome=outcome) from None


def _shed(error: CallError) -> CallError:
    metrics.SHED.labels(error.reason).inc()
    return error
