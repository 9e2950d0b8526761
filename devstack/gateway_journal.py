"""The gateway's executions on disk: one JSON line each, there before any answer that tells of it."""

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from workers.gateways.book import ChargeExecuted, Execution, KeyWasClosed, RefundExecuted

_KINDS: dict[str, type[ChargeExecuted | RefundExecuted | KeyWasClosed]] = {
    "charge": ChargeExecuted,
    "refund": RefundExecuted,
    "close": KeyWasClosed,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


class Journal:
    """Executions on disk, one JSON line each. Lines that wait while others are being synced share the next sync."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._path = path
        self._waiting: list[str] = []
        self._appended = 0
        self._durable = 0
        self._writing = asyncio.Lock()
        # One thread, so that a write that was cancelled still goes before the next.
        self._disk = ThreadPoolExecutor(1, "journal")
        self._broken: OSError | None = None

    def read(self) -> list[Execution]:
        """All executions so far. A torn last line, which no one was told of, is cut off."""
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self._path, len(whole))
        executions: list[Execution] = []
        for line in whole.splitlines():
            values = json.loads(line)
            executions.append(_KINDS[values.pop("kind")](**values))
        return executions

    def append(self, execution: Execution) -> None:
        """Put a line in the queue; it is on disk when the next `sync` returns."""
        self._waiting.append(json.dumps({"kind": _NAMES[type(execution)], **asdict(execution)}))
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
