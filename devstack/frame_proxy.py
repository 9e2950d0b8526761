"""A TCP proxy on loopback that knows the frames of Kafka and of PostgreSQL, and loses or holds the one it is told to.

    async with FrameProxy(Kafka(), upstream_port=broker_port, port=proxy_port) as proxy:
        held = proxy.hold("EndTxn")            # the next one; nth=3 is the third from now
        await held.struck.wait()               # it is here, and the client waits
        held.reset_client()                    # the client gives up; the upstream connection stays
        await held.release()                   # sent on, on that same connection; returns when it is answered

Requests are known by name (Kafka: `frame_dialects.KAFKA_NAMES`; PostgreSQL: COMMIT, BEGIN, ... sent as simple queries).
Rules:

    hold        keeps a request, and all that follows it on its connection, until it is released
    reset       resets the connection instead of sending the request on
    lose_reply  sends it on, waits for the reply and resets the connection instead of handing it over
    mute_reply  as lose_reply, but the client hears nothing at all until it gives up
    hold_reply  keeps the reply, and all that follows it, until it is released

A connection whose client is gone is kept upstream while something is held on it: what was sent may still arrive, late.
For Kafka the broker has to advertise the proxy's port (`KafkaBroker(..., proxied=...)`).
"""

import asyncio
import collections
import contextlib
import enum
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Final

from devstack.frame_dialects import Dialect
from devstack.ports import LOOPBACK


class _Action(enum.Enum):
    HOLD = enum.auto()
    RESET = enum.auto()
    LOSE_REPLY = enum.auto()
    MUTE_REPLY = enum.auto()
    HOLD_REPLY = enum.auto()


_ON_REQUEST: Final = (_Action.HOLD, _Action.RESET)


class Rule:
    """One frame that something is to happen to, once.

    Attributes:
        struck: set when the frame is here. For replies that means: the server has done what was asked.
        answered: set when the server's reply to the frame has come, or never will.
        reply: that reply; empty when there is none.
    """

    def __init__(self, name: str, nth: int, action: _Action, where: Callable[[bytes], bool] | None) -> None:
        self.struck = asyncio.Event()
        self.answered = asyncio.Event()
        self.reply = b""
        self._name = name
        self._left = nth
        self._action = action
        self._where = where
        self._released = asyncio.Event()
        self._connection: _Connection | None = None

    async def release(self) -> bytes:
        """Let what is held go on, and return the reply to it when it is there; empty when the connection ended."""
        self._released.set()
        await self.answered.wait()
        return self.reply

    def reset_client(self) -> None:
        """Reset the client's connection, as if the network had; the upstream one is kept while something is held."""
        assert self._connection is not None, "it has not struck"
        self._connection.reset_client()

    def _answer(self, reply: bytes) -> None:
        self.reply = reply
        self.answered.set()

    def _takes(self, connection: "_Connection", name: str, frame: bytes, *, is_request: bool) -> bool:
        if self.struck.is_set() or name != self._name or is_request != (self._action in _ON_REQUEST):
            return False
        if self._where is not None and not self._where(frame):
            return False
        self._left -= 1
        if self._left > 0:
            return False
        self._connection = connection
        self.struck.set()
        return True


class FrameProxy:
    """Forwards connections, with rules. Rules count from the moment they are made.

    Args:
        dialect: makes the reader of one connection's frames: `Kafka` or `Postgres`.
        upstream_port: where the server listens on loopback.
        port: where to listen; 0 takes a free one.
    """

    def __init__(self, dialect: Callable[[], Dialect], *, upstream_port: int, port: int = 0) -> None:
        self.port = port
        self.seen: collections.Counter[str] = collections.Counter()
        self._dialect = dialect
        self._upstream_port = upstream_port
        self._rules: list[Rule] = []
        self._server: asyncio.Server | None = None
        self._connections: dict[_Connection, asyncio.Task[None]] = {}
        self._failures: list[BaseException] = []

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, LOOPBACK, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def aclose(self) -> None:
        """Stop listening and drop all connections, with what is held. Raises what went wrong in one of them."""
        assert self._server is not None
        self._server.close()
        tasks = list(self._connections.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()
        if self._failures:
            raise self._failures[0]

    async def __aenter__(self) -> "FrameProxy":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def hold(self, name: str, *, nth: int = 1, where: Callable[[bytes], bool] | None = None) -> Rule:
        """Keep the nth request of the name from now on (of those `where` takes, if given) until it is released."""
        return self._rule(name, nth, _Action.HOLD, where)

    def reset(self, name: str, *, nth: int = 1, where: Callable[[bytes], bool] | None = None) -> Rule:
        """Reset the connection instead of sending the nth request on: the server does not do it."""
        return self._rule(name, nth, _Action.RESET, where)

    def lose_reply(self, name: str, *, nth: int = 1) -> Rule:
        """Reset the connection instead of handing over the nth reply: the server has done it."""
        return self._rule(name, nth, _Action.LOSE_REPLY, None)

    def mute_reply(self, name: str, *, nth: int = 1) -> Rule:
        """Hand over neither the nth reply nor anything after it; the connection stays until the client gives up."""
        return self._rule(name, nth, _Action.MUTE_REPLY, None)

    def hold_reply(self, name: str, *, nth: int = 1) -> Rule:
        """Keep the nth reply, and what follows it, until it is released."""
        return self._rule(name, nth, _Action.HOLD_REPLY, None)

    def _rule(self, name: str, nth: int, action: _Action, where: Callable[[bytes], bool] | None) -> Rule:
        rule = Rule(name, nth, action, where)
        self._rules.append(rule)
        return rule

    def _struck(self, connection: "_Connection", name: str, frame: bytes, *, is_request: bool) -> Rule | None:
        if is_request and name:
            self.seen[name] += 1
        taken = [rule for rule in self._rules if rule._takes(connection, name, frame, is_request=is_request)]
        return taken[0] if taken else None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, self._dialect(), reader, writer)
        task = asyncio.create_task(connection.run(self._upstream_port))
        self._connections[connection] = task
        task.add_done_callback(lambda _: self._ended(connection, task))

    def _ended(self, connection: "_Connection", task: "asyncio.Task[None]") -> None:
        del self._connections[connection]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failures.append(error)


class _Connection:
    """A client's connection and its twin upstream."""

    def __init__(
        self, proxy: FrameProxy, dialect: Dialect, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._dialect = dialect
        self._reader = reader
        self._writer = writer
        self._awaited: list[Rule] = []

    async def run(self, upstream_port: int) -> None:
        """Forward until either side ends, and what was held and released is answered."""
        async with contextlib.AsyncExitStack() as ends:
            ends.push_async_callback(_close, self._writer)
            try:
                reader, writer = await asyncio.open_connection(LOOPBACK, upstream_port)
            except OSError:
                self.reset_client()
                return
            ends.push_async_callback(_close, writer)
            requests = asyncio.create_task(self._forward_requests(writer))
            replies = asyncio.create_task(self._forward_replies(reader))
            try:
                await asyncio.wait((requests, replies), return_when=asyncio.FIRST_COMPLETED)
                if self._awaited and not replies.done():
                    last = asyncio.create_task(self._awaited[-1].answered.wait())
                    await asyncio.wait((replies, last), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for rule in self._awaited:
                    rule.answered.set()
                requests.cancel()
                replies.cancel()
                results = await asyncio.gather(requests, replies, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def reset_client(self) -> None:
        """Close the client's side with a TCP reset."""
        connected: socket.socket | None = self._writer.get_extra_info("socket")
        if connected is not None and not self._writer.transport.is_closing():
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def _forward_requests(self, upstream: asyncio.StreamWriter) -> None:
        with _until_closed():
            while True:
                request = await self._dialect.read_request(self._reader)
                if refusal := self._dialect.refusal(request):
                    self._writer.write(refusal)
                    continue
                name = self._dialect.name_request(request)
                rule = self._proxy._struck(self, name, request, is_request=True)
                if rule is not None:
                    if rule._action is _Action.RESET:
                        self.reset_client()
                        return
                    self._awaited.append(rule)
                    await rule._released.wait()
                upstream.write(request)
                await upstream.drain()

    async def _forward_replies(self, upstream: asyncio.StreamReader) -> None:
        is_muted = False
        with _until_closed():
            while True:
                reply = await self._dialect.read_reply(upstream)
                name = self._dialect.name_reply(reply)
                for rule in self._awaited:
                    if rule._name == name and rule._released.is_set() and not rule.answered.is_set():
                        rule._answer(reply)
                rule_struck = self._proxy._struck(self, name, reply, is_request=False)
                if rule_struck is not None:
                    rule_struck._answer(reply)
                    if rule_struck._action is _Action.LOSE_REPLY:
                        self.reset_client()
                        return
                    if rule_struck._action is _Action.HOLD_REPLY:
                        await rule_struck._released.wait()
                    is_muted = is_muted or rule_struck._action is _Action.MUTE_REPLY
                if not is_muted and not self._writer.is_closing():
                    self._writer.write(reply)
                    with contextlib.suppress(OSError):  # a client that has gone: what it asked for is still awaited
                        await self._writer.drain()


@contextlib.contextmanager
def _until_closed() -> Iterator[None]:
    with contextlib.suppress(asyncio.IncompleteReadError, OSError):
        yield


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
