"""One process at a time, in a folder that several share."""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def only_one(lock_file: Path, *, leftovers: str, waits: bool = True) -> Iterator[bool]:
    """Yields whether nobody else is at it; the lock ends with its holder, however that ends.

    `leftovers` are folders beside the lock that a process that was killed left: they are removed. With `waits` it is
    always True, in the end.
    """
    with lock_file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        for left in lock_file.parent.glob(leftovers):
            shutil.rmtree(left)
        yield True
