"""Times as messages hold them. Every record has some, and `Timestamp`'s own ways take more than twice as long."""

import datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def set_time(timestamp: Timestamp, time: datetime.datetime) -> None:
    """Does what FromDatetime does. `time` is an aware one."""
    since = time - _EPOCH
    timestamp.seconds = since.days * 86_400 + since.seconds
    timestamp.nanos = since.microseconds * 1_000


def time_of(timestamp: Timestamp) -> datetime.datetime:
    """Returns what ToDatetime does, in UTC, of a time that a calendar can hold."""
    return _EPOCH + datetime.timedelta(0, timestamp.seconds, timestamp.nanos // 1_000)
