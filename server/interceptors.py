"""What every call of our services goes through: its span, metrics, and errors as statuses."""

import asyncio
import contextlib
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

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the methods of our own services: unary, and those that answer with a stream."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method.lstrip("/")
        if handler is None or not method.startswith("orderflow."):
            return handler
        if handler.unary_unary is not None:
            unary = handler.unary_unary

            async def answer(request: Any, context: Any) -> Any:
                headers = calls.trace_headers(context)
                with tracing.continued(headers):
                    span = _begun(method)
                    with span.current():
                        async with _answered(method, context, span):
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
            async with _answered(method, context, span):
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


@contextlib.asynccontextmanager
async def _answered(method: str, context: Any, span: Span) -> AsyncIterator[None]:
    started = time.perf_counter()
    metrics.RPC_IN_FLIGHT.labels(method).inc()
    code = grpc.StatusCode.OK
    outcome = "" if calls.is_read(method) else "UNKNOWN"
    try:
        yield
    except errors.CallError as error:
        code = error.code
        await errors.abort(context, error.as_repeat() if calls.was_tried_before(context) else error)
    except DependencyDown:
        code = grpc.StatusCode.UNAVAILABLE
        await errors.abort(context, errors.store_unavailable(outcome=outcome))
    except asyncio.CancelledError:
        code = grpc.StatusCode.CANCELLED
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise  # by the caller, or its deadline
        # Raised by something inside: left alone, grpc would send no status and the caller would hang.
        code = grpc.StatusCode.UNAVAILABLE
        await errors.abort(context, errors.store_unavailable(outcome=outcome))
    except grpc.aio.AbortError:
        raise
    except Exception:
        code = grpc.StatusCode.INTERNAL
        log.exception("server.call.failed", method=method)
        await errors.abort(context, errors.internal(outcome=outcome))
    finally:
        error_type = code.name if code in _SERVER_FAULTS else ""
        metrics.RPC_IN_FLIGHT.labels(method).dec()
        metrics.RPC_DURATION.labels("grpc", method, code.name, error_type).observe(
            time.perf_counter() - started, tracing.exemplar()
        )
        span.set("rpc.response.status_code", code.name)
        if error_type:
            span.failed(error_type)
        span.end()
