"""What the frame proxy knows of Kafka's and PostgreSQL's protocols: where a frame ends, and what it is called."""

import asyncio
import struct
from typing import Final, Protocol

KAFKA_NAMES: Final = {
    0: "Produce",
    1: "Fetch",
    3: "Metadata",
    8: "OffsetCommit",
    9: "OffsetFetch",
    10: "FindCoordinator",
    11: "JoinGroup",
    12: "Heartbeat",
    13: "LeaveGroup",
    14: "SyncGroup",
    18: "ApiVersions",
    22: "InitProducerId",
    24: "AddPartitionsToTxn",
    25: "AddOffsetsToTxn",
    26: "EndTxn",
    28: "TxnOffsetCommit",
}
_SSL_REQUEST: Final = 80877103
_GSS_REQUEST: Final = 80877104
_UNTYPED_LIMIT: Final = 64 * 1024


class Dialect(Protocol):
    """One connection's frames: how to read them, and what they are called. `name_*` see every frame once, in order."""

    async def read_request(self, reader: asyncio.StreamReader) -> bytes:
        """Read one frame of the client. Raises asyncio.IncompleteReadError at the end."""
        ...

    async def read_reply(self, reader: asyncio.StreamReader) -> bytes:
        """Read one frame of the server. Raises asyncio.IncompleteReadError at the end."""
        ...

    def refusal(self, request: bytes) -> bytes:
        """What the proxy answers by itself instead of sending the request on, nothing for almost all."""
        ...

    def name_request(self, request: bytes) -> str:
        """The name of a request; empty for what has none."""
        ...

    def name_reply(self, reply: bytes) -> str:
        """The name of the request that a frame answers; empty for what answers none by name."""
        ...


class Kafka:
    """Length-prefixed frames. A reply is known by its request's correlation id."""

    def __init__(self) -> None:
        self._asked: dict[int, str] = {}

    async def read_request(self, reader: asyncio.StreamReader) -> bytes:
        """See Dialect."""
        length = await reader.readexactly(4)
        return length + await reader.readexactly(int.from_bytes(length))

    read_reply = read_request

    def refusal(self, _: bytes) -> bytes:
        """See Dialect."""
        return b""

    def name_request(self, request: bytes) -> str:
        """See Dialect."""
        api_key, _, correlation_id = struct.unpack_from(">hhi", request, 4)
        name = KAFKA_NAMES.get(api_key, str(api_key))
        self._asked[correlation_id] = name
        return name

    def name_reply(self, reply: bytes) -> str:
        """See Dialect."""
        return self._asked.pop(int.from_bytes(reply[4:8], signed=True), "")


class Postgres:
    """Typed frames after an untyped beginning. TLS is refused, so that the frames can be read."""

    def __init__(self) -> None:
        self._has_begun = False

    async def read_request(self, reader: asyncio.StreamReader) -> bytes:
        """See Dialect."""
        if self._has_begun:
            return await self.read_reply(reader)
        length = await reader.readexactly(4)
        if not 8 <= int.from_bytes(length) <= _UNTYPED_LIMIT:
            raise ValueError("this is not PostgreSQL's protocol")
        frame = length + await reader.readexactly(int.from_bytes(length) - 4)
        self._has_begun = not self.refusal(frame)
        return frame

    async def read_reply(self, reader: asyncio.StreamReader) -> bytes:
        """See Dialect."""
        head = await reader.readexactly(5)
        return head + await reader.readexactly(int.from_bytes(head[1:]) - 4)

    def refusal(self, request: bytes) -> bytes:
        """See Dialect."""
        code = int.from_bytes(request[4:8])
        return b"N" if len(request) == 8 and code in (_SSL_REQUEST, _GSS_REQUEST) else b""

    def name_request(self, request: bytes) -> str:
        """The first word of a simple query."""
        return _first_word(request[5:]) if request[:1] == b"Q" else ""

    def name_reply(self, reply: bytes) -> str:
        """The first word of a CommandComplete's tag."""
        return _first_word(reply[5:]) if reply[:1] == b"C" else ""


def _first_word(text: bytes) -> str:
    words = text.rstrip(b"\0").split(None, 1)
    return words[0].rstrip(b";").decode("ascii", "replace").upper() if words else ""
