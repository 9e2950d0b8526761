"""`orderflow stock`: what can be ordered, and at what price, through the server's StockService."""

import contextlib
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from cli.connection import Connection, connected
from cli.output import Format, show

if TYPE_CHECKING:
    from orderflow.operations.v1.stock_service_pb2 import StockLevel
    from orderflow.operations.v1.stock_service_pb2_grpc import StockServiceStub
    from orderflow.orders.v1.order_pb2 import Money

app = typer.Typer(help="Show and change stock and prices.", no_args_is_help=True)
price_app = typer.Typer(help="Set and remove prices.", no_args_is_help=True)
app.add_typer(price_app, name="price")

_OUTPUT = typer.Option(Format.TABLE, "-o", "--output")
_WHY = typer.Option("", "--reason", help="Why, for the history.")
_REQUEST_ID = typer.Option("", help="Same request id, same change: safe to repeat. Made if not given.")
_PRICE = "`EUR:1999` is 19.99 EUR."


@contextlib.contextmanager
def _service(connection: Connection) -> Iterator["StockServiceStub"]:
    from orderflow.operations.v1.stock_service_pb2_grpc import StockServiceStub

    with connection.channel() as channel:
        yield StockServiceStub(channel)


@contextlib.contextmanager
def _repeatable(request_id: str) -> Iterator[str]:
    """Yields the request id of a change, and tells it where the change may have been made without an answer."""
    import grpc

    chosen = request_id or str(uuid.uuid4())
    try:
        yield chosen
    except grpc.RpcError as error:
        if error.code() not in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.FAILED_PRECONDITION,
            grpc.StatusCode.UNAUTHENTICATED,
            grpc.StatusCode.PERMISSION_DENIED,
        ):
            typer.echo(f"Whether it was changed is not known. Repeat it with --request-id {chosen}", err=True)
        raise


@app.command("set")
@connected
def set_stock(
    connection: Connection,
    sku: str,
    available: int = typer.Argument(min=0, help="Units that can be ordered from now on."),
    price: str = typer.Option("", help=f"Price that orders must name: {_PRICE} It is set first."),
    reason: str = _WHY,
    request_id: str = _REQUEST_ID,
    output: Format = _OUTPUT,
) -> None:
    """Set how many units of a SKU can be ordered. What is held or sold stays as it is."""
    from orderflow.operations.v1 import stock_service_pb2 as pb

    money = _money(price, "--price") if price else None
    with _service(connection) as service, _repeatable(request_id) as chosen:
        if money:
            service.SetPrice(pb.SetPriceRequest(sku=sku, price=money, reason=reason), timeout=10)
        request = pb.SetStockRequest(sku=sku, available=available, request_id=chosen, reason=reason)
        level = service.SetStock(request, timeout=10).level
    show([_row(level)], output, empty="")


# Else a number below zero would be taken for a flag.
@app.command("adjust", context_settings={"ignore_unknown_options": True})
@connected
def adjust(
    connection: Connection,
    sku: str,
    delta: int = typer.Argument(help="Units to add; below zero to take away."),
    reason: str = _WHY,
    request_id: str = _REQUEST_ID,
    output: Format = _OUTPUT,
) -> None:
    """Add units to those that can be ordered, or take some away: a delivery, a loss."""
    from orderflow.operations.v1 import stock_service_pb2 as pb

    with _service(connection) as service, _repeatable(request_id) as chosen:
        request = pb.AdjustStockRequest(sku=sku, delta=delta, request_id=chosen, reason=reason)
        level = service.AdjustStock(request, timeout=10).level
    show([_row(level)], output, empty="")


@app.command("show")
@connected
def show_stock(connection: Connection, sku: str, output: Format = _OUTPUT) -> None:
    """Show available, held and sold units of a SKU, and its prices in minor units."""
    from orderflow.operations.v1 import stock_service_pb2 as pb

    with _service(connection) as service:
        level = service.GetStock(pb.GetStockRequest(sku=sku), timeout=10).level
    show([_row(level)], output, empty="")


@app.command("list")
@connected
def list_stock(
    connection: Connection,
    limit: int = typer.Option(1_000, min=1, help="At most so many."),
    output: Format = _OUTPUT,
) -> None:
    """List available, held and sold units, and prices in minor units, by SKU."""
    from orderflow.operations.v1 import stock_service_pb2 as pb

    rows: list[dict[str, Any]] = []
    request = pb.ListStockRequest(page_size=min(limit, 1_000))  # the same for all pages: their tokens are bound to it
    with _service(connection) as service:
        while len(rows) < limit:
            response = service.ListStock(request, timeout=10)
            rows += map(_row, response.levels)
            request.page_token = response.next_page_token
            if not response.next_page_token:
                break
    show(rows[:limit], output, empty="No stock is set: orderflow stock set SKU UNITS")


@price_app.command("set")
@connected
def set_price(
    connection: Connection,
    sku: str,
    price: str = typer.Argument(help=f"Price that orders must name: {_PRICE}"),
    reason: str = _WHY,
    output: Format = _OUTPUT,
) -> None:
    """Set the price of a SKU in one currency. A SKU that is new has no units."""
    from orderflow.operations.v1 import stock_service_pb2 as pb

    money = _money(price, "PRICE")
    with _service(connection) as service:
        level = service.SetPrice(pb.SetPriceRequest(sku=sku, price=money, reason=reason), timeout=10).level
    show([_row(level)], output, empty="")


@price_app.command("remove")
@connected
def remove_price(
    connection: Connection,
    sku: str,
    currency: str = typer.Argument(help="Currency of the price, such as EUR."),
    reason: str = _WHY,
    output: Format = _OUTPUT,
) -> None:
    """Remove the price of a SKU in one currency: any price goes in it."""
    from orderflow.operations.v1 import stock_service_pb2 as pb

    with _service(connection) as service:
        request = pb.RemovePriceRequest(sku=sku, currency_code=currency, reason=reason)
        level = service.RemovePrice(request, timeout=10).level
    show([_row(level)], output, empty="")


def _money(price: str, where: str) -> "Money":
    from orderflow.orders.v1.order_pb2 import Money

    currency, _, amount = price.partition(":")
    if not (len(currency) == 3 and amount.isascii() and amount.isdigit() and len(amount) <= 18):
        raise typer.BadParameter("must be CURRENCY:AMOUNT_MINOR, for example EUR:1999", param_hint=where)
    return Money(currency_code=currency, amount_minor=int(amount))


def _row(level: "StockLevel") -> dict[str, Any]:
    return {
        "sku": level.sku,
        "available": level.available,
        "held": level.held,
        "sold": level.sold,
        "prices": {price.currency_code: price.amount_minor for price in level.prices},
    }
