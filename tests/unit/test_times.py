"""Times are what protobuf's own ways make of them."""

import datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from domain.times import set_time, time_of

_TIMES = [
    datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC),
    datetime.datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=datetime.UTC),
    datetime.datetime(2026, 2, 28, 23, 59, 59, 1, tzinfo=datetime.UTC),
    datetime.datetime(2026, 3, 29, 2, 30, 0, 123_456, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
    datetime.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=datetime.UTC),
]


@pytest.mark.parametrize("time", _TIMES, ids=str)
def test_a_time_is_set_as_protobuf_sets_it(time: datetime.datetime) -> None:
    ours, protobufs = Timestamp(seconds=1, nanos=1), Timestamp()
    set_time(ours, time)
    protobufs.FromDatetime(time)
    assert ours == protobufs


@pytest.mark.parametrize("time", _TIMES, ids=str)
@pytest.mark.parametrize("nanos", [0, 999])
def test_a_time_is_read_as_protobuf_reads_it(time: datetime.datetime, nanos: int) -> None:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    timestamp.nanos += nanos  # what a datetime cannot hold is cut off
    read = time_of(timestamp)
    assert read == timestamp.ToDatetime(datetime.UTC) == time
    assert read.tzinfo is datetime.UTC
