import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from orderflow.orders.v1 import order_pb2 as _order_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OrderHistoryEntry(_message.Message):
    __slots__ = ("entry_id", "type", "revision", "occur_time", "source", "attempt", "cause_id", "correlation_id", "status", "payment_status", "reason", "payment", "notification", "dead_letter")
    ENTRY_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    OCCUR_TIME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CAUSE_ID_FIELD_NUMBER: _ClassVar[int]
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PAYMENT_STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PAYMENT_FIELD_NUMBER: _ClassVar[int]
    NOTIFICATION_FIELD_NUMBER: _ClassVar[int]
    DEAD_LETTER_FIELD_NUMBER: _ClassVar[int]
    entry_id: str
    type: str
    revision: int
    occur_time: _timestamp_pb2.Timestamp
    source: str
    attempt: int
    cause_id: str
    correlation_id: str
    status: _order_pb2.OrderStatus
    payment_status: _order_pb2.PaymentStatus
    reason: str
    payment: PaymentEntry
    notification: NotificationEntry
    dead_letter: DeadLetterEntry
    def __init__(self, entry_id: _Optional[str] = ..., type: _Optional[str] = ..., revision: _Optional[int] = ..., occur_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., source: _Optional[str] = ..., attempt: _Optional[int] = ..., cause_id: _Optional[str] = ..., correlation_id: _Optional[str] = ..., status: _Optional[_Union[_order_pb2.OrderStatus, str]] = ..., payment_status: _Optional[_Union[_order_pb2.PaymentStatus, str]] = ..., reason: _Optional[str] = ..., payment: _Optional[_Union[PaymentEntry, _Mapping]] = ..., notification: _Optional[_Union[NotificationEntry, _Mapping]] = ..., dead_letter: _Optional[_Union[DeadLetterEntry, _Mapping]] = ...) -> None: ...

class PaymentEntry(_message.Message):
    __slots__ = ("gateway_reference", "amount")
    GATEWAY_REFERENCE_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    gateway_reference: str
    amount: _order_pb2.Money
    def __init__(self, gateway_reference: _Optional[str] = ..., amount: _Optional[_Union[_order_pb2.Money, _Mapping]] = ...) -> None: ...

class NotificationEntry(_message.Message):
    __slots__ = ("channel", "notified_type", "provider_message_id", "template")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    NOTIFIED_TYPE_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    channel: _order_pb2.NotificationChannel
    notified_type: str
    provider_message_id: str
    template: str
    def __init__(self, channel: _Optional[_Union[_order_pb2.NotificationChannel, str]] = ..., notified_type: _Optional[str] = ..., provider_message_id: _Optional[str] = ..., template: _Optional[str] = ...) -> None: ...

class DeadLetterEntry(_message.Message):
    __slots__ = ("message", "replay", "resolution", "resolution_reason")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REPLAY_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_REASON_FIELD_NUMBER: _ClassVar[int]
    message: str
    replay: int
    resolution: str
    resolution_reason: str
    def __init__(self, message: _Optional[str] = ..., replay: _Optional[int] = ..., resolution: _Optional[str] = ..., resolution_reason: _Optional[str] = ...) -> None: ...
