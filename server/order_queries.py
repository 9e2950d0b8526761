"""Reads orders from the read model. A caller sees its own, and nothing tells another's from one that is not there."""

import asyncio
import contextlib
import datetime
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Final

from google.protobuf.timestamp_pb2 import Timestamp

from domain.failures import DependencyDown
from domain.identifiers import is_canonical_uuid
from domain.validation import Violation
from orderflow.orders.v1.order_pb2 import OrderStatus
from orderflow.orders.v1.order_service_pb2 import (
    BatchGetOrdersRequest,
    BatchGetOrdersResponse,
    FindOrdersRequest,
    FindOrdersResponse,
    FoundOrder,
    GetOrderRequest,
    GetOrderResponse,
    ListOrderEventsRequest,
    ListOrderEventsResponse,
    ListOrdersRequest,
    ListOrdersResponse,
)
from server import calls, errors, history_entries, page_tokens
from server.errors import CallError
from server.gathering import Gathering
from server.page_tokens import Position
from server.tokens import ConsistencyToken, InvalidTokenError
from settings import ServerSettings
from storage.order_history import HistoryPosition, OrderHistory
from storage.order_views import ListFilter, ListPosition, OrderView, OrderViews

if TYPE_CHECKING:
    from server.calls import Context

_FIRST_LOOK_SECONDS: Final = 0.01
_SLOWEST_LOOK_SECONDS: Final = 0.1
_LARGEST_BATCH: Final = 500
_LONGEST_ID: Final = 255
_MOST_FOUND: Final = 50
_LARGEST_ANSWER: Final = 3 * 2**20
"""Bytes of orders on a page, more than one order apart: callers take 4 MiB unless they are told otherwise."""

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_LATEST: Final = datetime.datetime.max.replace(tzinfo=datetime.UTC)
_NO_ID: Final = uuid.UUID(int=0)


class OrderQueries:
    """GetOrder and its like. Methods raise CallError."""

    def __init__(self, *, views: OrderViews, history: OrderHistory, settings: ServerSettings) -> None:
        """Collaborators are given; nothing is connected here."""
        self._views = views
        self._awaited: Gathering[str, OrderView] = Gathering(views.get_many)
        self._history = history
        self._settings = settings

    async def get(self, request: GetOrderRequest, context: "Context") -> GetOrderResponse:
        """Returns an order, no older than the token says."""
        async with self._within_deadline(context, errors.not_there_yet):
            check_order_id(request.order_id)
            least = least_revision(request.order_id, request.consistency_token, "consistency_token")
            views = await self._visible({request.order_id: least}, context)
        return _response(views[request.order_id])

    async def get_batch(self, request: BatchGetOrdersRequest, context: "Context") -> BatchGetOrdersResponse:
        """Returns many orders, all or none."""
        async with self._within_deadline(context, errors.not_there_yet):
            if not 1 <= len(request.requests) <= _LARGEST_BATCH:
                raise errors.invalid([Violation("requests", f"must be 1 to {_LARGEST_BATCH}")])
            wanted: dict[str, int] = {}
            for number, each in enumerate(request.requests):
                check_order_id(each.order_id, f"requests[{number}].order_id")
                field = f"requests[{number}].consistency_token"
                least = least_revision(each.order_id, each.consistency_token, field)
                wanted[each.order_id] = max(least, wanted.get(each.order_id, 0))
            views = await self._visible(wanted, context)
        return BatchGetOrdersResponse(orders=[_response(views[each.order_id]) for each in request.requests])

    async def list(self, request: ListOrdersRequest, context: "Context") -> ListOrdersResponse:
        """Lists orders, newest first."""
        caller = calls.caller(context)
        size = page_tokens.page_size(request)
        which = _filter(request, caller, calls.visible_owner(context))
        async with self._within_deadline(context, errors.store_unavailable):
            found = await self._views.page(which, size=size + 1)
        response = ListOrdersResponse()
        bytes_so_far = 0
        for position, view in found[:size]:
            bytes_so_far += view.order.ByteSize()
            if response.orders and bytes_so_far > _LARGEST_ANSWER:
                break
            response.orders.append(view.order)
            last = Position(position.create_time, 0, str(position.order_id))
        if len(response.orders) < len(found):
            response.next_page_token = page_tokens.encode(request, caller, last)
        return response

    async def find(self, request: FindOrdersRequest, context: "Context") -> FindOrdersResponse:
        """Finds the orders that an identifier has to do with."""
        text = request.id.strip()
        if not 1 <= len(text) <= _LONGEST_ID or not text.isprintable():
            raise errors.invalid([Violation("id", f"must be 1 to {_LONGEST_ID} printable characters")])
        async with self._within_deadline(context, errors.store_unavailable):
            found = await self._views.find(text, owner=calls.visible_owner(context), most=_MOST_FOUND)
        return FindOrdersResponse(orders=[FoundOrder(order_id=each.order_id, kind=each.kind) for each in found])

    async def history(self, request: ListOrderEventsRequest, context: "Context") -> ListOrderEventsResponse:
        """Lists what happened to an order, oldest first."""
        caller = calls.caller(context)
        check_order_id(request.order_id)
        size = page_tokens.page_size(request)
        begins = page_tokens.decode(request, caller)
        after = HistoryPosition(*begins) if begins else None
        async with self._within_deadline(context, errors.store_unavailable):
            await self._visible({request.order_id: 0}, context)
            found = await self._history.page(request.order_id, size=size + 1, after=after)
        response = ListOrderEventsResponse(entries=[history_entries.entry(row) for row in found[:size]])
        if len(found) > size:
            last = found[size - 1].position
            response.next_page_token = page_tokens.encode(
                request, caller, Position(last.time, last.revision, last.entry_id)
            )
        return response

    @contextlib.asynccontextmanager
    async def _within_deadline(self, context: "Context", too_late: Callable[[], CallError]) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(calls.time_left(context, self._settings)):
                yield
        except TimeoutError:
            raise too_late() from None
        except DependencyDown as error:
            raise errors.store_unavailable() from error

    async def _visible(self, wanted: Mapping[str, int], context: "Context") -> dict[str, OrderView]:
        """Returns the orders that the caller may see, once each has the revision wanted; 0 is any.

        Raises:
            CallError: one for which no revision is wanted is not there, or one was purged.
        """
        seen: dict[str, OrderView] = {}
        pause = _FIRST_LOOK_SECONDS
        found: Mapping[str, OrderView] = await self._views.get_many(list(wanted))
        while True:
            if any(view.is_purged and calls.may_see(context, view.caller) for view in found.values()):
                raise errors.order_purged()
            seen |= {
                order_id: view
                for order_id, view in found.items()
                if calls.may_see(context, view.caller)
                and view.order.revision >= wanted[order_id]
                and not view.is_purged
            }
            missing = [order_id for order_id in wanted if order_id not in seen]
            if not missing:
                return seen
            if not wanted[missing[0]]:
                raise errors.order_not_found()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _SLOWEST_LOOK_SECONDS)
            # All who wait look together: they may be as many as there are calls.
            together = await self._awaited.look_all(missing)
            found = {order_id: together[order_id] for order_id in missing if order_id in together}


def check_order_id(order_id: str, field: str = "order_id", *, outcome: str = "") -> None:
    """Raises CallError unless it is an order's id as we write it."""
    if not is_canonical_uuid(order_id):
        violation = Violation(field, "must be the lower-case UUID that CreateOrder returned")
        raise errors.invalid([violation], outcome=outcome)


def least_revision(order_id: str, token: str, field: str) -> int:
    """Returns the revision that a token stands for, 0 for no token.

    Raises:
        CallError: it is no token, or another order's.
    """
    if not token:
        return 0
    try:
        decoded = ConsistencyToken.decode(token)
    except InvalidTokenError:
        raise errors.invalid([Violation(field, "must be one that an earlier answer returned")]) from None
    if decoded.order_id != order_id:
        raise errors.invalid([Violation(field, "must be of the order asked for")])
    return decoded.revision


def _response(view: OrderView) -> GetOrderResponse:
    token = ConsistencyToken(view.order.order_id, view.order.revision).encode()
    return GetOrderResponse(order=view.order, consistency_token=token)


def _filter(request: ListOrdersRequest, caller: str, owner: str | None) -> ListFilter:
    """Returns what a page of the request has.

    Raises:
        CallError: the request is not valid.
    """
    violations = []
    if len(request.user_id) > 128 or "\x00" in request.user_id:
        violations.append(Violation("user_id", "must have at most 128 characters, none of them a control character"))
    known = set(OrderStatus.values()) - {OrderStatus.ORDER_STATUS_UNSPECIFIED}
    violations += [
        Violation(f"statuses[{number}]", "must be a status of this version")
        for number, status in enumerate(request.statuses)
        if status not in known
    ]
    violations += [
        Violation(name, "must be a time between 1970 and 9999")
        for name in ("created_from", "created_before")
        if not _is_storable(getattr(request, name))
    ]
    if violations:
        raise errors.invalid(violations)
    before = ListPosition(_micros(request.created_before) if request.HasField("created_before") else _LATEST, _NO_ID)
    begins = page_tokens.decode(request, caller)
    if begins is not None:
        if not is_canonical_uuid(begins.entry_id):
            raise page_tokens.foreign_token()
        before = min(before, ListPosition(begins.time, uuid.UUID(begins.entry_id)))
    return ListFilter(
        caller=owner,
        user_id=request.user_id or None,
        statuses=set(request.statuses) or OrderStatus.values(),
        created_from=_micros(request.created_from),
        before=before,
    )


def _is_storable(time: Timestamp) -> bool:
    return 0 <= time.seconds < 253_402_300_799 and 0 <= time.nanos < 10**9


def _micros(time: Timestamp) -> datetime.datetime:
    """Returns the time, rounded up: orders stand at whole microseconds, and those before it stay before it."""
    return _EPOCH + datetime.timedelta(seconds=time.seconds, microseconds=-(-time.nanos // 1000))
