"""Lets aiokafka read records whose header names are not UTF-8.

Kafka takes any bytes for a header's name, aiokafka decodes them strictly and raises out of `getmany`, at the same
offset for ever: one such record would stop every group that reads its topic. Here bytes that are no text become `?`,
and the record reaches the worker. Rests on private parts of aiokafka, whose version is pinned for it.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final, SupportsIndex

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords

_LENGTH_AT: Final = slice(8, 12)
_OVERHEAD: Final = 12
_MAGIC_AT: Final = 16


def read_any_header_name() -> None:
    """Makes every consumer of the process do so, from its next fetch on."""
    fetcher.MemoryRecords = _TolerantRecords


class _TolerantRecords:
    """What a fetch brought for one partition, batch by batch."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        self._records = MemoryRecords(data)
        self.has_next = self._records.has_next
        self.size_in_bytes = self._records.size_in_bytes

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        raw = memoryview(self._data)[self._position :]
        length = _OVERHEAD + int.from_bytes(raw[_LENGTH_AT], "big")
        self._position += length
        return _TolerantBatch(batch, raw[:length]) if raw[_MAGIC_AT] == 2 else batch


class _TolerantBatch:
    """A batch that is read anew, slower and with `?`, from the first record that aiokafka cannot read."""

    def __init__(self, batch: Any, raw: memoryview) -> None:
        self._batch = batch
        self._raw = raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)  # of a control batch, whose one record has no headers

    def __iter__(self) -> Iterator[Any]:
        read = 0
        try:
            for record in self._batch:
                yield record
                read += 1
        except (UnicodeDecodeError, CorruptRecordException):
            again = iter(_DefaultRecordBatchPy(self._raw))
            again._buffer = _Replacing(again._buffer)
            yield from islice(again, read, None)


class _Replacing(bytearray):
    """Bytes whose parts decode without failing."""

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        part = super().__getitem__(index)
        return _Replacing(part) if isinstance(part, bytearray) else part

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:
        # Not the replacement character itself: it takes three bytes, and a dead letter must not outgrow its source.
        return super().decode(encoding, errors).replace("\ufffd", "?")
