"""Places and follows orders: `OrdersClient` for asyncio, `SyncOrdersClient` for everything else."""

from orderflow.orders.v1.order_history_pb2 import OrderHistoryEntry
from orderflow.orders.v1.order_pb2 import (
    LineItem,
    Money,
    NotificationChannel,
    Order,
    OrderStatus,
    PaymentStatus,
)
from orderflow.orders.v1.order_service_pb2 import (
    CancelOrderResponse,
    CompleteOrderResponse,
    CreateOrderResponse,
    FoundOrder,
    GetOrderResponse,
    IdentifierKind,
    ListOrderEventsResponse,
    ListOrdersResponse,
    RefundOrderResponse,
    ShipOrderResponse,
    WatchOrderResponse,
)
from orderflow_client._async_client import OrdersClient
from orderflow_client._batches import BatchResult, Progress
from orderflow_client._credentials import tls
from orderflow_client._errors import (
    DeadlineExceeded,
    EtagMismatch,
    FieldViolation,
    IllegalTransition,
    InvalidOrder,
    OrderflowError,
    OrderNotFound,
    Outcome,
    Overloaded,
    PermissionDenied,
    PreconditionFailed,
    RequestIdReused,
    Unauthenticated,
    Unavailable,
    UnexpectedStatus,
)
from orderflow_client._requests import NewOrder, OrderFilter, item
from orderflow_client._sync_client import SyncOrdersClient
from orderflow_client._watches import is_settled

__all__ = [
    "BatchResult",
    "CancelOrderResponse",
    "CompleteOrderResponse",
    "CreateOrderResponse",
    "DeadlineExceeded",
    "EtagMismatch",
    "FieldViolation",
    "FoundOrder",
    "GetOrderResponse",
    "IdentifierKind",
    "IllegalTransition",
    "InvalidOrder",
    "LineItem",
    "ListOrderEventsResponse",
    "ListOrdersResponse",
    "Money",
    "NewOrder",
    "NotificationChannel",
    "Order",
    "OrderFilter",
    "OrderHistoryEntry",
    "OrderNotFound",
    "OrderStatus",
    "OrderflowError",
    "OrdersClient",
    "Outcome",
    "Overloaded",
    "PaymentStatus",
    "PermissionDenied",
    "PreconditionFailed",
    "Progress",
    "RefundOrderResponse",
    "RequestIdReused",
    "ShipOrderResponse",
    "SyncOrdersClient",
    "Unauthenticated",
    "Unavailable",
    "UnexpectedStatus",
    "WatchOrderResponse",
    "is_settled",
    "item",
    "tls",
]
