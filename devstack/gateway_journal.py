"""What the gateway must not forget, on disk: one JSON line each, there before any answer that tells of it."""

import asyncio
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from workers.gateways.book import ChargeExecuted, Execution, KeyWasClosed, RefundExecuted

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Line = TypeVar("_Line", bound="DataclassInstance")
_KINDS: dict[str, type[Execution]] = {"charge": ChargeExecuted, "refund": RefundExecuted, "close": KeyWasClosed}


class Lines(Generic[_Line]):
    """Dataclasses on disk, one JSON line each. Lines that wait while others are being synced share the next sync."""

    def __init__(self, path: Path, kinds: Mapping[str, type[_Line]]) -> None:
        """`kinds` are the dataclasses by the names that lines have for them."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._path = path
        self._kinds = kinds
        self._names = {kind: name for name, kind in kinds.items()}
        self._waiting: list[str] = []
        self._appended = 0
        self._durable = 0
        self._writing = asyncio.Lock()
        # One thread, so that a write that was cancelled still goes before the next.
        self._disk = ThreadPoolExecutor(1, "journal")
        self._broken: OSError | None = None

    def read(self) -> list[_Line]:
        """All lines so far. A torn last line, which no one was told of, is cut off."""
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self._path, len(whole))
        found: list[_Line] = []
        for line in whole.splitlines():
            values = json.loads(line)
            found.append(self._kinds[values.pop("kind")](**values))
        return found

    def append(self, line: _Line) -> None:
        """Put a line in the queue; it is on disk when the next `sync` returns."""
        self._waiting.append(json.dumps({"kind": self._names[type(line)], **asdict(line)}))
        self._appended += 1

    async def sync(self) -> None:
        """Return when all that was appended so far is on disk."""
        wanted = self._appended
        async with self._writing:
            if self._broken is not None:
                raise self._broken
            if self._durable >= wanted:
                return
            lines, self._waiting = self._waiting, []
            end = self._appended
            try:
                await asyncio.get_running_loop().run_in_executor(self._disk, self._write, lines)
            except OSError as error:
                # Memory is now ahead of the disk: nothing may be answered any more.
                self._broken = error
                raise
            self._durable = end

    def close(self) -> None:
        """Wait for the write under way."""
        self._disk.shutdown()

    def _write(self, lines: list[str]) -> None:
        with self._path.open("a") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())


class Journal(Lines[Execution]):
    """The gateway's executions."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _KINDS)
