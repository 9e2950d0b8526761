"""Waiting for a condition with a deadline; the tests of child processes have nothing else to synchronise on."""

import time
from collections.abc import Callable


def until(condition: Callable[[], object], what: str, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)
