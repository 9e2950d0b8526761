"""Turns an event into the message that tells of it.

Templates stand in `templates/<language>/<channel>/<event>.txt` (and `.html` for e-mail); the words that they share in
`templates/<language>/words.toml`. A language, an event or a channel is added by adding files.
"""

import tomllib
import uuid
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from domain.failures import Permanent
from domain.money import format_amount
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import Money, NotificationChannel, Order
from workers.channels.channel import Message

FALLBACK_LANGUAGE: Final = "en"

TEMPLATES: Final = Path(__file__).with_name("templates")


class Renderer:
    """Renders messages. Every template is compiled at the start, so that a broken one stops it."""

    def __init__(self, *, message_id_domain: str, shop_name: str) -> None:
        self._domain = message_id_domain
        self._shop_name = shop_name
        self._environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            undefined=StrictUndefined,
            autoescape=select_autoescape(["html"], default=False),
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._templates = {
            name: self._environment.get_template(name) for name in self._environment.list_templates(["txt", "html"])
        }
        self._words = {
            path.parent.name: tomllib.loads(path.read_text(encoding="utf-8")) for path in TEMPLATES.glob("*/words.toml")
        }

    def render(self, event: OrderEvent, channel: NotificationChannel) -> Message:
        """Returns the message that tells of `event` through `channel`.

        Raises:
            Permanent: there is no template for it, nobody to send it to, or the event is not a valid one.
        """
        recipient = recipient_of(event.order, channel)
        if not recipient:
            raise Permanent("NO_RECIPIENT", f"the order has no address for {channel_name(channel)}")
        template = self._template_for(event, channel)
        language = template.partition("/")[0]
        values = _values(event, self._words[language], language, self._shop_name)
        text = self._templates[f"{template}.txt"].render(values)
        html = self._templates.get(f"{template}.html")
        subject = ""
        if channel == NotificationChannel.NOTIFICATION_CHANNEL_EMAIL:  # its text begins with the subject line
            subject, _, text = text.partition("\n")
        return Message(
            recipient=recipient,
            subject=subject.strip(),
            text=f"{text.strip()}\n",
            html=html.render(values, subject=subject.strip()) if html else None,
            message_id=message_id(event.event_id, channel, self._domain),
            template=template,
            order_id=event.order.order_id,
        )

    def _template_for(self, event: OrderEvent, channel: NotificationChannel) -> str:
        """Returns the name, without its ending, in the first of the customer's languages that has it."""
        event_name = _event_name(event)
        for language in _languages(event.order.language):
            name = f"{language}/{channel_name(channel)}/{event_name}"
            if f"{name}.txt" in self._templates:
                return name
        raise Permanent("NO_TEMPLATE", f"no {channel_name(channel)} template for {event_name}")


def channel_name(channel: NotificationChannel) -> str:
    """Returns `email` or `sms`: the name in templates, Message-IDs and metrics."""
    return NotificationChannel.Name(channel).removeprefix("NOTIFICATION_CHANNEL_").lower()


def recipient_of(order: Order, channel: NotificationChannel) -> str:
    """Returns where the order's customer is reached through `channel`; empty if nowhere."""
    match channel:
        case NotificationChannel.NOTIFICATION_CHANNEL_EMAIL:
            return order.email
        case NotificationChannel.NOTIFICATION_CHANNEL_SMS:
            return order.phone
        case _:
            return ""


def message_id(event_id: str, channel: NotificationChannel, domain: str) -> str:
    """Returns the Message-ID, the same at every attempt.

    Raises:
        Permanent: `event_id` is not a UUID as we write it; it comes from a topic and ends up in a header.
    """
    try:
        valid = str(uuid.UUID(event_id)) == event_id
    except ValueError:
        valid = False
    if not valid:
        raise Permanent("INVALID_EVENT_ID", "event_id is not a lower-case UUID")
    return f"<{event_id}.{channel_name(channel)}@{domain}>"


def _event_name(event: OrderEvent) -> str:
    try:
        return OrderEventType.Name(event.type).removeprefix("ORDER_EVENT_TYPE_").lower()
    except ValueError:
        return f"type_{event.type}"


def _languages(tag: str) -> list[str]:
    """Returns the tag, ever shorter, and the fallback: `de-AT` is tried as de-at, de, en."""
    parts = tag.lower().split("-")
    return ["-".join(parts[:length]) for length in range(len(parts), 0, -1)] + [FALLBACK_LANGUAGE]


def _values(event: OrderEvent, words: dict[str, Any], language: str, shop_name: str) -> dict[str, object]:
    """Returns what templates may use. Everything that somebody wrote into the order is one line of printable text."""
    order = event.order
    reasons = words["reasons"]
    refunded_now = event.payment_refunded.amount if event.HasField("payment_refunded") else order.refunded
    return {
        "language": language,
        "words": words,
        "shop": shop_name,
        "number": _one_line(order.external_reference) or _one_line(order.order_id),
        "lines": [
            {
                "sku": _one_line(item.sku),
                "quantity": item.quantity,
                "amount": _amount(item.unit_price, times=item.quantity),
            }
            for item in order.items
        ],
        "total": _amount(order.total),
        "refund": _amount(refunded_now),
        "reason": reasons.get(order.failure_reason, reasons["OTHER"]),
        "carrier": _one_line(order.shipment.carrier),
        "tracking_code": _one_line(order.shipment.tracking_code),
    }


def _amount(money: Money, times: int = 1) -> str:
    try:
        product = Money(currency_code=money.currency_code, amount_minor=money.amount_minor * times)
    except ValueError:
        raise Permanent("INVALID_AMOUNT", "an amount of the order does not fit into 64 bits") from None
    return _one_line(format_amount(product))


def _one_line(text: str) -> str:
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())
