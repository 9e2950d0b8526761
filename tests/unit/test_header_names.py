"""Records whose header names are not UTF-8 are read; the others as aiokafka reads them."""

import struct

import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c

from messaging.header_names import _TolerantRecords


def a_batch(*names: str) -> bytes:
    """Returns a batch with a record for each name, whose only header has it."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 20,
    )
    for offset, name in enumerate(names):
        assert builder.append(offset, timestamp=1, key=b"k", value=b"v%d" % offset, headers=[(name, b"1")])
    return bytes(builder.build())


def with_crc(batch: bytes) -> bytes:
    return batch[:17] + struct.pack(">I", calc_crc32c(batch[21:])) + batch[21:]


def read(data: bytes) -> list[list[tuple[int, bytes, list[tuple[str, bytes | None]]]]]:
    records = _TolerantRecords(data)
    found = []
    while records.has_next():
        batch = records.next_batch()
        assert batch.validate_crc()
        found.append([(record.offset, record.value, list(record.headers)) for record in batch])
    return found


def test_bytes_that_are_no_text_become_question_marks_and_no_neighbour_is_lost() -> None:
    broken = with_crc(a_batch("a", "QQQ", "ü").replace(b"QQQ", b"\xff\xfex"))
    good = a_batch("b")
    assert read(good + broken + good) == [
        [(0, b"v0", [("b", b"1")])],
        [(0, b"v0", [("a", b"1")]), (1, b"v1", [("??x", b"1")]), (2, b"v2", [("ü", b"1")])],
        [(0, b"v0", [("b", b"1")])],
    ]


def test_aiokafka_alone_cannot_read_it() -> None:
    """So that the module goes when it is needed no more."""
    batch = MemoryRecords(with_crc(a_batch("QQQ").replace(b"QQQ", b"\xff\xfex"))).next_batch()
    with pytest.raises((UnicodeDecodeError, CorruptRecordException)):
        list(batch)


def test_a_batch_that_is_broken_otherwise_still_fails() -> None:
    broken = with_crc(a_batch("a", "b")[:-3] + b"\xff\xff\xff")
    with pytest.raises(CorruptRecordException):
        read(broken)
