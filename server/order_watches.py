"""Follows orders for their callers: many watches, one connection that hears of changes, and looks made together."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from domain.failures import DependencyDown
from domain.lifecycle import SETTLED, TRANSITIONS
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_pb2 import Order
from orderflow.orders.v1.order_service_pb2 import WatchOrderRequest, WatchOrderResponse
from server import calls, errors
from server.gathering import Gathering
from server.order_queries import check_order_id, least_revision
from server.tokens import ConsistencyToken
from settings import ServerSettings
from storage.order_history import OrderHistory
from storage.order_notices import OrderNotices
from storage.order_views import OrderView, OrderViews

if TYPE_CHECKING:
    from server.calls import Context

_LOOK_SECONDS: Final = 10.0
"""Every watch looks so often, whatever it hears: a notice may be lost."""
_RETRY_SECONDS: Final = 1.0
_LARGEST_REVISION: Final = 2**63 - 1
_FINAL: Final = SETTLED - {status for status, _ in TRANSITIONS}


class _Watcher:
    """One call: what wakes it, and what ends its waiting."""

    def __init__(self, until: float) -> None:
        self.woken = asyncio.Event()
        self._until = until
        self._waiting: asyncio.Timeout | None = None

    @contextlib.asynccontextmanager
    async def waiting(self, until: float | None = None) -> AsyncIterator[None]:
        """Ends the wait inside with TimeoutError at the watch's limit, an earlier time, or `end`."""
        async with asyncio.timeout_at(self._until if until is None else min(until, self._until)) as self._waiting:
            try:
                yield
            finally:
                self._waiting = None

    def end(self) -> None:
        """Ends this wait and every later one."""
        self._until = 0.0
        if self._waiting is not None:
            with contextlib.suppress(RuntimeError):  # it is ending already
                self._waiting.reschedule(0.0)


class OrderWatches:
    """WatchOrder. `watch` raises CallError."""

    def __init__(
        self, *, views: OrderViews, history: OrderHistory, notices: OrderNotices, settings: ServerSettings
    ) -> None:
        """Collaborators are given; nothing is connected here."""
        self._notices = notices
        self._settings = settings
        self._views: Gathering[str, OrderView] = Gathering(views.get_many)
        self._runs: Gathering[tuple[str, int], list[OrderEvent]] = Gathering(history.runs)
        self._watchers: dict[str, set[_Watcher]] = {}
        self._closed = False

    async def run(self) -> None:
        """Wakes the watches until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._notices.listen(changed=self._wake, missed=self._wake_all))
            while True:
                await asyncio.sleep(_LOOK_SECONDS)
                self._wake_all()

    def close(self) -> None:
        """Ends every watch, and each that comes later: a stop must not wait for them."""
        self._closed = True
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.end()

    async def watch(self, request: WatchOrderRequest, context: "Context") -> AsyncIterator[WatchOrderResponse]:
        """Sends the current state or what is past the token, then each revision, and ends at the first settled one."""
        check_order_id(request.order_id)
        after = least_revision(request.order_id, request.resume_token, "resume_token")
        after = min(after, _LARGEST_REVISION)  # anybody can make a token
        # Before the first look: what changes after it is heard.
        with self._watcher(request.order_id) as watcher:
            if self._closed:
                raise errors.server_stopping()
            view = await self._visible(request.order_id, watcher, context, waits=after > 0)
            if after == 0:
                yield _response(view.order, view.order.revision)
                if view.order.status in SETTLED:
                    return
                after = view.order.revision
            elif view.order.revision <= after and view.order.status in _FINAL:
                return  # the token showed the last state that there will be
            while True:
                for event in await self._next(request.order_id, after, watcher):
                    after = event.revision
                    yield _response(event.order, event.revision)
                    if event.order.status in SETTLED:
                        return

    async def _visible(self, order_id: str, watcher: _Watcher, context: "Context", *, waits: bool) -> OrderView:
        """Returns the order once it is there for the caller; without `waits` it has to be."""
        until = asyncio.get_running_loop().time() + calls.time_left(context, self._settings)
        try:
            async with watcher.waiting(until):
                while True:
                    watcher.woken.clear()
                    view = await self._views.look(order_id)
                    if view is not None and calls.may_see(context, view.caller):
                        if view.is_purged:
                            raise errors.order_purged()
                        return view
                    if not waits:
                        raise errors.order_not_found()
                    await watcher.woken.wait()
        except TimeoutError:
            raise errors.server_stopping() if self._closed else errors.not_there_yet() from None
        except DependencyDown as error:
            raise errors.store_unavailable() from error

    async def _next(self, order_id: str, after: int, watcher: _Watcher) -> list[OrderEvent]:
        """Returns the next revisions, at least one. With PostgreSQL away it waits: nothing is lost by that."""
        try:
            async with watcher.waiting():
                while True:
                    watcher.woken.clear()
                    try:
                        if run := await self._runs.look((order_id, after)):
                            return run
                    except DependencyDown:
                        await asyncio.sleep(_RETRY_SECONDS)
                    else:
                        await watcher.woken.wait()
        except TimeoutError:
            raise errors.server_stopping() if self._closed else errors.watched_long_enough() from None

    @contextlib.contextmanager
    def _watcher(self, order_id: str) -> Iterator[_Watcher]:
        watcher = _Watcher(asyncio.get_running_loop().time() + self._settings.watch_limit_seconds)
        self._watchers.setdefault(order_id, set()).add(watcher)
        try:
            yield watcher
        finally:
            self._watchers[order_id].discard(watcher)
            if not self._watchers[order_id]:
                del self._watchers[order_id]

    def _wake(self, order_ids: Iterable[str]) -> None:
        for order_id in order_ids:
            for watcher in self._watchers.get(order_id, ()):
                watcher.woken.set()

    def _wake_all(self) -> None:
        self._wake(self._watchers)


def _response(order: Order, revision: int) -> WatchOrderResponse:
    return WatchOrderResponse(order=order, resume_token=ConsistencyToken(order.order_id, revision).encode())
