"""Which delivered records of one partition are done, and what to commit for it.

Records finish out of order. Committed is the offset of the first delivered record that is not done, together with a
bitmap of the done ones past it, as the commit's metadata. So a restart repeats only what was not done.

Invariants:
- every offset below the committed one is done;
- a done offset is in the bitmap until the committed offset has passed it;
- offsets have holes (transaction markers, aborted records): "next" is the next delivered record, never offset + 1.
"""

import base64
import collections
from typing import Final

MAX_SPAN: Final = 20_000
"""Offsets from the oldest delivered record that is not passed to the newest.

Their bitmap has 3,336 characters, and Kafka takes 4,096.
"""

_VERSION: Final = "1:"


class Window:
    """The state of one assignment of one partition."""

    def __init__(self, committed: int, metadata: str = "") -> None:
        """Restores what was committed. Metadata of another version, or none, means that nothing past it is done."""
        self.committed = committed
        self._done = _decode(committed, metadata)
        self._pending: collections.deque[int] = collections.deque()
        self._open: set[int] = set()
        self._next = committed

    @property
    def unfinished(self) -> int:
        """How many delivered records are not done."""
        return len(self._open)

    def awaits(self, offset: int) -> bool:
        """Whether the record was delivered and is not done."""
        return offset in self._open

    def deliver(self, offset: int) -> bool:
        """Notes that a record was delivered. False: it was done before, skip it."""
        self._next = offset + 1
        if offset not in self._done:
            self._pending.append(offset)
            self._open.add(offset)
            return True
        if self._pending:
            self._pending.append(offset)
        else:
            self._done.discard(offset)
        return False

    def finish(self, offset: int) -> None:
        """Notes that a delivered record is done: its outputs go into the next transaction."""
        self._done.add(offset)
        self._open.discard(offset)

    def takes(self, offset: int) -> bool:
        """Whether a record may be delivered now: past MAX_SPAN the bitmap would not fit into the commit."""
        return not self._pending or offset - self._pending[0] < MAX_SPAN

    def advance(self, position: int | None = None) -> tuple[int, str]:
        """Returns the offset and metadata to commit now.

        `position` is the consumer's, past markers behind the last delivered record; it counts when all are done.
        """
        while self._pending and self._pending[0] in self._done:
            self._done.discard(self._pending.popleft())
        if self._pending:
            self.committed = self._pending[0]
        else:
            self.committed = max(self._next, position or 0)
            self._done = {offset for offset in self._done if offset >= self.committed}
        return self.committed, _encode(self.committed, self._done)


def _encode(committed: int, done: set[int]) -> str:
    bits = 0
    for offset in done:
        if offset >= committed:
            bits |= 1 << (offset - committed)
    if not bits:
        return ""
    return _VERSION + base64.b64encode(bits.to_bytes((bits.bit_length() + 7) // 8, "little")).decode()


def _decode(committed: int, metadata: str) -> set[int]:
    if not metadata.startswith(_VERSION):
        return set()
    try:
        raw = base64.b64decode(metadata.removeprefix(_VERSION), validate=True)
    except ValueError:
        return set()
    return {
        committed + 8 * index + bit for index, byte in enumerate(raw) if byte for bit in range(8) if byte >> bit & 1
    }
