"""Files that are on disk before anything relies on them: JSON lines, each one synced."""

import json
import os
import pathlib
import time
from typing import Any


class Journal:
    """Appends JSON lines durably."""

    def __init__(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, **values: Any) -> None:
        """Appends a line; it is on disk when this returns."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def fault(self, kind: str, target: str, start: float, **details: Any) -> None:
        """Appends a fault that began at `start` and is over now."""
        self.write(kind=kind, target=target, start=start, end=time.time(), **details)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
