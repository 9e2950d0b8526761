"""Look-ups that are asked for one by one and made many at a time."""

import asyncio
import collections
import contextvars
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from typing import Final, Generic, TypeVar

from server import calls

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

_MOST: Final = 1_000
"""Keys of a query, but for what the last who joins asks for beyond it."""
_MANY: Final = 5


class Gathering(Generic[Key, Value]):
    """Answers with one query all who asked while the query before was under way. Who asks alone waits for nobody."""

    def __init__(
        self, query: Callable[[Collection[Key]], Awaitable[Mapping[Key, Value]]], *, pause: float = 0.0
    ) -> None:
        """`query` returns what there is for each key; a key that is missing has nothing.

        After a query for many callers the next begins `pause` seconds later at the soonest; after one for few, sooner
        in proportion: who are many gain more by sharing than they lose by waiting.
        """
        self._query = query
        self._pause = pause
        self._next = 0.0
        self._waiting: collections.deque[tuple[Collection[Key], asyncio.Future[Mapping[Key, Value]]]] = (
            collections.deque()
        )
        self._task: asyncio.Task[None] | None = None

    async def look(self, key: Key) -> Value | None:
        """Returns what a query that starts from now on finds for the key; raises what it raises.

        That may be CancelledError although the caller is not cancelled: something inside was.
        """
        return (await self.look_all((key,))).get(key)

    async def look_all(self, keys: Collection[Key]) -> Mapping[Key, Value]:
        """Returns what such a query finds for the keys, and for those that others asked for with it.

        Who has no key goes on with the others, too.
        """
        future: asyncio.Future[Mapping[Key, Value]] = asyncio.get_running_loop().create_future()
        self._waiting.append((keys, future))
        if self._task is None or self._task.done():
            # In an empty context: nothing of the first caller's, such as its trace, is taken for the others'.
            self._task = asyncio.create_task(self._run(), context=contextvars.Context())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._look_together()
        finally:
            for _, future in self._waiting:  # all were looked for, unless this was cancelled
                future.cancel()
            self._waiting.clear()

    async def _look_together(self) -> None:
        loop = asyncio.get_running_loop()
        if self._pause and (early := self._next - loop.time()) > 0:
            await asyncio.sleep(early)
        keys: dict[Key, None] = {}
        asking: list[asyncio.Future[Mapping[Key, Value]]] = []
        while self._waiting and len(keys) < _MOST:
            wanted, future = self._waiting.popleft()
            if not future.done():  # a call may be over
                keys.update(dict.fromkeys(wanted))
                asking.append(future)
        self._next = loop.time() + self._pause * min(len(asking) / _MANY, 1)
        try:
            found = await self._query(list(keys)) if keys else {}
        except asyncio.CancelledError:
            for future in asking:
                future.cancel()
            if calls.is_cancelled():
                raise
        except Exception as error:
            for future in asking:
                if not future.done():
                    future.set_exception(error)
        else:
            for future in asking:
                if not future.done():
                    future.set_result(found)
