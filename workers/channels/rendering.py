"""Turns an event into the message that tells of it.

Templates stand in `templates/<language>/<channel>/<event>.txt` (and `.html` for e-mail); the words that they share in
`templates/<language>/words.toml`. A language, an event or a channel is added by adding files.
"""

import dataclasses
import functools
import tomllib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, select_autoescape
from jinja2.runtime import Context

from domain.failures import Permanent
from domain.identifiers import is_canonical_uuid
from domain.money import format_amount
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import Money, NotificationChannel, Order
from workers.channels.channel import Message

FALLBACK_LANGUAGE: Final = "en"

TEMPLATES: Final = Path(__file__).with_name("templates")

_EMAIL: Final = NotificationChannel.NOTIFICATION_CHANNEL_EMAIL
_SMS: Final = NotificationChannel.NOTIFICATION_CHANNEL_SMS
_MOST_AMOUNT: Final = 2**63


# What templates look into are objects: jinja tries an attribute first, and a mapping that has none costs an exception.


@dataclasses.dataclass(slots=True)
class _Line:
    sku: str
    quantity: int
    amount: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Words:
    """What the templates of a language share."""

    in_templates: types.SimpleNamespace
    reasons: Mapping[str, str]


def _read_words(path: Path) -> _Words:
    words = tomllib.loads(path.read_text(encoding="utf-8"))
    return _Words(types.SimpleNamespace(**words), words["reasons"])


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
            cache_size=-1,  # they are not many: a template finds its layout without a lock
        )
        self._templates = {
            name: self._environment.get_template(name) for name in self._environment.list_templates(["txt", "html"])
        }
        self._words = {path.parent.name: _read_words(path) for path in TEMPLATES.glob("*/words.toml")}
        self._template_for = functools.lru_cache(maxsize=1024)(self._look_up)  # what a language is, its caller says

    def render(self, event: OrderEvent, channel: NotificationChannel) -> Message:
        """Returns the message that tells of `event` through `channel`.

        Raises:
            Permanent: there is no template for it, nobody to send it to, or the event is not a valid one.
        """
        recipient = recipient_of(event.order, channel)
        if not recipient:
            raise Permanent("NO_RECIPIENT", f"the order has no address for {channel_name(channel)}")
        template = self._template_for(event.type, event.order.language, channel)
        language = template.partition("/")[0]
        values = _values(event, self._words[language], language, self._shop_name)
        text = _rendered(self._templates[f"{template}.txt"], values)
        html = self._templates.get(f"{template}.html")
        subject = ""
        if channel == _EMAIL:  # its text begins with the subject line
            subject, _, text = text.partition("\n")
        return Message(
            recipient=recipient,
            subject=subject.strip(),
            text=f"{text.strip()}\n",
            html=_rendered(html, values | {"subject": subject.strip()}) if html else None,
            message_id=message_id(event.event_id, channel, self._domain),
            template=template,
            order_id=event.order.order_id,
        )

    def _look_up(self, event_type: OrderEventType, tag: str, channel: NotificationChannel) -> str:
        """Returns the template's name, without its ending, in the first of the customer's languages that has it."""
        event_name = _event_name(event_type)
        for language in _languages(tag):
            name = f"{language}/{channel_name(channel)}/{event_name}"
            if f"{name}.txt" in self._templates:
                return name
        raise Permanent("NO_TEMPLATE", f"no {channel_name(channel)} template for {event_name}")


def _rendered(template: Template, values: dict[str, object]) -> str:
    """Returns what `Template.render` does, without jinja's globals, which no template uses and which cost a third."""
    return "".join(template.root_render_func(Context(template.environment, values, template.name, template.blocks)))


@functools.cache
def channel_name(channel: NotificationChannel) -> str:
    """Returns `email` or `sms`: the name in templates, Message-IDs and metrics."""
    return NotificationChannel.Name(channel).removeprefix("NOTIFICATION_CHANNEL_").lower()


def recipient_of(order: Order, channel: NotificationChannel) -> str:
    """Returns where the order's customer is reached through `channel`; empty if nowhere."""
    if channel == _EMAIL:
        return order.email
    return order.phone if channel == _SMS else ""


def message_id(event_id: str, channel: NotificationChannel, domain: str) -> str:
    """Returns the Message-ID, the same at every attempt.

    Raises:
        Permanent: `event_id` is not a UUID as we write it; it comes from a topic and ends up in a header.
    """
    if not is_canonical_uuid(event_id):
        raise Permanent("INVALID_EVENT_ID", "event_id is not a lower-case UUID")
    return f"<{event_id}.{channel_name(channel)}@{domain}>"


def _event_name(event_type: OrderEventType) -> str:
    try:
        return OrderEventType.Name(event_type).removeprefix("ORDER_EVENT_TYPE_").lower()
    except ValueError:
        return f"type_{event_type}"


def _languages(tag: str) -> list[str]:
    """Returns the tag, ever shorter, and the fallback: `de-AT` is tried as de-at, de, en."""
    parts = tag.lower().split("-")
    return ["-".join(parts[:length]) for length in range(len(parts), 0, -1)] + [FALLBACK_LANGUAGE]


def _values(event: OrderEvent, words: _Words, language: str, shop_name: str) -> dict[str, object]:
    """Returns what templates may use. Everything that somebody wrote into the order is one line of printable text."""
    order = event.order
    refunded_now = event.payment_refunded.amount if event.HasField("payment_refunded") else order.refunded
    return {
        "language": language,
        "words": words.in_templates,
        "shop": shop_name,
        "number": _one_line(order.external_reference) or _one_line(order.order_id),
        "lines": [
            _Line(_one_line(item.sku), item.quantity, _amount(item.unit_price, times=item.quantity))
            for item in order.items
        ],
        "total": _amount(order.total),
        "refund": _amount(refunded_now),
        "reason": words.reasons.get(order.failure_reason, words.reasons["OTHER"]),
        "carrier": _one_line(order.shipment.carrier),
        "tracking_code": _one_line(order.shipment.tracking_code),
    }


def _amount(money: Money, times: int = 1) -> str:
    product = money.amount_minor * times
    if not -_MOST_AMOUNT <= product < _MOST_AMOUNT:
        raise Permanent("INVALID_AMOUNT", "an amount of the order does not fit into 64 bits")
    return _one_line(format_amount(product, money.currency_code))


def _one_line(text: str) -> str:
    if not text.isprintable():
        text = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(text.split())
