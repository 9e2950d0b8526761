import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from orderflow.orders.v1 import order_pb2 as _order_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OrderEventType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORDER_EVENT_TYPE_UNSPECIFIED: _ClassVar[OrderEventType]
    ORDER_EVENT_TYPE_ORDER_CREATED: _ClassVar[OrderEventType]
    ORDER_EVENT_TYPE_ORDER_PROCESSING: _ClassVar[OrderEventType]
    ORDER_EVENT_TYPE_ORDER_REJECTED: _ClassVar[OrderEventType]
    ORDER_EVENT_TYPE_ORDER_PAID: _ClassVar[OrderEventType]
    ORDER_EVENT_TYPE_PAYMENT_FAILED: _ClassVar[OrderEventType]
    ORDER_EVENT_TYPE_ORDER_SHIPPED: _ClassVar[OrderEventType]
    ORDER_EVENT_TYPE_ORDER_COMPLETED: _ClassVar[OrderEventType]
    ORDER_EVENT_TYPE_ORDER_CANCELLED: _ClassVar[OrderEventType]
    ORDER_EVENT_TYPE_ORDER_EXPIRED: _ClassVar[OrderEventType]
    ORDER_EVENT_TYPE_PAYMENT_REFUNDED: _ClassVar[OrderEventType]
    ORDER_EVENT_TYPE_ORDER_CANCEL_REQUESTED: _ClassVar[OrderEventType]
    ORDER_EVENT_TYPE_ORDER_SHIP_REQUESTED: _ClassVar[OrderEventType]
    ORDER_EVENT_TYPE_ORDER_COMPLETE_REQUESTED: _ClassVar[OrderEventType]
    ORDER_EVENT_TYPE_ORDER_EXPIRY_REQUESTED: _ClassVar[OrderEventType]
    ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED: _ClassVar[OrderEventType]
    ORDER_EVENT_TYPE_PAYMENT_REPORTED: _ClassVar[OrderEventType]
    ORDER_EVENT_TYPE_NOTIFICATION_SENT: _ClassVar[OrderEventType]
    ORDER_EVENT_TYPE_NOTIFICATION_FAILED: _ClassVar[OrderEventType]
ORDER_EVENT_TYPE_UNSPECIFIED: OrderEventType
ORDER_EVENT_TYPE_ORDER_CREATED: OrderEventType
ORDER_EVENT_TYPE_ORDER_PROCESSING: OrderEventType
ORDER_EVENT_TYPE_ORDER_REJECTED: OrderEventType
ORDER_EVENT_TYPE_ORDER_PAID: OrderEventType
ORDER_EVENT_TYPE_PAYMENT_FAILED: OrderEventType
ORDER_EVENT_TYPE_ORDER_SHIPPED: OrderEventType
ORDER_EVENT_TYPE_ORDER_COMPLETED: OrderEventType
ORDER_EVENT_TYPE_ORDER_CANCELLED: OrderEventType
ORDER_EVENT_TYPE_ORDER_EXPIRED: OrderEventType
ORDER_EVENT_TYPE_PAYMENT_REFUNDED: OrderEventType
ORDER_EVENT_TYPE_ORDER_CANCEL_REQUESTED: OrderEventType
ORDER_EVENT_TYPE_ORDER_SHIP_REQUESTED: OrderEventType
ORDER_EVENT_TYPE_ORDER_COMPLETE_REQUESTED: OrderEventType
ORDER_EVENT_TYPE_ORDER_EXPIRY_REQUESTED: OrderEventType
ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED: OrderEventType
ORDER_EVENT_TYPE_PAYMENT_REPORTED: OrderEventType
ORDER_EVENT_TYPE_NOTIFICATION_SENT: OrderEventType
ORDER_EVENT_TYPE_NOTIFICATION_FAILED: OrderEventType

class OrderEvent(_message.Message):
    __slots__ = ("event_id", "type", "order", "revision", "occur_time", "metadata", "command", "order_created", "order_rejected", "order_paid", "payment_failed", "payment_refunded", "notification_sent", "notification_failed", "order_shipped", "order_cancelled", "order_cancel_requested", "order_ship_requested", "order_complete_requested", "order_expiry_requested", "order_refund_requested", "payment_reported")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    OCCUR_TIME_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    ORDER_CREATED_FIELD_NUMBER: _ClassVar[int]
    ORDER_REJECTED_FIELD_NUMBER: _ClassVar[int]
    ORDER_PAID_FIELD_NUMBER: _ClassVar[int]
    PAYMENT_FAILED_FIELD_NUMBER: _ClassVar[int]
    PAYMENT_REFUNDED_FIELD_NUMBER: _ClassVar[int]
    NOTIFICATION_SENT_FIELD_NUMBER: _ClassVar[int]
    NOTIFICATION_FAILED_FIELD_NUMBER: _ClassVar[int]
    ORDER_SHIPPED_FIELD_NUMBER: _ClassVar[int]
    ORDER_CANCELLED_FIELD_NUMBER: _ClassVar[int]
    ORDER_CANCEL_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    ORDER_SHIP_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    ORDER_COMPLETE_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    ORDER_EXPIRY_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    ORDER_REFUND_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    PAYMENT_REPORTED_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    type: OrderEventType
    order: _order_pb2.Order
    revision: int
    occur_time: _timestamp_pb2.Timestamp
    metadata: EventMetadata
    command: CommandTerms
    order_created: OrderCreatedDetails
    order_rejected: OrderRejectedDetails
    order_paid: OrderPaidDetails
    payment_failed: PaymentFailedDetails
    payment_refunded: PaymentRefundedDetails
    notification_sent: NotificationSentDetails
    notification_failed: NotificationFailedDetails
    order_shipped: OrderShippedDetails
    order_cancelled: OrderCancelledDetails
    order_cancel_requested: OrderCancelRequestedDetails
    order_ship_requested: OrderShipRequestedDetails
    order_complete_requested: OrderCompleteRequestedDetails
    order_expiry_requested: OrderExpiryRequestedDetails
    order_refund_requested: OrderRefundRequestedDetails
    payment_reported: PaymentReportedDetails
    def __init__(self, event_id: _Optional[str] = ..., type: _Optional[_Union[OrderEventType, str]] = ..., order: _Optional[_Union[_order_pb2.Order, _Mapping]] = ..., revision: _Optional[int] = ..., occur_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., metadata: _Optional[_Union[EventMetadata, _Mapping]] = ..., command: _Optional[_Union[CommandTerms, _Mapping]] = ..., order_created: _Optional[_Union[OrderCreatedDetails, _Mapping]] = ..., order_rejected: _Optional[_Union[OrderRejectedDetails, _Mapping]] = ..., order_paid: _Optional[_Union[OrderPaidDetails, _Mapping]] = ..., payment_failed: _Optional[_Union[PaymentFailedDetails, _Mapping]] = ..., payment_refunded: _Optional[_Union[PaymentRefundedDetails, _Mapping]] = ..., notification_sent: _Optional[_Union[NotificationSentDetails, _Mapping]] = ..., notification_failed: _Optional[_Union[NotificationFailedDetails, _Mapping]] = ..., order_shipped: _Optional[_Union[OrderShippedDetails, _Mapping]] = ..., order_cancelled: _Optional[_Union[OrderCancelledDetails, _Mapping]] = ..., order_cancel_requested: _Optional[_Union[OrderCancelRequestedDetails, _Mapping]] = ..., order_ship_requested: _Optional[_Union[OrderShipRequestedDetails, _Mapping]] = ..., order_complete_requested: _Optional[_Union[OrderCompleteRequestedDetails, _Mapping]] = ..., order_expiry_requested: _Optional[_Union[OrderExpiryRequestedDetails, _Mapping]] = ..., order_refund_requested: _Optional[_Union[OrderRefundRequestedDetails, _Mapping]] = ..., payment_reported: _Optional[_Union[PaymentReportedDetails, _Mapping]] = ...) -> None: ...

class EventMetadata(_message.Message):
    __slots__ = ("correlation_id", "causation_id", "source", "attempt", "caller")
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    CAUSATION_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    correlation_id: str
    causation_id: str
    source: str
    attempt: int
    caller: str
    def __init__(self, correlation_id: _Optional[str] = ..., causation_id: _Optional[str] = ..., source: _Optional[str] = ..., attempt: _Optional[int] = ..., caller: _Optional[str] = ...) -> None: ...

class CommandTerms(_message.Message):
    __slots__ = ("scopes", "request_id", "request_fingerprint", "etag")
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    scopes: _containers.RepeatedScalarFieldContainer[str]
    request_id: str
    request_fingerprint: bytes
    etag: str
    def __init__(self, scopes: _Optional[_Iterable[str]] = ..., request_id: _Optional[str] = ..., request_fingerprint: _Optional[bytes] = ..., etag: _Optional[str] = ...) -> None: ...

class OrderCreatedDetails(_message.Message):
    __slots__ = ("caller", "request_id", "request_fingerprint")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    caller: str
    request_id: str
    request_fingerprint: bytes
    def __init__(self, caller: _Optional[str] = ..., request_id: _Optional[str] = ..., request_fingerprint: _Optional[bytes] = ...) -> None: ...

class OrderRejectedDetails(_message.Message):
    __slots__ = ("reason", "skus")
    REASON_FIELD_NUMBER: _ClassVar[int]
    SKUS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    skus: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, reason: _Optional[str] = ..., skus: _Optional[_Iterable[str]] = ...) -> None: ...

class OrderPaidDetails(_message.Message):
    __slots__ = ("gateway_reference", "amount")
    GATEWAY_REFERENCE_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    gateway_reference: str
    amount: _order_pb2.Money
    def __init__(self, gateway_reference: _Optional[str] = ..., amount: _Optional[_Union[_order_pb2.Money, _Mapping]] = ...) -> None: ...

class PaymentFailedDetails(_message.Message):
    __slots__ = ("reason", "gateway_reference")
    REASON_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    gateway_reference: str
    def __init__(self, reason: _Optional[str] = ..., gateway_reference: _Optional[str] = ...) -> None: ...

class PaymentRefundedDetails(_message.Message):
    __slots__ = ("gateway_reference", "amount", "whole", "reason")
    GATEWAY_REFERENCE_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    gateway_reference: str
    amount: _order_pb2.Money
    whole: bool
    reason: str
    def __init__(self, gateway_reference: _Optional[str] = ..., amount: _Optional[_Union[_order_pb2.Money, _Mapping]] = ..., whole: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class OrderShippedDetails(_message.Message):
    __slots__ = ("shipment",)
    SHIPMENT_FIELD_NUMBER: _ClassVar[int]
    shipment: _order_pb2.Shipment
    def __init__(self, shipment: _Optional[_Union[_order_pb2.Shipment, _Mapping]] = ...) -> None: ...

class OrderCancelledDetails(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class OrderCancelRequestedDetails(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class OrderShipRequestedDetails(_message.Message):
    __slots__ = ("carrier", "tracking_code")
    CARRIER_FIELD_NUMBER: _ClassVar[int]
    TRACKING_CODE_FIELD_NUMBER: _ClassVar[int]
    carrier: str
    tracking_code: str
    def __init__(self, carrier: _Optional[str] = ..., tracking_code: _Optional[str] = ...) -> None: ...

class OrderCompleteRequestedDetails(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class OrderExpiryRequestedDetails(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class OrderRefundRequestedDetails(_message.Message):
    __slots__ = ("amount", "reason")
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    amount: _order_pb2.Money
    reason: str
    def __init__(self, amount: _Optional[_Union[_order_pb2.Money, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class PaymentReportedDetails(_message.Message):
    __slots__ = ("report_id",)
    REPORT_ID_FIELD_NUMBER: _ClassVar[int]
    report_id: str
    def __init__(self, report_id: _Optional[str] = ...) -> None: ...

class NotificationSentDetails(_message.Message):
    __slots__ = ("channel", "notified_type", "provider_message_id", "template")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    NOTIFIED_TYPE_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    channel: _order_pb2.NotificationChannel
    notified_type: OrderEventType
    provider_message_id: str
    template: str
    def __init__(self, channel: _Optional[_Union[_order_pb2.NotificationChannel, str]] = ..., notified_type: _Optional[_Union[OrderEventType, str]] = ..., provider_message_id: _Optional[str] = ..., template: _Optional[str] = ...) -> None: ...

class NotificationFailedDetails(_message.Message):
    __slots__ = ("channel", "notified_type", "reason", "provider_message_id", "template")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    NOTIFIED_TYPE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    channel: _order_pb2.NotificationChannel
    notified_type: OrderEventType
    reason: str
    provider_message_id: str
    template: str
    def __init__(self, channel: _Optional[_Union[_order_pb2.NotificationChannel, str]] = ..., notified_type: _Optional[_Union[OrderEventType, str]] = ..., reason: _Optional[str] = ..., provider_message_id: _Optional[str] = ..., template: _Optional[str] = ...) -> None: ...
