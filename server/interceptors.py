"""What every call of our services goes through: metrics, and errors as statuses."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from domain.failures import DependencyDown
from server import calls, errors
from telemetry import logs, metrics

log = logs.get()


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
                async with _answered(method, context):
                    return await unary(request, context)

            return grpc.unary_unary_rpc_method_handler(
                answer, handler.request_deserializer, handler.response_serializer
            )
        stream = handler.unary_stream

        async def stream_answers(request: Any, context: Any) -> AsyncIterator[Any]:
            async with _answered(method, context):
                async for each in stream(request, context):
                    yield each

        return grpc.unary_stream_rpc_method_handler(
            stream_answers, handler.request_deserializer, handler.response_serializer
        )


@contextlib.asynccontextmanager
async def _answered(method: str, context: Any) -> AsyncIterator[None]:
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
        metrics.RPC_IN_FLIGHT.labels(method).dec()
        metrics.RPC_DURATION.labels("grpc", method, code.name).observe(time.perf_counter() - started)
