"""Gathers concurrent calls, so that many cost the database what one does."""

import asyncio
import collections
import contextvars
import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

from domain.failures import DependencyDown

Call = TypeVar("Call")
Answer = TypeVar("Answer")


@dataclasses.dataclass(frozen=True, slots=True)
class _Waiting(Generic[Call, Answer]):
    call: Call
    answer: "asyncio.Future[Answer]"


class Gathering(Generic[Call, Answer]):
    """Answers calls together, in order of arrival: while one gathering is answered, the next fills up.

    A gathering that fails is answered again in halves, down to one by one: a bad call fails alone. Only a dependency
    that is down is nobody's fault, and fails them all, those that still wait included: one after the other they would
    wait for each of its time-outs.
    """

    def __init__(
        self,
        together: Callable[[Sequence[Call]], Awaitable[Sequence[Answer]]],
        *,
        most: int,
        weigh: Callable[[Call], int],
        heaviest: int,
        unheard: Callable[[Sequence[tuple[Call, Answer]]], Awaitable[None]] | None = None,
    ) -> None:
        """`together` returns an answer for each call; all of it has an effect, or, if it raises, nothing.

        A gathering has at most `most` calls that weigh at most `heaviest`; a call that is heavier goes alone.
        `unheard` is told the answers whose callers were cancelled meanwhile, before the next gathering. Must not raise.
        """
        self._together = together
        self._most = most
        self._weigh = weigh
        self._heaviest = heaviest
        self._unheard = unheard
        self._waiting: collections.deque[_Waiting[Call, Answer]] = collections.deque()
        self._running: asyncio.Task[None] | None = None

    async def ask(self, call: Call) -> Answer:
        """Returns the call's answer. Cancelled before its gathering began, the call is never made.

        Raises:
            Exception: whatever `together` raises for this call alone.
            DependencyDown: from `together`, for whichever calls.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(call, answer))
        if self._running is None:
            # A task of its own, so that no caller that is cancelled takes the others with it; in an empty context, so
            # that nothing of the first caller's, such as what its log lines carry, is taken for the others'.
            self._running = asyncio.create_task(self._run(), context=contextvars.Context())
        return await answer

    async def _run(self) -> None:
        gathered: list[_Waiting[Call, Answer]] = []
        try:
            while gathered := self._next():
                await self._answer(gathered)
        finally:
            self._running = None
            for each in (*gathered, *self._waiting):  # all are answered, unless this or something inside was cancelled
                each.answer.cancel()
            self._waiting.clear()

    def _next(self) -> list[_Waiting[Call, Answer]]:
        gathered: list[_Waiting[Call, Answer]] = []
        weight = 0
        while self._waiting and len(gathered) < self._most:
            if self._waiting[0].answer.done():  # its caller was cancelled
                self._waiting.popleft()
                continue
            weight += self._weigh(self._waiting[0].call)
            if gathered and weight > self._heaviest:
                break
            gathered.append(self._waiting.popleft())
        return gathered

    async def _answer(self, gathered: Sequence[_Waiting[Call, Answer]]) -> None:
        try:
            answers = await self._together([each.call for each in gathered])
        except DependencyDown as down:
            _fail(gathered, down)
            _fail(self._waiting, down)
            self._waiting.clear()
            return
        except Exception as error:
            if len(gathered) == 1:
                _fail(gathered, error)
                return
        else:
            unheard: list[tuple[Call, Answer]] = []
            for each, answer in zip(gathered, answers, strict=True):
                if each.answer.done():
                    unheard.append((each.call, answer))
                else:
                    each.answer.set_result(answer)
            if unheard and self._unheard is not None:
                await self._unheard(unheard)
            return
        middle = len(gathered) // 2
        await self._answer(gathered[:middle])
        await self._answer(gathered[middle:])


def _fail(gathered: Iterable[_Waiting[Call, Answer]], error: Exception) -> None:
    for each in gathered:
        if not each.answer.done():
            each.answer.set_exception(error)
