"""Many orders at once: how they are cut into batches, and what became of each."""

from __future__ import annotations

import random
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from orderflow.orders.v1.order_service_pb2 import (
    BatchCreateOrdersRequest,
    BatchCreateOrdersResponse,
    CreateOrderRequest,
    CreateOrderResponse,
)
from orderflow_client._errors import OrderflowError, Outcome, Overloaded, Unavailable, error_of_one, error_of_status
from orderflow_client._requests import NewOrder, create_order_request, placed_by

MOST_ORDERS: Final = 500
# The server takes 4 MiB in a request.
_MOST_BYTES: Final = 3 * 1024 * 1024
_ATTEMPTS: Final = 4
_FIRST_PAUSE: Final = 0.2
# A rate may be one of each day; who has used it up is told so instead of waiting.
_LONGEST_PAUSE: Final = 60.0


@dataclass(frozen=True)
class BatchResult:
    """What became of one order of many: `created` or `error`."""

    request_id: str
    """That of the order: sent again with the same content, it is the same order."""
    created: CreateOrderResponse | None = None
    """What `create_order` would have returned."""
    error: OrderflowError | None = None
    """What `create_order` would have raised."""

    def get(self) -> CreateOrderResponse:
        """Returns `created`, or raises `error`."""
        if self.error is not None:
            raise self.error
        assert self.created is not None
        return self.created


class Progress(NamedTuple):
    """How far `create_orders` is."""

    created: int
    failed: int

    @property
    def done(self) -> int:
        """Orders whose result is known."""
        return self.created + self.failed

    def after(self, results: Iterable[BatchResult]) -> Progress:
        """Returns how far it is with these results."""
        errors = [result.error is not None for result in results]
        return Progress(self.created + errors.count(False), self.failed + errors.count(True))


def batch_results(request: BatchCreateOrdersRequest, response: BatchCreateOrdersResponse) -> list[BatchResult]:
    """Returns a result for each order of the request."""
    return [
        BatchResult(asked.request_id, error=error_of_status(result.error, *placed_by(asked)))
        if result.HasField("error")
        else BatchResult(asked.request_id, created=result.created)
        for asked, result in zip(request.requests, response.results, strict=True)
    ]


def failed_results(request: BatchCreateOrdersRequest, error: OrderflowError) -> list[BatchResult]:
    """Returns the results of a call that ended with an error: it is that of each order of the request."""
    return [BatchResult(asked.request_id, error=error_of_one(error, asked.request_id)) for asked in request.requests]


class Batch:
    """Orders on their way. Those that the server could not take for now are sent again, a few times."""

    def __init__(self, requests: list[CreateOrderRequest]) -> None:
        self._requests = requests
        self._results: dict[int, BatchResult] = {}
        self._open = list(range(len(requests)))
        self._attempts = 0

    @property
    def request(self) -> BatchCreateOrdersRequest:
        """What is to be sent now."""
        return BatchCreateOrdersRequest(requests=[self._requests[index] for index in self._open])

    @property
    def results(self) -> list[BatchResult]:
        """The results so far, in the order of the orders."""
        return [self._results[index] for index in sorted(self._results)]

    def answered(self, results: list[BatchResult]) -> float | None:
        """Takes the results of what was sent; returns seconds to wait before sending the rest, None for no rest."""
        self._attempts += 1
        self._results.update(zip(self._open, results, strict=True))
        if self._attempts == _ATTEMPTS:
            return None
        later = [index for index in self._open if _is_for_later(self._results[index].error)]
        self._open = later
        if not later:
            return None
        asked = max(error.retry_delay or 0 for index in later if (error := self._results[index].error) is not None)
        return asked + random.uniform(0, _FIRST_PAUSE * 3**self._attempts)  # noqa: S311 - spreads callers


def _is_for_later(error: OrderflowError | None) -> bool:
    # An order that may have been accepted is left to the caller: a later "not accepted" would not speak of this try.
    return (
        isinstance(error, Unavailable | Overloaded)
        and error.safe_to_repeat
        and error.outcome is Outcome.NOT_ACCEPTED
        and (error.retry_delay or 0) <= _LONGEST_PAUSE
    )


class _Cutter:
    """Cuts orders into batches: by number, by size, and so that no request_id is twice in one."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._requests: list[CreateOrderRequest] = []
        self._ids: set[str] = set()
        self._bytes = 0

    def add(self, order: NewOrder) -> Batch | None:
        """Adds an order; returns the batch that is full without it."""
        request = create_order_request(**order)
        size = request.ByteSize()
        full = (
            len(self._requests) == self._size
            or request.request_id in self._ids
            or bool(self._requests and self._bytes + size > _MOST_BYTES)
        )
        batch = self.rest() if full else None
        self._requests.append(request)
        self._ids.add(request.request_id)
        self._bytes += size
        return batch

    def rest(self) -> Batch | None:
        """Returns what is left, None for nothing."""
        batch = Batch(self._requests) if self._requests else None
        self._requests, self._ids, self._bytes = [], set(), 0
        return batch


def batches(orders: Iterable[NewOrder], size: int) -> Iterator[Batch]:
    """Cuts orders into batches, as they are asked for."""
    cutter = _Cutter(checked_size(size))
    for order in orders:
        if (batch := cutter.add(order)) is not None:
            yield batch
    if (batch := cutter.rest()) is not None:
        yield batch


async def async_batches(orders: AsyncIterable[NewOrder] | Iterable[NewOrder], size: int) -> AsyncIterator[Batch]:
    """Cuts orders into batches, as they are asked for."""
    if isinstance(orders, Iterable):
        for batch in batches(orders, size):
            yield batch
        return
    cutter = _Cutter(checked_size(size))
    async for order in orders:
        if (full := cutter.add(order)) is not None:
            yield full
    if (rest := cutter.rest()) is not None:
        yield rest


def checked_size(size: int) -> int:
    """Returns the size of batches.

    Raises:
        ValueError: the server would refuse it.
    """
    if not 1 <= size <= MOST_ORDERS:
        raise ValueError(f"batch_size must be 1 to {MOST_ORDERS}")
    return size
