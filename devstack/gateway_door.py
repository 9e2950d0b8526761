"""The way in to the gateway, shut during an outage that refuses."""

import asyncio
import contextlib
import socket
import struct
from typing import NoReturn

from aiohttp import web

from devstack.gateway_faults import Faults
from devstack.ports import LOOPBACK

_BACKLOG = 1024


class Door:
    """The listener that callers reach."""

    def __init__(self, runner: web.AppRunner, port: int) -> None:
        self._runner = runner
        self._site: web.TCPSite | None = None
        self.port = port

    async def open(self) -> None:
        """Listen."""
        if self._site is None:
            self._site = web.TCPSite(self._runner, LOOPBACK, self.port, backlog=_BACKLOG)
            await self._site.start()
            self.port = self._runner.addresses[0][1]

    async def shut(self) -> None:
        """Stop listening and reset what is connected."""
        if self._site is not None:
            await self._site.stop()
            self._site = None
            for connection in self._runner.server.connections if self._runner.server is not None else ():
                reset(connection.transport)


class Outages:
    """The faults in force, with the door following their windows."""

    def __init__(self, door: Door) -> None:
        self.faults = Faults()
        self._door = door
        self._put_at = 0.0
        self._moving = asyncio.Lock()
        self._changed = asyncio.Event()

    async def put(self, faults: Faults) -> None:
        """Replace the faults. When it returns the door is as they say."""
        self.faults = faults
        self._put_at = asyncio.get_running_loop().time()
        await self._move_door()
        self._changed.set()

    @property
    def is_hanging(self) -> bool:
        """Whether nobody is answered now."""
        return self.faults.outage("hang", self._elapsed())

    async def follow(self) -> NoReturn:
        """Open and shut the door as windows begin and end."""
        while True:
            self._changed.clear()
            await self._move_door()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.faults.next_change(self._elapsed())):
                    await self._changed.wait()

    async def _move_door(self) -> None:
        async with self._moving:
            await (self._door.shut() if self.faults.outage("refuse", self._elapsed()) else self._door.open())

    def _elapsed(self) -> float:
        return asyncio.get_running_loop().time() - self._put_at


def reset(transport: asyncio.BaseTransport | None) -> None:
    """Cut a caller off with a TCP reset; what is written afterwards goes nowhere."""
    if isinstance(transport, asyncio.Transport):
        connected: socket.socket | None = transport.get_extra_info("socket")
        if connected is not None and not transport.is_closing():
            # Close without lingering: the peer is told that the connection is lost, not that it ended.
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
