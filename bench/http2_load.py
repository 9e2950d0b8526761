"""Calls a gRPC server as fast as it answers: `python -m bench.http2_load ADDRESS METHOD MESSAGES`.

A gRPC client takes as much of the machine as the server that it measures. This one knows only what a unary call looks
like on the wire (RFC 9113, and gRPC over HTTP2), and takes a few microseconds for a call. MESSAGES is a file of
serialized requests, each after its length (4 bytes, big-endian), that are sent once each, or in turns with --again.
Prints a line when the warm-up is over, one when the time is, and then what it has seen, as JSON.
"""

import argparse
import json
import pathlib
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

from bench.results import percentile, percentiles

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
_MOST_WINDOW: Final = 2**31 - 1
_FIRST_WINDOW: Final = 65_535
_FRAME: Final = struct.Struct(">BHBBI")  # length (in two parts), type, flags, stream
_STREAM_WINDOW: Final = 4 * 2**20


class LoadError(Exception):
    """The server, or this client, does not keep to the protocol."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Returns a frame as it is sent."""
    return _FRAME.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def _text(value: bytes) -> bytes:
    assert len(value) < 127
    return bytes([len(value)]) + value


def first_headers(authority: str, path: str) -> bytes:
    """Returns the headers of a connection's first call, which the server remembers (RFC 7541)."""
    return b"".join(
        (
            b"\x83\x86",  # POST, http
            b"\x44" + _text(path.encode()),
            b"\x41" + _text(authority.encode()),
            b"\x40" + _text(b"te") + _text(b"trailers"),
            b"\x5f" + _text(b"application/grpc"),
            b"\x7a" + _text(b"orderflow-bench"),
            b"\x40" + _text(b"grpc-timeout") + _text(b"20S"),
        )
    )


NEXT_HEADERS: Final = bytes([0x83, 0x86, *range(0x80 | 67, 0x80 | 61, -1)])
"""Those of every later call, by what the server remembers: the last one is number 62."""


class Connection:
    """One connection with as many calls under way as it is given. `took` are the latencies of the calls that ended."""

    def __init__(self, address: str, path: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._headers = first_headers(address, path)
        self._stream = 1
        self._window = _FIRST_WINDOW
        self._began: dict[int, float] = {}
        self._has_data: set[int] = set()
        self._received = b""
        self._out = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            frame(SETTINGS, 0, 0, struct.pack(">HI", 4, _STREAM_WINDOW)),
            frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", _MOST_WINDOW - _FIRST_WINDOW)),
        ]
        self.took: list[float] = []
        self.failed = 0

    @property
    def under_way(self) -> int:
        """Calls that were begun and have not ended."""
        return len(self._began)

    def call(self, message: bytes) -> None:
        """Begins a call; `flush` sends it."""
        stream = self._stream
        self._window -= 5 + len(message)
        if self._window < 0 or len(message) > 16_000:
            raise LoadError("the server does not read as fast as calls are sent; use fewer callers or smaller messages")
        self._out.append(frame(HEADERS, END_HEADERS, stream, self._headers))
        self._out.append(frame(DATA, END_STREAM, stream, struct.pack(">BI", 0, len(message)) + message))
        self._headers = NEXT_HEADERS
        self._stream = stream + 2
        self._began[stream] = time.perf_counter()

    def flush(self) -> None:
        """Sends what was begun."""
        if self._out:
            self.socket.sendall(b"".join(self._out))
            self._out.clear()

    def receive(self) -> int:
        """Reads what has arrived and returns how many calls it ended."""
        data = self._received + self.socket.recv(262_144)
        if len(data) == len(self._received):
            raise LoadError("the server closed the connection")
        at, ended, now = 0, 0, time.perf_counter()
        while len(data) - at >= 9:
            high, low, kind, flags, stream = _FRAME.unpack_from(data, at)
            end = at + 9 + (high << 16 | low)
            if end > len(data):
                break
            if kind == DATA:
                self._has_data.add(stream)
            elif kind == HEADERS:
                if flags & END_STREAM:
                    self._end(stream, now)
                    ended += 1
            elif kind == RST_STREAM:
                if stream in self._began:
                    self._has_data.discard(stream)
                    self._end(stream, now)
                    ended += 1
            else:
                self._control(kind, flags, stream, data[at + 9 : end])
            at = end
        self._received = data[at:]
        return ended

    def _end(self, stream: int, now: float) -> None:
        began = self._began.pop(stream)
        if stream in self._has_data:  # a failed call has trailers alone
            self._has_data.remove(stream)
            self.took.append(now - began)
        else:
            self.failed += 1

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self._out.append(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._out.append(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and not stream:
            self._window += int.from_bytes(payload, "big")
        elif kind == GOAWAY:
            raise LoadError(f"the server sends callers away: {payload[8:]!r}")


def read_messages(path: pathlib.Path) -> list[bytes]:
    """Returns the messages of a file."""
    data, at, messages = path.read_bytes(), 0, []
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        messages.append(data[at + 4 : end])
        at = end
    return messages


def write_messages(path: pathlib.Path, messages: Iterator[bytes]) -> None:
    """Writes a file that `read_messages` reads."""
    with path.open("wb") as file:
        for message in messages:
            file.write(struct.pack(">I", len(message)) + message)


class Load:
    """Calls from so many callers, each of which waits for its answer before it calls again."""

    def __init__(self, address: str, path: str, messages: Iterator[bytes], *, connections: int, callers: int) -> None:
        self._connections = [Connection(address, path) for _ in range(connections)]
        self._messages = messages
        self._callers = callers
        self._selector = selectors.DefaultSelector()
        for each in self._connections:
            self._selector.register(each.socket, selectors.EVENT_READ, each)

    def begin(self) -> None:
        """Has every caller call."""
        for number in range(self._callers):
            self._connections[number % len(self._connections)].call(next(self._messages))
        for each in self._connections:
            each.flush()

    def go_on(self, until: float, *, calls: bool = True) -> None:
        """Answers each end with another call until a time; without `calls` until all have ended."""
        while time.perf_counter() < until and (calls or any(each.under_way for each in self._connections)):
            for key, _ in self._selector.select(0.05):
                connection: Connection = key.data
                for _ in range(connection.receive()):
                    if calls:
                        connection.call(next(self._messages))
                connection.flush()

    def taken(self) -> tuple[list[float], int]:
        """Returns the latencies of the calls that have ended since the last time, and how many failed."""
        took = [seconds for each in self._connections for seconds in each.took]
        failed = sum(each.failed for each in self._connections)
        for each in self._connections:
            each.took, each.failed = [], 0
        return took, failed


def _in_turns(messages: list[bytes]) -> Iterator[bytes]:
    while True:
        yield from messages


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the load and returns what it has seen."""
    messages = read_messages(options.messages)
    source = _in_turns(messages) if options.again else iter(messages)
    load = Load(options.address, options.method, source, connections=options.connections, callers=options.callers)
    load.begin()
    load.go_on(time.perf_counter() + options.warmup)
    before, failed_before = load.taken()
    began, spent = time.perf_counter(), time.process_time()
    print("begins", flush=True)  # noqa: T201 - for who started it
    load.go_on(began + options.seconds)
    took, failed = load.taken()
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    print("ends", flush=True)  # noqa: T201
    load.go_on(time.perf_counter() + 30, calls=False)
    after, failed_after = load.taken()
    took.sort()
    return {
        "calls": len(took),
        "failed": failed_before + failed + failed_after,
        "answered": len(before) + len(took) + len(after),
        "seconds": seconds,
        "core_share": spent / seconds,
        "p50": percentile(took, 0.5) if took else 0.0,
        "p99": percentile(took, 0.99) if took else 0.0,
        "percentiles": percentiles(took),
    }


def main() -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.http2_load", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("address")
    parser.add_argument("method", help="/package.Service/Method")
    parser.add_argument("messages", type=pathlib.Path)
    parser.add_argument("--again", action="store_true", help="begin anew when all were sent")
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--warmup", type=float, default=3)
    try:
        print(json.dumps(measure(parser.parse_args())), flush=True)  # noqa: T201
    except (LoadError, OSError) as error:
        sys.exit(f"http2_load: {error}")
    except StopIteration:
        sys.exit("http2_load: there are too few messages for so long")


if __name__ == "__main__":
    main()
