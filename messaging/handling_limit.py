"""The hard limit of a handling: what asyncio.timeout does, with one timer for all that have the same limit."""

import asyncio
from typing import Any


class HandlingLimit:
    """Cancels tasks that take longer than `seconds`. Every record has one, and hardly any ever needs it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # In the order of their ends, since all have the same limit.
        self._ends: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, task: "asyncio.Task[Any]") -> None:
        """Has the task cancelled when its time is over, unless `end` comes before."""
        loop = asyncio.get_running_loop()
        self._ends[task] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look)

    def end(self, task: "asyncio.Task[Any]") -> bool:
        """Ends the task's limit. True: it was over, and the cancellation that came of it is taken back."""
        self._ends.pop(task, None)
        if task not in self._late:
            return False
        self._late.discard(task)
        task.uncancel()
        return True

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        for task, end in list(self._ends.items()):
            if end > loop.time():
                self._timer = loop.call_at(end, self._look)
                return
            del self._ends[task]
            self._late.add(task)
            task.cancel()
