import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from orderflow.events.v1 import dead_letter_pb2 as _dead_letter_pb2
from orderflow.events.v1 import order_event_pb2 as _order_event_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DeadLetterState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEAD_LETTER_STATE_UNSPECIFIED: _ClassVar[DeadLetterState]
    DEAD_LETTER_STATE_OPEN: _ClassVar[DeadLetterState]
    DEAD_LETTER_STATE_REPLAYED: _ClassVar[DeadLetterState]
    DEAD_LETTER_STATE_DISCARDED: _ClassVar[DeadLetterState]
    DEAD_LETTER_STATE_SETTLED: _ClassVar[DeadLetterState]

class ReplayPlanState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLAY_PLAN_STATE_UNSPECIFIED: _ClassVar[ReplayPlanState]
    REPLAY_PLAN_STATE_OPEN: _ClassVar[ReplayPlanState]
    REPLAY_PLAN_STATE_DONE: _ClassVar[ReplayPlanState]
    REPLAY_PLAN_STATE_ABORTED: _ClassVar[ReplayPlanState]
DEAD_LETTER_STATE_UNSPECIFIED: DeadLetterState
DEAD_LETTER_STATE_OPEN: DeadLetterState
DEAD_LETTER_STATE_REPLAYED: DeadLetterState
DEAD_LETTER_STATE_DISCARDED: DeadLetterState
DEAD_LETTER_STATE_SETTLED: DeadLetterState
REPLAY_PLAN_STATE_UNSPECIFIED: ReplayPlanState
REPLAY_PLAN_STATE_OPEN: ReplayPlanState
REPLAY_PLAN_STATE_DONE: ReplayPlanState
REPLAY_PLAN_STATE_ABORTED: ReplayPlanState

class DeadLetterFilter(_message.Message):
    __slots__ = ("group", "error_class", "order_id", "since", "until")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    ERROR_CLASS_FIELD_NUMBER: _ClassVar[int]
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    group: str
    error_class: str
    order_id: str
    since: _timestamp_pb2.Timestamp
    until: _timestamp_pb2.Timestamp
    def __init__(self, group: _Optional[str] = ..., error_class: _Optional[str] = ..., order_id: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class DeadLetterEntry(_message.Message):
    __slots__ = ("dead_letter_id", "dead_letter", "event", "state", "record_time", "resolved_by", "resolution_reason", "resolve_time")
    DEAD_LETTER_ID_FIELD_NUMBER: _ClassVar[int]
    DEAD_LETTER_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RECORD_TIME_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_BY_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_REASON_FIELD_NUMBER: _ClassVar[int]
    RESOLVE_TIME_FIELD_NUMBER: _ClassVar[int]
    dead_letter_id: str
    dead_letter: _dead_letter_pb2.DeadLetter
    event: _order_event_pb2.OrderEvent
    state: DeadLetterState
    record_time: _timestamp_pb2.Timestamp
    resolved_by: str
    resolution_reason: str
    resolve_time: _timestamp_pb2.Timestamp
    def __init__(self, dead_letter_id: _Optional[str] = ..., dead_letter: _Optional[_Union[_dead_letter_pb2.DeadLetter, _Mapping]] = ..., event: _Optional[_Union[_order_event_pb2.OrderEvent, _Mapping]] = ..., state: _Optional[_Union[DeadLetterState, str]] = ..., record_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., resolved_by: _Optional[str] = ..., resolution_reason: _Optional[str] = ..., resolve_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class DeadLetterSummary(_message.Message):
    __slots__ = ("group", "error_class", "count", "order_count", "first_time", "last_time")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    ERROR_CLASS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ORDER_COUNT_FIELD_NUMBER: _ClassVar[int]
    FIRST_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_TIME_FIELD_NUMBER: _ClassVar[int]
    group: str
    error_class: str
    count: int
    order_count: int
    first_time: _timestamp_pb2.Timestamp
    last_time: _timestamp_pb2.Timestamp
    def __init__(self, group: _Optional[str] = ..., error_class: _Optional[str] = ..., count: _Optional[int] = ..., order_count: _Optional[int] = ..., first_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ReplayPlan(_message.Message):
    __slots__ = ("plan_id", "filter", "created_by", "create_time", "total", "replayed", "skipped", "state")
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    filter: DeadLetterFilter
    created_by: str
    create_time: _timestamp_pb2.Timestamp
    total: int
    replayed: int
    skipped: int
    state: ReplayPlanState
    def __init__(self, plan_id: _Optional[str] = ..., filter: _Optional[_Union[DeadLetterFilter, _Mapping]] = ..., created_by: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., total: _Optional[int] = ..., replayed: _Optional[int] = ..., skipped: _Optional[int] = ..., state: _Optional[_Union[ReplayPlanState, str]] = ...) -> None: ...

class SummarizeDeadLettersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SummarizeDeadLettersResponse(_message.Message):
    __slots__ = ("summaries",)
    SUMMARIES_FIELD_NUMBER: _ClassVar[int]
    summaries: _containers.RepeatedCompositeFieldContainer[DeadLetterSummary]
    def __init__(self, summaries: _Optional[_Iterable[_Union[DeadLetterSummary, _Mapping]]] = ...) -> None: ...

class ListDeadLettersRequest(_message.Message):
    __slots__ = ("filter", "include_resolved", "page_size", "page_token")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_RESOLVED_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    filter: DeadLetterFilter
    include_resolved: bool
    page_size: int
    page_token: str
    def __init__(self, filter: _Optional[_Union[DeadLetterFilter, _Mapping]] = ..., include_resolved: _Optional[bool] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListDeadLettersResponse(_message.Message):
    __slots__ = ("dead_letters", "next_page_token")
    DEAD_LETTERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    dead_letters: _containers.RepeatedCompositeFieldContainer[DeadLetterEntry]
    next_page_token: str
    def __init__(self, dead_letters: _Optional[_Iterable[_Union[DeadLetterEntry, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetDeadLetterRequest(_message.Message):
    __slots__ = ("dead_letter_id",)
    DEAD_LETTER_ID_FIELD_NUMBER: _ClassVar[int]
    dead_letter_id: str
    def __init__(self, dead_letter_id: _Optional[str] = ...) -> None: ...

class GetDeadLetterResponse(_message.Message):
    __slots__ = ("dead_letter",)
    DEAD_LETTER_FIELD_NUMBER: _ClassVar[int]
    dead_letter: DeadLetterEntry
    def __init__(self, dead_letter: _Optional[_Union[DeadLetterEntry, _Mapping]] = ...) -> None: ...

class ReplayDeadLetterRequest(_message.Message):
    __slots__ = ("dead_letter_id", "reason")
    DEAD_LETTER_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    dead_letter_id: str
    reason: str
    def __init__(self, dead_letter_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ReplayDeadLetterResponse(_message.Message):
    __slots__ = ("dead_letter",)
    DEAD_LETTER_FIELD_NUMBER: _ClassVar[int]
    dead_letter: DeadLetterEntry
    def __init__(self, dead_letter: _Optional[_Union[DeadLetterEntry, _Mapping]] = ...) -> None: ...

class DiscardDeadLetterRequest(_message.Message):
    __slots__ = ("dead_letter_id", "reason")
    DEAD_LETTER_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    dead_letter_id: str
    reason: str
    def __init__(self, dead_letter_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class DiscardDeadLetterResponse(_message.Message):
    __slots__ = ("dead_letter",)
    DEAD_LETTER_FIELD_NUMBER: _ClassVar[int]
    dead_letter: DeadLetterEntry
    def __init__(self, dead_letter: _Optional[_Union[DeadLetterEntry, _Mapping]] = ...) -> None: ...

class CreateReplayPlanRequest(_message.Message):
    __slots__ = ("filter",)
    FILTER_FIELD_NUMBER: _ClassVar[int]
    filter: DeadLetterFilter
    def __init__(self, filter: _Optional[_Union[DeadLetterFilter, _Mapping]] = ...) -> None: ...

class CreateReplayPlanResponse(_message.Message):
    __slots__ = ("plan",)
    PLAN_FIELD_NUMBER: _ClassVar[int]
    plan: ReplayPlan
    def __init__(self, plan: _Optional[_Union[ReplayPlan, _Mapping]] = ...) -> None: ...

class GetReplayPlanRequest(_message.Message):
    __slots__ = ("plan_id",)
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    def __init__(self, plan_id: _Optional[str] = ...) -> None: ...

class GetReplayPlanResponse(_message.Message):
    __slots__ = ("plan",)
    PLAN_FIELD_NUMBER: _ClassVar[int]
    plan: ReplayPlan
    def __init__(self, plan: _Optional[_Union[ReplayPlan, _Mapping]] = ...) -> None: ...

class ApplyReplayPlanRequest(_message.Message):
    __slots__ = ("plan_id", "reason", "rate")
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    reason: str
    rate: int
    def __init__(self, plan_id: _Optional[str] = ..., reason: _Optional[str] = ..., rate: _Optional[int] = ...) -> None: ...

class ApplyReplayPlanResponse(_message.Message):
    __slots__ = ("plan",)
    PLAN_FIELD_NUMBER: _ClassVar[int]
    plan: ReplayPlan
    def __init__(self, plan: _Optional[_Union[ReplayPlan, _Mapping]] = ...) -> None: ...

class AbortReplayPlanRequest(_message.Message):
    __slots__ = ("plan_id",)
    PLAN_ID_FIELD_NUMBER: _ClassVar[int]
    plan_id: str
    def __init__(self, plan_id: _Optional[str] = ...) -> None: ...

class AbortReplayPlanResponse(_message.Message):
    __slots__ = ("plan",)
    PLAN_FIELD_NUMBER: _ClassVar[int]
    plan: ReplayPlan
    def __init__(self, plan: _Optional[_Union[ReplayPlan, _Mapping]] = ...) -> None: ...
