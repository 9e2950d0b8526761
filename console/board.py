"""What the first page shows, read once for all who look at it with the same credentials."""

import asyncio
import dataclasses
import datetime
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import grpc

from console import stuck
from console.api import Api, ApiError
from console.flow import Flow, Funnel
from console.scraping import Scraper
from console.stuck import Found, StuckOrders
from console.workers import Worker, workers

if TYPE_CHECKING:
    from orderflow.operations.v1.dead_letter_service_pb2 import DeadLetterSummary

_STUCK_SECONDS: Final = 10.0
REFUSALS: Final = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Known(Generic[_T]):
    """What a source said last, and since when it says nothing more, in seconds since 1970.

    Attributes:
        value: None until it said something.
        unknown_since: When it was first found not to answer; None while it does.
        problem: What was wrong then.
    """

    value: _T | None = None
    unknown_since: float | None = None
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The board at a time, in seconds since 1970."""

    at: float
    workers: Sequence[Worker]
    funnel: Funnel | None
    reasons: "Known[Sequence[DeadLetterSummary]]"
    stuck: Known[StuckOrders]

    @property
    def dead(self) -> int | None:
        """How many dead letters are unresolved; None if that is not known."""
        if self.reasons.value is None or self.reasons.unknown_since is not None:
            return None
        return sum(each.count for each in self.reasons.value)

    @property
    def breakers(self) -> dict[str, str]:
        """Every circuit breaker and its state."""
        return {name: state for worker in self.workers for name, state in worker.breakers.items()}


class Board:
    """Reads the board with the credentials of one operator."""

    def __init__(self, api: Api, scraper: Scraper, flow: Flow, *, overdue: datetime.timedelta) -> None:
        """Reads nothing yet."""
        self._api = api
        self._scraper = scraper
        self._flow = flow
        self._overdue = overdue
        self._reasons: Known[Sequence[DeadLetterSummary]] = Known()
        self._stuck: Known[Found] = Known()
        self._looked_at = -_STUCK_SECONDS

    async def read(self) -> Snapshot:
        """Returns the board as it stands now. What does not answer is unknown in it.

        Raises:
            ApiError: the operator may not see it.
        """
        now = time.time()
        shown = workers(self._scraper.processes, now)
        self._reasons = await _asked(self._reasons, self._api.dead_letter_reasons, now)
        is_away = self._reasons.unknown_since is not None or self._stuck.unknown_since is not None
        if is_away or now - self._looked_at >= _STUCK_SECONDS:
            self._looked_at = now
            self._stuck = await _asked(self._stuck, self._find, now)
        found, at = self._stuck.value, datetime.datetime.fromtimestamp(now, datetime.UTC)
        explained = None if found is None else found.explained(shown, at)
        known = Known(explained, self._stuck.unknown_since, self._stuck.problem)
        return Snapshot(now, shown, self._flow.funnel(), self._reasons, known)

    async def _find(self) -> Found:
        return await stuck.find(self._api, overdue=self._overdue, now=datetime.datetime.now(datetime.UTC))


class Boards:
    """One board for each set of credentials, read again and again for as long as somebody looks at it."""

    def __init__(self, new: Callable[[Api], Board], scraper: Scraper, *, refresh_seconds: float) -> None:
        """`new` makes a board."""
        self._new = new
        self._scraper = scraper
        self._refresh = refresh_seconds
        self._shared: dict[str, _Shared] = {}

    async def look(self, key: str, api: Api) -> Snapshot:
        """Returns the board once.

        Raises:
            ApiError: the operator may not see it.
        """
        shared = self._shared.get(key)
        if shared is not None and shared.last is not None:
            return shared.last
        return await self._new(api).read()

    async def watch(self, key: str, api: Api) -> AsyncIterator[Snapshot]:
        """Yields the board again and again: always the newest, so that a slow reader misses some and holds up nobody.

        Raises:
            ApiError: the operator may not see it, or no longer.
        """
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = _Shared(self._new(api), self._refresh)
        shared.viewers += 1
        self._scraper.watched(1)
        try:
            seen = None
            while True:
                seen = await shared.newer_than(seen)
                yield seen
        finally:
            self._scraper.watched(-1)
            shared.viewers -= 1
            if not shared.viewers:
                if self._shared.get(key) is shared:
                    del self._shared[key]
                await shared.close()


class _Shared:
    """A board that several look at."""

    def __init__(self, board: Board, refresh_seconds: float) -> None:
        self.viewers = 0
        self.last: Snapshot | None = None
        self._next: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(board, refresh_seconds))

    async def newer_than(self, seen: Snapshot | None) -> Snapshot:
        if self.last is not None and self.last is not seen:
            return self.last
        return await asyncio.shield(self._next)

    async def _read(self, board: Board, refresh_seconds: float) -> None:
        while True:
            try:
                self.last = await board.read()
            except Exception as error:  # ends all who watch, each with it
                self._next.set_exception(error)
                self._next.exception()  # nobody may be waiting
                return
            reached, self._next = self._next, asyncio.get_running_loop().create_future()
            reached.set_result(self.last)
            await asyncio.sleep(refresh_seconds)

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])


async def _asked(before: Known[_T], ask: Callable[[], Awaitable[_T]], now: float) -> Known[_T]:
    try:
        return Known(await ask())
    except ApiError as error:
        if error.code in REFUSALS:
            raise
        return Known(before.value, before.unknown_since or now, str(error))
