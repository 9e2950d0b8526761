"""What the package exports."""

import inspect

import orderflow_client
from orderflow_client import OrdersClient, SyncOrdersClient


def test_exported_names():
    assert orderflow_client.__all__ == [
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
    public = {name for name in vars(orderflow_client) if not name.startswith("_")}
    assert public == set(orderflow_client.__all__)


def test_both_clients_have_the_same_methods_with_the_same_arguments():
    def methods(client):
        found = inspect.getmembers(client, inspect.isfunction)
        return {name: list(inspect.signature(each).parameters) for name, each in found if not name.startswith("_")}

    assert methods(OrdersClient) == methods(SyncOrdersClient)


def test_every_method_of_the_service_can_be_called():
    service = orderflow_client._requests.CreateOrderRequest.DESCRIPTOR.file.pool.FindServiceByName(
        "orderflow.orders.v1.OrderService"
    )
    snake = {"".join(f"_{c.lower()}" if c.isupper() else c for c in each.name)[1:] for each in service.methods}
    assert snake <= set(dir(OrdersClient))


def test_an_order_list_takes_the_fields_of_its_request():
    fields = orderflow_client._requests.ListOrdersRequest.DESCRIPTOR.fields_by_name
    assert {*orderflow_client.OrderFilter.__annotations__, "page_size", "page_token"} == set(fields)
