"""What every call of our services goes through: its span, metrics, and errors as statuses."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio
from opentelemetry.trace import SpanKind

from domain.failures import DependencyDown
from server import calls, errors
from telemetry import logs, metrics, tracing
from telemetry.tracing import Span

log = logs.get()

_SERVER_FAULTS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Statuses that are an error of the server, by OpenTelemetry's conventions."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Outermost. Health and reflection pass it by: they stream in ways that a wrapper breaks."""

    def __init__(self) -> None:
        """No method was called yet."""
        self._handlers: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the methods of our own services: unary, and those that answer with a stream.

        Each once, with what the interceptors inside make of it: gRPC asks anew for every call.
        """
        method = handler_call_details.method.lstrip("/")
        if (wrapped := self._handlers.get(method)) is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None or not method.startswith("orderflow."):
            return handler
        return self._handlers.setdefault(method, self._wrapped(method, handler))

    def _wrapped(self, method: str, handler: Any) -> Any:
        if handler.unary_unary is not None:
            unary = handler.unary_unary

            async def answer(request: Any, context: Any) -> Any:
                headers = calls.trace_headers(context)
                with tracing.continued(headers):
                    span = _begun(method)
                    with span.current():
                        async with _Answering(method, context, span):
                            return await unary(request, context)

            return grpc.unary_unary_rpc_method_handler(
                answer, handler.request_deserializer, handler.response_serializer
            )
        stream = handler.unary_stream

        async def stream_answers(request: Any, context: Any) -> AsyncIterator[Any]:
            # The span is that of the opening: it ends with the first answer. And it is the current one while an answer
            # is made, never while one is taken: that may happen elsewhere.
            headers = calls.trace_headers(context)
            with tracing.continued(headers):
                span = _begun(method)
            async with _Answering(method, context, span):
                answers = aiter(stream(request, context))
                while True:
                    with tracing.continued(headers), span.current():
                        try:
                            each = await anext(answers)
                        except StopAsyncIteration:
                            return
                    span.end()
                    yield each

        return grpc.unary_stream_rpc_method_handler(
            stream_answers, handler.request_deserializer, handler.response_serializer
        )


def _begun(method: str) -> Span:
    return tracing.begin(method, SpanKind.SERVER, {"rpc.system.name": "grpc", "rpc.method": method})


class _Answering:
    """Measures a call, and ends one that fails with a status.

    A class where a generator would do: every call comes by here, and it costs a quarter.
    """

    __slots__ = ("_code", "_context", "_method", "_span", "_started")

    def __init__(self, method: str, context: Any, span: Span) -> None:
        self._method = method
        self._context = context
        self._span = span
        self._code = grpc.StatusCode.OK
        self._started = time.perf_counter()

    async def __aenter__(self) -> None:
        metrics.of(metrics.RPC_IN_FLIGHT, self._method).inc()

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if error is not None:
                await self._refuse(error)
        finally:
            self._end()

    async def _refuse(self, error: BaseException) -> None:
        """Raises AbortError with the status that stands for the error; returns where the error itself is to go on."""
        outcome = "" if calls.is_read(self._method) else "UNKNOWN"
        match error:
            case errors.CallError():
                told = error.as_repeat() if calls.was_tried_before(self._context) else error
            case DependencyDown():
                told = errors.store_unavailable(outcome=outcome)
            case asyncio.CancelledError():
                self._code = grpc.StatusCode.CANCELLED
                if calls.is_cancelled():
                    return  # by the caller, or its deadline
                # Raised by something inside: left alone, grpc would send no status and the caller would hang.
                told = errors.store_unavailable(outcome=outcome)
            case grpc.aio.AbortError():
                return
            case Exception():
                log.exception("server.call.failed", method=self._method, exc_info=error)
                told = errors.internal(outcome=outcome)
            case _:
                return
        self._code = told.code
        await errors.abort(self._context, told)

    def _end(self) -> None:
        code = self._code
        error_type = code.name if code in _SERVER_FAULTS else ""
        metrics.of(metrics.RPC_IN_FLIGHT, self._method).dec()
        metrics.of(metrics.RPC_DURATION, "grpc", self._method, code.name, error_type).observe(
            time.perf_counter() - self._started, tracing.exemplar()
        )
        self._span.set("rpc.response.status_code", code.name)
        if error_type:
            self._span.failed(error_type)
        self._span.end()
