"""`orderflow order`: place, follow and move orders, as the client does."""

import contextlib
import datetime
import enum
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import typer

from cli.connection import Connection, connected
from cli.explain import show_explanation
from cli.output import Format, ago, enum_name, show_message, show_messages

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from orderflow.orders.v1.order_history_pb2 import OrderHistoryEntry
    from orderflow.orders.v1.order_pb2 import LineItem, Money, Order
    from orderflow_client import FoundOrder, WatchOrderResponse

app = typer.Typer(help="Place, follow and move orders.", no_args_is_help=True)

_OUTPUT = typer.Option(Format.TABLE, "-o", "--output")
_NOT_FOUND = 69
_LIMIT = typer.Option(50, min=1, help="At most so many.")
_ETAG = typer.Option("", help="Only if this is still the order's etag.")
_REQUEST_ID = typer.Option("", help="Same request id, same answer. Made if not given.")


class Status(enum.StrEnum):
    """States of an order, as flags name them."""

    CREATED = "CREATED"
    PROCESSING = "PROCESSING"
    REJECTED = "REJECTED"
    PAID = "PAID"
    PAYMENT_FAILED = "PAYMENT_FAILED"
    SHIPPED = "SHIPPED"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"
    REFUNDED = "REFUNDED"


class Channel(enum.StrEnum):
    """Notification channels, as flags name them."""

    EMAIL = "EMAIL"
    SMS = "SMS"


@app.command()
@connected
def create(
    connection: Connection,
    user: str = typer.Option(..., "--user", help="Who the order is for."),
    items: list[str] = typer.Option(
        ...,
        "--item",
        help="SKU:QUANTITY:CURRENCY:AMOUNT_MINOR, for example SKU-1:2:EUR:1999 (19.99 EUR each). Repeatable.",
    ),
    payment_method: str = typer.Option(..., help="Token of the payment method, for example pm_card_visa."),
    email: str = typer.Option("", help="Where e-mail goes. Give this or --phone."),
    phone: str = typer.Option("", help="Where text messages go, E.164."),
    labels: list[str] = typer.Option([], "--label", help="KEY=VALUE of your own. Repeatable."),
    external_reference: str = typer.Option("", help="Your own identifier of the order."),
    language: str = typer.Option("", help="Language of the messages to the customer, a BCP 47 tag."),
    muted: list[Channel] = typer.Option([], "--mute", help="Channel that the customer does not want. Repeatable."),
    request_id: str = typer.Option("", help="Same request id, same order. Made if not given."),
    validate_only: bool = typer.Option(False, "--validate-only", help="Only check; place nothing."),
    output: Format = _OUTPUT,
) -> None:
    """Place an order. Exit code 0 means that it is durable."""
    with connection.orders() as orders:
        response = orders.create_order(
            user_id=user,
            items=[_item(each) for each in items],
            payment_method=payment_method,
            email=email,
            phone=phone,
            labels=dict(_label(each) for each in labels),
            external_reference=external_reference,
            language=language,
            muted_channels=[f"NOTIFICATION_CHANNEL_{each}" for each in muted],
            request_id=request_id,
            validate_only=validate_only,
        )
    show_message(response, _order_row(response.order), output)
    if validate_only:
        typer.echo("It would be accepted. Nothing was placed.", err=True)
    else:
        typer.echo(f"Follow it: orderflow order watch {response.order.order_id}", err=True)


@app.command()
@connected
def get(
    connection: Connection,
    order_id: str,
    consistency_token: str = typer.Option("", help="Of an earlier answer: show no older state."),
    output: Format = _OUTPUT,
) -> None:
    """Show an order."""
    with connection.orders() as orders:
        response = orders.get_order(order_id, consistency_token=consistency_token)
    show_message(response, _order_row(response.order), output)


@app.command("list")
@connected
def list_orders(
    connection: Connection,
    user: str = typer.Option("", "--user", help="Only of this user."),
    statuses: list[Status] = typer.Option([], "--status", help="Only in this state. Repeatable."),
    since: str = typer.Option("", help="Only placed within this time: 30m, 2h, 7d."),
    limit: int = _LIMIT,
    output: Format = _OUTPUT,
) -> None:
    """List orders, newest first."""
    from orderflow_client import OrderFilter

    which = OrderFilter(user_id=user, statuses=[f"ORDER_STATUS_{each}" for each in statuses])
    if since:
        which["created_from"] = datetime.datetime.now(datetime.UTC) - ago(since)
    with connection.orders() as orders:
        found = islice(orders.list_orders(page_size=min(limit, 1_000), **which), limit)
        show_messages(found, _order_row, output, empty="No orders match.")


@app.command()
@connected
def events(connection: Connection, order_id: str, limit: int = _LIMIT, output: Format = _OUTPUT) -> None:
    """List what happened to an order, oldest first."""
    with connection.orders() as orders:
        found = islice(orders.list_order_events(order_id, page_size=min(limit, 1_000)), limit)
        show_messages(found, _event_row, output, empty="Nothing happened to it yet.")


@app.command()
@connected
def explain(
    connection: Connection,
    identifier: str = typer.Argument(
        ..., metavar="ID", help="Of the order, or of a request, an event, a trace, a charge or refund of it."
    ),
    output: Format = _OUTPUT,
) -> None:
    """Say why an order stands where it does and what happens next, then what happened to it.

    Exit code 69 if nothing is known of the id; 1 if it has to do with several orders, which are listed.
    """
    with connection.orders() as orders:
        found = orders.find_orders(identifier)
        if not found:
            typer.echo(f"orderflow: no order has to do with {identifier}", err=True)
            sys.exit(_NOT_FOUND)
        if len(found) > 1:
            show_messages(found, _found_row, output, empty="")
            typer.echo(f"{identifier} has to do with {len(found)} orders: explain one of them.", err=True)
            sys.exit(1)
        order = orders.get_order(found[0].order_id).order
        if order.order_id != identifier:
            typer.echo(f"Order {order.order_id}, by its {enum_name(found[0], 'kind').lower()}:", err=True)
        show_explanation(order, list(orders.list_order_events(order.order_id)), _event_row, output)


@app.command()
@connected
def watch(
    connection: Connection,
    order_id: str,
    resume_token: str = typer.Option("", help="Of an earlier answer: leave out what that showed."),
    timeout: float = typer.Option(0, min=0, help="Give up after so many seconds; 0 for never."),
    output: Format = _OUTPUT,
) -> None:
    """Follow an order until it is settled. Exit code 1 if it was rejected or its payment failed."""
    last: list[Order] = []

    def noted(responses: Iterable["WatchOrderResponse"]) -> Iterator["WatchOrderResponse"]:
        for response in responses:
            last[:] = [response.order]
            yield response

    with connection.orders() as orders:
        responses = noted(orders.watch_order(order_id, resume_token=resume_token, timeout=timeout or None))
        if output is Format.TABLE:
            _print_states(responses)
        else:
            show_messages(responses, lambda response: _order_row(response.order), output, empty="")
    if last and enum_name(last[0], "status") in (Status.REJECTED, Status.PAYMENT_FAILED):
        sys.exit(1)


@app.command()
@connected
def cancel(
    connection: Connection,
    order_id: str,
    reason: str = typer.Option("", help="Why, UPPER_SNAKE. CUSTOMER_REQUEST if not given."),
    etag: str = _ETAG,
    request_id: str = _REQUEST_ID,
    output: Format = _OUTPUT,
) -> None:
    """Call off an order that is not shipped. What was charged is refunded afterwards."""
    with connection.orders() as orders:
        response = orders.cancel_order(order_id, reason=reason, etag=etag, request_id=request_id)
    show_message(response, _order_row(response.order), output)


@app.command()
@connected
def ship(
    connection: Connection,
    order_id: str,
    carrier: str = typer.Option(..., help="Name of the carrier."),
    tracking_code: str = typer.Option("", help="The carrier's tracking code."),
    etag: str = _ETAG,
    request_id: str = _REQUEST_ID,
    output: Format = _OUTPUT,
) -> None:
    """Record that a paid order was handed to the carrier."""
    with connection.orders() as orders:
        response = orders.ship_order(
            order_id, carrier=carrier, tracking_code=tracking_code, etag=etag, request_id=request_id
        )
    show_message(response, _order_row(response.order), output)


@app.command()
@connected
def complete(
    connection: Connection,
    order_id: str,
    etag: str = _ETAG,
    request_id: str = _REQUEST_ID,
    output: Format = _OUTPUT,
) -> None:
    """Record that a shipped order was delivered."""
    with connection.orders() as orders:
        response = orders.complete_order(order_id, etag=etag, request_id=request_id)
    show_message(response, _order_row(response.order), output)


@app.command()
@connected
def refund(
    connection: Connection,
    order_id: str,
    amount: str = typer.Option("", help="CURRENCY:AMOUNT_MINOR: EUR:998 is 9.98 EUR. All that is left if not given."),
    reason: str = typer.Option("", help="Why, UPPER_SNAKE."),
    etag: str = _ETAG,
    request_id: str = _REQUEST_ID,
    output: Format = _OUTPUT,
) -> None:
    """Pay back what was charged, or a part of it. Exit code 0 means that the gateway has taken it."""
    with connection.orders() as orders:
        response = orders.refund_order(
            order_id, amount=_amount(amount) if amount else None, reason=reason, etag=etag, request_id=request_id
        )
    show_message(response, _order_row(response.order), output)


def _print_states(responses: Iterable["WatchOrderResponse"]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    # On the console of the lines, so that the two do not write over each other.
    waiting = console.status("waiting for the order to be settled") if console.is_terminal else contextlib.nullcontext()
    with waiting:
        for response in responses:
            order = response.order
            line = (
                f"{_time(order.update_time, 'milliseconds'):<26}{order.revision:>4}  {enum_name(order, 'status'):<16}"
            )
            line += f"{enum_name(order, 'payment_status'):<20}{order.failure_reason}"
            style = _STYLES.get(enum_name(order, "status"), "")
            console.print(line.rstrip(), style=style, markup=False, soft_wrap=True)


_STYLES: dict[str, str] = {
    Status.PAID: "green",
    Status.COMPLETED: "green",
    Status.REJECTED: "red",
    Status.PAYMENT_FAILED: "red",
    Status.CANCELLED: "yellow",
    Status.EXPIRED: "yellow",
}


def _item(text: str) -> "LineItem":
    from orderflow_client import item

    parts = text.rsplit(":", 3)
    if len(parts) != 4 or not (parts[1].isdecimal() and parts[3].isdecimal()):
        raise typer.BadParameter("must be SKU:QUANTITY:CURRENCY:AMOUNT_MINOR, as SKU-1:2:EUR:1999", param_hint="--item")
    sku, quantity, currency, amount = parts
    try:
        return item(sku, int(quantity), int(amount), currency)
    except ValueError:
        raise typer.BadParameter("has a number that is too large", param_hint="--item") from None


def _amount(text: str) -> "Money":
    from orderflow_client import Money

    currency, _, amount = text.partition(":")
    if not (currency and amount.isdecimal()):
        raise typer.BadParameter("must be CURRENCY:AMOUNT_MINOR, for example EUR:998", param_hint="--amount")
    try:
        return Money(currency_code=currency, amount_minor=int(amount))
    except ValueError:
        raise typer.BadParameter("has a number that is too large", param_hint="--amount") from None


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter("must be KEY=VALUE", param_hint="--label")
    return key, value


def _order_row(order: "Order") -> dict[str, Any]:
    return {
        "order_id": order.order_id,
        "status": enum_name(order, "status"),
        "payment": enum_name(order, "payment_status"),
        "reason": order.failure_reason,
        "total": _money(order.total),
        "user": order.user_id,
        "created": _time(order.create_time, "seconds"),
    }


def _found_row(found: "FoundOrder") -> dict[str, Any]:
    return {"order_id": found.order_id, "by": enum_name(found, "kind")}


def _event_row(entry: "OrderHistoryEntry") -> dict[str, Any]:
    return {
        "time": _time(entry.occur_time, "milliseconds"),
        "type": entry.type,
        "rev": entry.revision or "",
        "status": enum_name(entry, "status"),
        "payment": enum_name(entry, "payment_status"),
        "reason": entry.reason,
        "source": entry.source,
    }


def _time(timestamp: "Timestamp", precision: str) -> str:
    if not timestamp.seconds:
        return ""
    return timestamp.ToDatetime().isoformat(timespec=precision) + "Z"


def _money(money: "Money") -> str:
    return f"{money.currency_code}:{money.amount_minor}" if money.currency_code else ""
