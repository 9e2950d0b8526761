"""What a caller needs for each method. A method that is not in the table is refused to everybody."""

from collections.abc import Collection
from typing import Final

WRITE: Final = "orders:write"
READ: Final = "orders:read"
OPERATE: Final = "orders:operate"
ADMIN: Final = "orders:admin"
ALL: Final = (WRITE, READ, OPERATE, ADMIN)

OPEN: Final = frozenset(("grpc.health.v1.Health/Check", "grpc.health.v1.Health/List", "grpc.health.v1.Health/Watch"))
"""Methods for everybody: probes have no credentials."""

_ORDERS: Final = "orderflow.orders.v1.OrderService/"
_DEAD_LETTERS: Final = "orderflow.operations.v1.DeadLetterService/"
_STOCK: Final = "orderflow.operations.v1.StockService/"

REQUIRED: Final = {
    f"{_ORDERS}CreateOrder": WRITE,
    f"{_ORDERS}BatchCreateOrders": WRITE,
    f"{_ORDERS}GetOrder": READ,
    f"{_ORDERS}BatchGetOrders": READ,
    f"{_ORDERS}ListOrders": READ,
    f"{_ORDERS}FindOrders": READ,
    f"{_ORDERS}ListOrderEvents": READ,
    f"{_ORDERS}WatchOrder": READ,
    f"{_ORDERS}CancelOrder": WRITE,
    f"{_ORDERS}ShipOrder": OPERATE,
    f"{_ORDERS}CompleteOrder": OPERATE,
    f"{_ORDERS}RefundOrder": OPERATE,
    f"{_DEAD_LETTERS}SummarizeDeadLetters": OPERATE,
    f"{_DEAD_LETTERS}ListDeadLetters": OPERATE,
    f"{_DEAD_LETTERS}GetDeadLetter": OPERATE,
    f"{_DEAD_LETTERS}ReplayDeadLetter": OPERATE,
    f"{_DEAD_LETTERS}DiscardDeadLetter": OPERATE,
    f"{_DEAD_LETTERS}CreateReplayPlan": OPERATE,
    f"{_DEAD_LETTERS}GetReplayPlan": OPERATE,
    f"{_DEAD_LETTERS}ApplyReplayPlan": OPERATE,
    f"{_DEAD_LETTERS}AbortReplayPlan": OPERATE,
    f"{_STOCK}SetStock": OPERATE,
    f"{_STOCK}AdjustStock": OPERATE,
    f"{_STOCK}SetPrice": OPERATE,
    f"{_STOCK}RemovePrice": OPERATE,
    f"{_STOCK}GetStock": OPERATE,
    f"{_STOCK}ListStock": OPERATE,
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": ADMIN,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": ADMIN,
}
"""Method -> scope."""

_WIDER: Final = {WRITE: {WRITE, ADMIN}, READ: {READ, OPERATE, ADMIN}, OPERATE: {OPERATE, ADMIN}, ADMIN: {ADMIN}}
"""Scope -> the scopes that include it."""


def allow(held: Collection[str], required: str) -> bool:
    """Whether who holds these scopes may do what needs `required`."""
    return not _WIDER.get(required, set()).isdisjoint(held)


def see_all(held: Collection[str]) -> bool:
    """Whether who holds these scopes sees everybody's orders."""
    return allow(held, OPERATE)
