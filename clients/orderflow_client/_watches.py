"""Following an order over breaks of the stream. No input or output: the clients do that."""

from __future__ import annotations

import random
import time
from typing import Final

import grpc

from orderflow.orders.v1.order_pb2 import Order, OrderStatus
from orderflow.orders.v1.order_service_pb2 import WatchOrderRequest, WatchOrderResponse
from orderflow_client._errors import DeadlineExceeded, OrderflowError, Overloaded, Unavailable

_OPEN: Final = (OrderStatus.ORDER_STATUS_CREATED, OrderStatus.ORDER_STATUS_PROCESSING)
# What something between client and server may end a stream with.
_BREAKS: Final = (
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
# gRPC tries to connect for 20 s: a stream that lived longer had reached a server.
_REACHED_SECONDS: Final = 30.0
_GIVE_UP_SECONDS: Final = 60.0
SETTLE_TIMEOUT: Final = 60.0


def is_settled(order: Order) -> bool:
    """Whether the order is in a state other than CREATED and PROCESSING: its watch ends there."""
    return order.status not in _OPEN


class Watch:
    """Where a watch stands: what to ask for next, and whether to ask again after a break."""

    def __init__(self, order_id: str, resume_token: str, timeout: float | None) -> None:
        self._request = WatchOrderRequest(order_id=order_id, resume_token=resume_token)
        self._end = None if timeout is None else time.monotonic() + timeout
        self._breaks = 0
        self._has_received = False
        self._begun = self._failing_since = time.monotonic()

    def begin(self) -> WatchOrderRequest:
        """Returns the request of the next stream."""
        self._begun = time.monotonic()
        self._has_received = False
        return self._request

    @property
    def was_let_in(self) -> bool:
        """Whether the stream that ended was a server's: a token that it ended for has expired meanwhile."""
        return self._has_received or time.monotonic() - self._begun > _REACHED_SECONDS

    def time_left(self) -> float | None:
        """Returns the seconds until the caller's deadline, None without one."""
        return None if self._end is None else max(self._end - time.monotonic(), 0.0)

    def received(self, response: WatchOrderResponse) -> bool:
        """Takes a response; returns whether it is the last."""
        self._request.resume_token = response.resume_token
        self._breaks = 0
        self._has_received = True
        return is_settled(response.order)

    def broke(self, error: OrderflowError) -> float:
        """Returns seconds to wait before the next stream.

        Raises:
            OrderflowError: it is no use, or no longer.
        """
        now = time.monotonic()
        if self._breaks == 0 or now - self._begun > _REACHED_SECONDS:
            self._breaks, self._failing_since = 0, now
        self._breaks += 1
        if not _is_break(error) or now - self._failing_since > _GIVE_UP_SECONDS:
            raise error
        longest = min(_FIRST_PAUSE * 2**self._breaks, _LONGEST_PAUSE)
        pause = (error.retry_delay or 0) + random.uniform(longest / 2, longest)  # noqa: S311 - spreads callers
        if self._end is not None and now + pause >= self._end:
            raise error if isinstance(error, DeadlineExceeded) else _too_late(error) from error
        return pause


def _is_break(error: OrderflowError) -> bool:
    # A reason is our server's own: it knows what it says.
    return isinstance(error, Unavailable | Overloaded) or (error.code in _BREAKS and not error.reason)


def _too_late(error: OrderflowError) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the order was not settled in time; the last error was {error}", code=grpc.StatusCode.DEADLINE_EXCEEDED
    )
