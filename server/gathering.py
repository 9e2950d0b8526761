"""Look-ups that are asked for one by one and made many at a time."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from typing import Final, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

_MOST: Final = 1_000


class Gathering(Generic[Key, Value]):
    """Answers with one query all who asked while the query before was under way. Who asks alone waits for nobody."""

    def __init__(self, query: Callable[[Collection[Key]], Awaitable[Mapping[Key, Value]]]) -> None:
        """`query` returns what there is for each key; a key that is missing has nothing."""
        self._query = query
        self._waiting: list[tuple[Key, asyncio.Future[Value | None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def look(self, key: Key) -> Value | None:
        """Returns what a query that starts from now on finds for the key; raises what it raises."""
        future: asyncio.Future[Value | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, future))
        if self._task is None or self._task.done():
            # In an empty context: nothing of the first caller's, such as its trace, is taken for the others'.
            self._task = asyncio.create_task(self._run(), context=contextvars.Context())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
            asking = [(key, future) for key, future in batch if not future.done()]  # a call may be over
            try:
                found = await self._query(list(dict.fromkeys(key for key, _ in asking)))
            except Exception as error:
                for _, future in asking:
                    if not future.done():
                        future.set_exception(error)
            else:
                for key, future in asking:
                    if not future.done():
                        future.set_result(found.get(key))
