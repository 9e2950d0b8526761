"""Loopback ports: choosing free ones, and saying clearly when a wanted one is taken."""

import contextlib
import fcntl
import functools
import os
import random
import socket
import tempfile
from pathlib import Path

from devstack.errors import DevstackError

LOOPBACK = "127.0.0.1"
# Below the range from which systems take the local ends of outgoing connections (Linux: 32768 and up): a port chosen
# here is not lost to a passing client before its server binds it.
_CHOICE = range(15_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Return `count` different ports that nothing listens on at the moment.

    No other process of this user that chooses so gets them while this one lives: neither before its servers bind them
    nor while one of those is being restarted.
    """
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        for port in random.sample(_CHOICE, len(_CHOICE)):
            with contextlib.suppress(OSError):
                held.enter_context(_listen(port))
                _claim(port)
                ports.append(port)
            if len(ports) == count:
                return ports
    raise DevstackError(f"no {count} free ports between {_CHOICE.start} and {_CHOICE.stop}: stop other programs")


def _claim(port: int) -> None:
    """Lock the port's byte of the file until this process ends; OSError when another process has it."""
    fcntl.lockf(_claims(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)


@functools.cache
def _claims() -> int:
    """Open the user's file of chosen ports, once: such locks end with the first close of their file."""
    return os.open(Path(tempfile.gettempdir(), f"orderflow-ports-{os.getuid()}"), os.O_RDWR | os.O_CREAT, 0o600)


def require_free(port: int, purpose: str, setting: str) -> None:
    """Raise DevstackError when something listens on the port.

    Args:
        port: the port a server is about to bind on loopback.
        purpose: who wants it, for the message ("gRPC").
        setting: the setting that chooses another one, for the message.
    """
    try:
        _listen(port).close()
    except PermissionError as error:
        raise DevstackError(f"port {port} ({purpose}) is not for this user; set {setting} above 1023") from error
    except OSError as error:
        raise DevstackError(
            f"port {port} ({purpose}) is in use on {LOOPBACK}; set {setting} to a free port or stop the other process"
        ) from error


def _listen(port: int) -> socket.socket:
    """Bind and listen, as a server would.

    SO_REUSEADDR passes over connections of a server that has just stopped; on Linux it still refuses a port that has a
    listener, and listening finds one that is only bound. SO_REUSEPORT, which hides a clash, stays off.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener
