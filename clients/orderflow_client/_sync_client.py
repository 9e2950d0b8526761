"""The client for everything but asyncio. What is not input or output is shared with the other one."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc

from orderflow.orders.v1.order_history_pb2 import OrderHistoryEntry
from orderflow.orders.v1.order_pb2 import Money, Order
from orderflow.orders.v1.order_service_pb2 import (
    BatchCreateOrdersRequest,
    CancelOrderRequest,
    CancelOrderResponse,
    CompleteOrderRequest,
    CompleteOrderResponse,
    CreateOrderResponse,
    FindOrdersRequest,
    FoundOrder,
    GetOrderRequest,
    GetOrderResponse,
    ListOrderEventsRequest,
    ListOrderEventsResponse,
    ListOrdersResponse,
    RefundOrderRequest,
    RefundOrderResponse,
    ShipOrderRequest,
    ShipOrderResponse,
    WatchOrderResponse,
)
from orderflow.orders.v1.order_service_pb2_grpc import OrderServiceStub
from orderflow_client._batches import Batch, BatchResult, Progress, batch_results, batches, failed_results
from orderflow_client._channel import DEFAULT_TARGET, DEFAULT_TIMEOUT, channel_options
from orderflow_client._credentials import SyncToken, TokenSource
from orderflow_client._errors import OrderflowError, Unauthenticated, after, errors_by_meaning
from orderflow_client._metadata import Metadata, call_metadata
from orderflow_client._requests import (
    NewOrder,
    OrderFilter,
    batch_get_orders_request,
    create_order_request,
    given_or_new,
    list_orders_request,
    placed_by,
)
from orderflow_client._watches import SETTLE_TIMEOUT, Watch, is_settled

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class SyncOrdersClient:
    """Places and follows orders without asyncio. Make one, share it between threads, and close it.

    Args:
        target: The server's address as gRPC writes it: `host:port`, `dns:///host:port`,
            `ipv4:10.0.0.1:1,10.0.0.2:1` ... Calls go to all its addresses in turn.
        timeout: Seconds that a call, its retries included, may take unless it says otherwise.
        channel_credentials: TLS: see `tls`. Needed for all but loopback.
        token: Bearer token of the caller, or what returns it: asked at the first call, and once more when the server
            refuses what it returned.
        insecure: Allows plaintext to another machine.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        channel_credentials: grpc.ChannelCredentials | None = None,
        token: TokenSource | None = None,
        insecure: bool = False,
    ) -> None:
        options = channel_options(target, channel_credentials, insecure)
        self._timeout = timeout
        self._token = SyncToken(token)
        self._closed = threading.Event()
        self._channel = (
            grpc.insecure_channel(target, options)
            if channel_credentials is None
            else grpc.secure_channel(target, channel_credentials, options)
        )
        self._stub = OrderServiceStub(self._channel)

    @property
    def channel(self) -> grpc.Channel:
        """The connection, for other services of the same server. Tokens and typed errors are not part of it."""
        return self._channel

    def create_order(
        self, *, timeout: float | None = None, metadata: Metadata = (), **order: Unpack[NewOrder]
    ) -> CreateOrderResponse:
        """Places an order: its fields are those of `NewOrder`. When this returns, the order is durable."""
        request = create_order_request(**order)
        return self._call(self._stub.CreateOrder, request, timeout, metadata, placed_by(request))

    def batch_create_orders(
        self, orders: Iterable[NewOrder], *, timeout: float | None = None, metadata: Metadata = ()
    ) -> list[BatchResult]:
        """Places up to 500 orders in one call. Each has a result of its own, in their order; a bad one harms no other.

        Raises:
            OrderflowError: the call as a whole failed; `request_ids` lets you repeat it.
        """
        request = BatchCreateOrdersRequest(requests=[create_order_request(**order) for order in orders])
        placed = placed_by(*request.requests)
        response = self._call(self._stub.BatchCreateOrders, request, timeout, metadata, placed)
        return batch_results(request, response)

    def create_orders(
        self,
        orders: Iterable[NewOrder],
        *,
        batch_size: int = 200,
        concurrency: int = 4,
        on_progress: Callable[[Progress], None] | None = None,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> Iterator[BatchResult]:
        """Places any number of orders and yields a result for each, in their order. Errors are results too.

        Reads `orders` only as fast as results are taken. What the server cannot take for now is sent again a few times.
        Give each order a `request_id` that you find again, and the whole is safe to repeat.

        Args:
            orders: The orders, as `NewOrder`.
            batch_size: Orders in one call, at most 500.
            concurrency: Calls at once.
            on_progress: Called whenever the results of a call are about to be yielded.
            timeout: Seconds that each call may take.
            metadata: Goes along with each call.
        """
        progress = Progress(0, 0)
        under_way: deque[Future[list[BatchResult]]] = deque()
        cut = batches(orders, batch_size)
        more = True
        executor = ThreadPoolExecutor(max(concurrency, 1), "orderflow-create-orders")
        try:
            while more or under_way:
                while more and len(under_way) < max(concurrency, 1):
                    batch = next(cut, None)
                    if batch is None:
                        more = False
                    else:
                        # The trace of the caller is that of the calls.
                        under_way.append(executor.submit(copy_context().run, self._place, batch, timeout, metadata))
                if not under_way:
                    break
                results = under_way.popleft().result()
                progress = progress.after(results)
                if on_progress is not None:
                    on_progress(progress)
                yield from results
        finally:
            executor.shutdown(cancel_futures=True)

    def _place(self, batch: Batch, timeout: float | None, metadata: Metadata) -> list[BatchResult]:
        while True:
            request = batch.request
            placed = placed_by(*request.requests)
            try:
                response = self._call(self._stub.BatchCreateOrders, request, timeout, metadata, placed)
                results = batch_results(request, response)
            except OrderflowError as error:
                results = failed_results(request, error)
            pause = batch.answered(results)
            if pause is None:
                return batch.results
            self._closed.wait(pause)

    def cancel_order(
        self,
        order_id: str,
        *,
        reason: str = "",
        etag: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> CancelOrderResponse:
        """Calls an order off that is not shipped. What was charged is refunded afterwards: `payment_status` tells.

        This and the next three return once the order has decided. A repeat with the same request_id is the same answer.

        Args:
            order_id: The order's identifier.
            reason: Why, UPPER_SNAKE: the order's `failure_reason`. CUSTOMER_REQUEST if not given.
            etag: The order's etag as you know it: if the order has changed since, nothing happens.
            request_id: Same request_id, same answer, however often it is sent. Made for each call when not given.
            timeout: Seconds that the call may take.
            metadata: Goes along with the call.

        Raises:
            IllegalTransition: the order's status does not allow it.
            EtagMismatch: the order has changed.
            OrderflowError: any other failure.
        """
        request = CancelOrderRequest(order_id=order_id, reason=reason, etag=etag, request_id=given_or_new(request_id))
        return self._call(self._stub.CancelOrder, request, timeout, metadata, (request.request_id,))

    def ship_order(
        self,
        order_id: str,
        *,
        carrier: str,
        tracking_code: str = "",
        etag: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> ShipOrderResponse:
        """Records that a paid order was handed to the carrier. For operators. For the rest see `cancel_order`."""
        request = ShipOrderRequest(
            order_id=order_id,
            carrier=carrier,
            tracking_code=tracking_code,
            etag=etag,
            request_id=given_or_new(request_id),
        )
        return self._call(self._stub.ShipOrder, request, timeout, metadata, (request.request_id,))

    def complete_order(
        self,
        order_id: str,
        *,
        etag: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> CompleteOrderResponse:
        """Records that a shipped order was delivered. For operators. For the rest see `cancel_order`."""
        request = CompleteOrderRequest(order_id=order_id, etag=etag, request_id=given_or_new(request_id))
        return self._call(self._stub.CompleteOrder, request, timeout, metadata, (request.request_id,))

    def refund_order(
        self,
        order_id: str,
        *,
        amount: Money | None = None,
        reason: str = "",
        etag: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> RefundOrderResponse:
        """Pays back `amount` of what was charged, or all that is left of it. For operators.

        When this returns the gateway has taken the refund. For the rest see `cancel_order`.

        Raises:
            PreconditionFailed: `reason` is REFUND_TOO_LARGE, CURRENCY_MISMATCH or REFUND_REFUSED.
        """
        request = RefundOrderRequest(
            order_id=order_id, amount=amount, reason=reason, etag=etag, request_id=given_or_new(request_id)
        )
        return self._call(self._stub.RefundOrder, request, timeout, metadata, (request.request_id,))

    def get_order(
        self, order_id: str, *, consistency_token: str = "", timeout: float | None = None, metadata: Metadata = ()
    ) -> GetOrderResponse:
        """Returns an order, never older than the answer that `consistency_token` was in."""
        request = GetOrderRequest(order_id=order_id, consistency_token=consistency_token)
        return self._call(self._stub.GetOrder, request, timeout, metadata)

    def batch_get_orders(
        self,
        order_ids: Iterable[str],
        *,
        consistency_tokens: Mapping[str, str] | None = None,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> list[GetOrderResponse]:
        """Returns up to 500 orders, in the order of their ids: all or none. Consistency tokens go by order id."""
        request = batch_get_orders_request(order_ids, consistency_tokens)
        response = self._call(self._stub.BatchGetOrders, request, timeout, metadata)
        return list(response.orders)

    def list_orders(
        self,
        *,
        page_size: int = 0,
        timeout: float | None = None,
        metadata: Metadata = (),
        **which: Unpack[OrderFilter],
    ) -> Iterator[Order]:
        """Yields all orders that match, newest first: see `OrderFilter`. `timeout` is that of each page."""
        token = ""
        while True:
            page = self.list_orders_page(
                page_size=page_size, page_token=token, timeout=timeout, metadata=metadata, **which
            )
            yield from page.orders
            if not (token := page.next_page_token):
                return

    def list_orders_page(
        self,
        *,
        page_size: int = 0,
        page_token: str = "",
        timeout: float | None = None,
        metadata: Metadata = (),
        **which: Unpack[OrderFilter],
    ) -> ListOrdersResponse:
        """Returns a page of the orders that match; `next_page_token` leads on, with the same filter."""
        request = list_orders_request(page_size, page_token, **which)
        return self._call(self._stub.ListOrders, request, timeout, metadata)

    def find_orders(
        self, identifier: str, *, timeout: float | None = None, metadata: Metadata = ()
    ) -> list[FoundOrder]:
        """Returns the orders that an identifier has to do with, newest first, at most 50. None is no error.

        Args:
            identifier: Of the order, a request, an event, a trace, or of a charge or a refund at the payment gateway.
            timeout: Seconds that the call may take.
            metadata: Goes along with the call.
        """
        response = self._call(self._stub.FindOrders, FindOrdersRequest(id=identifier), timeout, metadata)
        return list(response.orders)

    def list_order_events(
        self, order_id: str, *, page_size: int = 0, timeout: float | None = None, metadata: Metadata = ()
    ) -> Iterator[OrderHistoryEntry]:
        """Yields all that happened to an order, oldest first. `timeout` is that of each page."""
        token = ""
        while True:
            page = self.list_order_events_page(
                order_id, page_size=page_size, page_token=token, timeout=timeout, metadata=metadata
            )
            yield from page.entries
            if not (token := page.next_page_token):
                return

    def list_order_events_page(
        self,
        order_id: str,
        *,
        page_size: int = 0,
        page_token: str = "",
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> ListOrderEventsResponse:
        """Returns a page of what happened to an order; `next_page_token` leads on."""
        request = ListOrderEventsRequest(order_id=order_id, page_size=page_size, page_token=page_token)
        return self._call(self._stub.ListOrderEvents, request, timeout, metadata)

    def watch_order(
        self, order_id: str, *, resume_token: str = "", timeout: float | None = None, metadata: Metadata = ()
    ) -> Iterator[WatchOrderResponse]:
        """Yields the order's current state, then each new one once and in order, and ends at the first settled one.

        When the stream breaks it goes on by itself, without a gap or a repeat; it gives up when no server could be
        reached for a minute.

        Args:
            order_id: The order's identifier.
            resume_token: `resume_token` of an earlier response, or a consistency token: what that showed is left out.
            timeout: Seconds until the order must be settled; no limit if not given.
            metadata: Goes along with each call.
        """
        watch = Watch(order_id, resume_token, timeout)
        token, is_renewed = self._token.get(), False
        while True:
            call = self._stub.WatchOrder(
                watch.begin(), timeout=watch.time_left(), metadata=call_metadata(metadata, token)
            )
            try:
                while (response := _read(call)) is not None:
                    is_last = watch.received(response)
                    yield response
                    if is_last:
                        return  # the server's OK, which may be lost, would say no more
                return
            except Unauthenticated:
                refused, token = token, self._token.get(refused=token)
                if token == refused or (is_renewed and not watch.was_let_in):
                    raise
                is_renewed = True
                continue
            except OrderflowError as error:
                if self._closed.is_set():
                    raise
                pause, is_renewed = watch.broke(error), False
            finally:
                call.cancel()
            self._closed.wait(pause)

    def wait_until_settled(
        self, order_id: str, *, resume_token: str = "", timeout: float = SETTLE_TIMEOUT, metadata: Metadata = ()
    ) -> Order:
        """Returns the order once it is in a state other than CREATED and PROCESSING."""
        if resume_token:  # a watch shows what comes after it, and the order may be settled already
            found = self.get_order(order_id, consistency_token=resume_token, metadata=metadata)
            if is_settled(found.order):
                return found.order
            resume_token = found.consistency_token
        order = Order()
        for response in self.watch_order(order_id, resume_token=resume_token, timeout=timeout, metadata=metadata):
            order = response.order
        return order

    def _call(
        self,
        method: grpc.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        timeout: float | None,
        metadata: Metadata,
        request_ids: tuple[str, ...] = (),
    ) -> _Response:
        end = time.monotonic() + (self._timeout if timeout is None else timeout)
        token = self._token.get()
        try:
            with errors_by_meaning(*request_ids):
                return method(request, timeout=end - time.monotonic(), metadata=call_metadata(metadata, token))
        except Unauthenticated as error:
            first = error
            refused, token = token, self._token.get(refused=token)
            if token == refused:
                raise
        with after(first), errors_by_meaning(*request_ids):
            return method(request, timeout=end - time.monotonic(), metadata=call_metadata(metadata, token))

    def close(self) -> None:
        """Closes the connection. Calls under way are cancelled."""
        self._closed.set()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _read(responses: Iterator[_Response]) -> _Response | None:
    with errors_by_meaning():
        return next(responses, None)
