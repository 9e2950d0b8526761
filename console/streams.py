"""Server-sent events: a bounded number of streams, heartbeats, and an end when the reader or the process goes."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from starlette.responses import PlainTextResponse, Response, StreamingResponse

_HEARTBEAT_SECONDS: Final = 15.0
_RETRY_SECONDS: Final = "5"


class Streams:
    """All streams of the process."""

    def __init__(self, most: int, *, heartbeat_seconds: float = _HEARTBEAT_SECONDS) -> None:
        """Lets so many be open at once."""
        self._most = most
        self._heartbeat = heartbeat_seconds
        self._closing = asyncio.Event()
        self._ending: set[asyncio.Task[None]] = set()
        self.open = 0

    def respond(self, messages: AsyncGenerator[str, None]) -> Response:
        """Returns a response that sends each message, HTML, as it comes, and the event `end` when there are no more.

        Past the limit it is 503: the page stays as it is, and the browser asks again.
        """
        if self.open >= self._most or self._closing.is_set():
            return PlainTextResponse(
                "too many pages are open at once", status_code=503, headers={"retry-after": _RETRY_SECONDS}
            )
        return StreamingResponse(
            self._events(messages), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
        )

    def close(self) -> None:
        """Ends them all, and refuses new ones."""
        self._closing.set()

    async def _events(self, messages: AsyncGenerator[str, None]) -> AsyncIterator[str]:
        closing = asyncio.create_task(self._closing.wait())
        following: asyncio.Task[str | None] | None = None
        self.open += 1
        try:
            while True:
                following = following or asyncio.create_task(_next(messages))
                await asyncio.wait((following, closing), timeout=self._heartbeat, return_when=asyncio.FIRST_COMPLETED)
                if closing.done():
                    return
                if not following.done():
                    yield ": still here\n\n"
                    continue
                message, following = following.result(), None
                if message is None:
                    yield "event: end\ndata: end\n\n"
                    return
                yield "".join(f"data: {line}\n" for line in message.splitlines()) + "\n"
        finally:
            self.open -= 1
            closing.cancel()
            # In a task of its own: a reader that left cancels whatever is awaited here, again and again.
            ending = asyncio.create_task(_end(messages, following))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)


async def _next(messages: AsyncIterator[str]) -> str | None:
    return await anext(messages, None)


async def _end(messages: AsyncGenerator[str, None], following: "asyncio.Task[str | None] | None") -> None:
    if following is not None:
        following.cancel()
        await asyncio.wait([following])
    await messages.aclose()
