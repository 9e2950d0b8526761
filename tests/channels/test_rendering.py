"""Every event, in every language, for every channel."""

import re
import tomllib

import pytest

from domain.failures import Permanent
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import LineItem, Money, NotificationChannel, Order, Shipment
from tests.channels.builders import EMAIL, EVENT_ID, LIFECYCLE, ORDER_ID, PHONE, an_event, renderer
from workers.channels.rendering import TEMPLATES

EMAIL_CHANNEL = NotificationChannel.NOTIFICATION_CHANNEL_EMAIL
SMS_CHANNEL = NotificationChannel.NOTIFICATION_CHANNEL_SMS
LANGUAGES = sorted(path.name for path in TEMPLATES.iterdir() if path.is_dir())
RENDERER = renderer()

every_event = pytest.mark.parametrize("event_type", LIFECYCLE, ids=OrderEventType.Name)
every_language = pytest.mark.parametrize("language", LANGUAGES)


def test_there_are_ten_lifecycle_events_and_two_languages() -> None:
    assert len(LIFECYCLE) == 10
    assert LANGUAGES == ["de", "en"]


@every_event
@every_language
class TestEveryTemplate:
    def test_email(self, event_type: OrderEventType, language: str) -> None:
        message = RENDERER.render(an_event(event_type, language=language), EMAIL_CHANNEL)
        name = OrderEventType.Name(event_type).removeprefix("ORDER_EVENT_TYPE_").lower()
        assert (message.recipient, message.order_id) == (EMAIL, ORDER_ID)
        assert message.template == f"{language}/email/{name}"
        assert message.subject
        assert message.subject.isprintable()
        assert message.html is not None
        assert f'<html lang="{language}">' in message.html
        for body in (message.text, message.html):
            assert ORDER_ID in body
            assert "39.98 EUR" in body
            assert "Corner Shop" in body
            assert "{{" not in body
            assert "{%" not in body
        assert "\n\n\n" not in message.text

    def test_sms(self, event_type: OrderEventType, language: str) -> None:
        message = RENDERER.render(an_event(event_type, language=language), SMS_CHANNEL)
        assert message.recipient == PHONE
        assert message.template.startswith(f"{language}/sms/")
        assert message.subject == ""
        assert message.html is None
        assert ORDER_ID in message.text
        assert len(message.text.strip()) <= 160, "one text message, not two"
        assert "\n" not in message.text.strip()

    def test_an_order_with_nothing_optional(self, event_type: OrderEventType, language: str) -> None:
        bare = OrderEvent(event_id=EVENT_ID, type=event_type)
        bare.order.CopyFrom(Order(order_id=ORDER_ID, email=EMAIL, phone=PHONE, language=language))
        for channel in (EMAIL_CHANNEL, SMS_CHANNEL):
            assert RENDERER.render(bare, channel).text

    def test_hostile_values_stay_values(self, event_type: OrderEventType, language: str) -> None:
        hostile = "<script>alert(1)</script>\r\nBcc: victim@example.com\u2028{{ words }}"
        event = an_event(
            event_type,
            language=language,
            external_reference=hostile,
            failure_reason=hostile,
            shipment=Shipment(carrier=hostile, tracking_code=hostile),
            items=[LineItem(sku=hostile, quantity=1, unit_price=Money(currency_code=hostile, amount_minor=1))],
            total=Money(currency_code=hostile, amount_minor=1),
        )
        email, sms = RENDERER.render(event, EMAIL_CHANNEL), RENDERER.render(event, SMS_CHANNEL)
        assert email.html is not None
        assert "<script" not in email.html
        assert "&lt;script&gt;" in email.html
        assert email.subject.isprintable()
        assert not re.search(r"^Bcc:", f"{email.text}{sms.text}{email.html}", re.MULTILINE)
        assert "{{ words }}" in email.text, "values are not templates"


class TestLanguage:
    @pytest.mark.parametrize(
        ("tag", "language"),
        [
            ("de", "de"),
            ("de-AT", "de"),
            ("DE-at", "de"),
            ("de-Latn-AT-1996", "de"),
            ("en-GB", "en"),
            ("fr", "en"),
            ("", "en"),
            ("-", "en"),
            ("../../etc", "en"),
            ("de/../en", "en"),
        ],
    )
    def test_falls_back_from_the_tag_to_the_language_to_english(self, tag: str, language: str) -> None:
        for channel in (EMAIL_CHANNEL, SMS_CHANNEL):
            assert RENDERER.render(an_event(language=tag), channel).template.partition("/")[0] == language

    def test_all_languages_have_the_same_words(self) -> None:
        words = [tomllib.loads((TEMPLATES / name / "words.toml").read_text("utf-8")) for name in LANGUAGES]
        assert len({frozenset(each) for each in words}) == 1
        assert len({frozenset(each["reasons"]) for each in words}) == 1

    def test_all_languages_have_the_same_templates(self) -> None:
        folders = [TEMPLATES / name for name in LANGUAGES]
        files = [{path.relative_to(folder) for path in folder.rglob("*.*")} for folder in folders]
        assert files == [files[0]] * len(LANGUAGES)


class TestReason:
    @pytest.mark.parametrize("event_type", ["ORDER_REJECTED", "PAYMENT_FAILED"])
    @pytest.mark.parametrize(
        ("reason", "language", "words"),
        [
            ("OUT_OF_STOCK", "en", "sold out"),
            ("OUT_OF_STOCK", "de", "ausverkauft"),
            ("STOLEN_CARD", "en", "could not be completed"),
            ("", "de", "nicht möglich"),
        ],
    )
    def test_is_told_in_words(self, event_type: str, reason: str, language: str, words: str) -> None:
        number = OrderEventType.Value(f"ORDER_EVENT_TYPE_{event_type}")
        event = an_event(number, failure_reason=reason, language=language)
        message = RENDERER.render(event, EMAIL_CHANNEL)
        assert message.html is not None
        assert words in message.text
        assert words in message.html
        assert not re.search(r"[A-Z]+_[A-Z]+", message.text)


class TestMessageId:
    def test_is_the_same_at_every_attempt_and_of_its_own_per_channel(self) -> None:
        assert RENDERER.render(an_event(), EMAIL_CHANNEL).message_id == f"<{EVENT_ID}.email@shop.example>"
        assert renderer().render(an_event(), EMAIL_CHANNEL) == RENDERER.render(an_event(), EMAIL_CHANNEL)
        assert RENDERER.render(an_event(), SMS_CHANNEL).message_id == f"<{EVENT_ID}.sms@shop.example>"

    @pytest.mark.parametrize("event_id", ["", "x", EVENT_ID.upper(), f"{EVENT_ID}\r\nBcc: victim@example.com"])
    def test_an_event_id_that_is_none_is_refused(self, event_id: str) -> None:
        event = an_event()
        event.event_id = event_id
        with pytest.raises(Permanent, match="INVALID_EVENT_ID"):
            RENDERER.render(event, EMAIL_CHANNEL)


class TestRefused:
    def test_no_recipient(self) -> None:
        with pytest.raises(Permanent, match="NO_RECIPIENT"):
            RENDERER.render(an_event(phone=""), SMS_CHANNEL)

    @pytest.mark.parametrize("event_type", [0, 20, 40, 41, 99])
    def test_what_is_not_a_lifecycle_event(self, event_type: int) -> None:
        with pytest.raises(Permanent, match="NO_TEMPLATE"):
            RENDERER.render(an_event(event_type), EMAIL_CHANNEL)

    def test_an_amount_beyond_64_bits(self) -> None:
        price = Money(currency_code="EUR", amount_minor=2**62)
        with pytest.raises(Permanent, match="INVALID_AMOUNT"):
            RENDERER.render(an_event(items=[LineItem(sku="A", quantity=4, unit_price=price)]), EMAIL_CHANNEL)


def test_a_name_that_a_template_misspells_stops_the_message() -> None:
    # StrictUndefined: a typo must not become a gap in a sentence to a customer.
    template = RENDERER._environment.from_string("{{ totl }}")
    with pytest.raises(Exception, match="'totl' is undefined"):
        template.render(total="1")
