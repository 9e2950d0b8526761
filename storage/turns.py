"""Turns at something scarce: first come, first served, and a turn that is given up goes to the next in line.

Not asyncio.Semaphore: who waits here asks now and then whether it should go on waiting, without losing its place.
"""

import asyncio
import collections
from collections.abc import Callable


class Turns:
    """So many may have a turn at once."""

    def __init__(self, count: int) -> None:
        """All are free."""
        self._free = count
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()

    @property
    def waiting(self) -> int:
        """Who waits for a turn."""
        return sum(not turn.done() for turn in self._waiting)

    async def take(self, *, seconds: float, goes_on: Callable[[float], bool]) -> None:
        """Waits for a turn, to be given back.

        Raises:
            TimeoutError: `goes_on`, asked every so many seconds with the time of the last asking, says no.
        """
        if self._free:
            self._free -= 1
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        try:
            while not turn.done():
                asked = loop.time()
                await asyncio.wait([turn], timeout=seconds)
                if not turn.done() and not goes_on(asked):
                    raise TimeoutError
        except BaseException:
            if turn.done():
                self.give_back()
            else:
                turn.cancel()
            raise

    def give_back(self) -> None:
        """Ends a turn: the next in line has it at once."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
