"""Lets calls go on in groups when they come close together: a group shares its look-up and its request to Kafka."""

import asyncio


class Pace:
    """One group at most in so many seconds. Who comes later than that after the last waits for nobody."""

    def __init__(self, seconds: float) -> None:
        """Nobody was let through yet."""
        self._seconds = seconds
        self._next = 0.0
        self._waiting: list[asyncio.Future[None]] = []

    async def turn(self) -> None:
        """Returns when the caller's group goes on."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            now = loop.time()
            if now >= self._next:
                self._next = now + self._seconds
                return
            loop.call_at(self._next, self._let_go)
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _let_go(self) -> None:
        self._next = asyncio.get_running_loop().time() + self._seconds
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():  # a call may be over
                turn.set_result(None)
