"""What an erasure leaves of an order and of a dead letter, and what outcomes do without (semantics 35)."""

import datetime

import hypothesis
import hypothesis.strategies as st
import pytest

from domain import erasure, letters
from domain.erasure import Erasure
from domain.projection import ProjectionBatch
from domain.records import Coordinates
from orderflow.events.v1.dead_letter_pb2 import DeadLetter, RecordHeader
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_pb2 import Order
from storage import erased_letters, erasures, order_rows
from tests.builders import NOW, a_command, an_id, an_order, order_created, order_event

EMAIL, PHONE = "eva.erased@example.com", "+491701234567"
ERASED = Erasure("erased-0123", NOW + datetime.timedelta(seconds=1))
USER = "user-17"


def an_erased_users_order(**fields: object) -> Order:
    contact = {"user_id": USER, "email": EMAIL, "phone": PHONE, "labels": {"name": "Eva", "shop": "1"}}
    return an_order(**(contact | fields))


def test_contact_data_goes_and_the_order_stays() -> None:
    order = an_erased_users_order(external_reference="order 7", language="de")
    expected = Order()
    expected.CopyFrom(order)
    for field in ("email", "phone", "labels"):
        expected.ClearField(field)
    assert ERASED.clear(order)
    assert order == expected
    assert not ERASED.clear(order), "nothing is left to clear"


@pytest.mark.parametrize(
    "fields", [{"email": EMAIL, "phone": ""}, {"email": "", "phone": PHONE}, {"labels": {"a": "b"}}]
)
def test_any_of_it_is_something_to_clear(fields: dict[str, object]) -> None:
    assert ERASED.clear(an_order(**({"labels": {}} | fields)))


@pytest.mark.parametrize("user_id", [EMAIL, "someone@else.example", PHONE, PHONE[1:], f"tel:{PHONE}"])
def test_a_user_id_that_is_contact_data_is_replaced(user_id: str) -> None:
    order = an_erased_users_order(user_id=user_id)
    assert ERASED.clear(order)
    assert order.user_id == ERASED.pseudonym


def test_so_is_one_whose_order_has_nothing_else_left() -> None:
    order = Order(user_id=EMAIL)
    assert ERASED.clear(order)
    assert order == Order(user_id=ERASED.pseudonym)


@pytest.mark.parametrize("reference", [f"mail to {EMAIL}", PHONE, PHONE[1:], "x@y"])
def test_an_external_reference_that_is_contact_data_is_cleared(reference: str) -> None:
    order = an_erased_users_order(external_reference=reference)
    ERASED.clear(order)
    assert (order.external_reference, order.user_id) == ("", USER)


def test_only_orders_from_before_are_covered() -> None:
    second = datetime.timedelta(seconds=1)
    assert Erasure("", NOW + second).covers(an_order())
    assert not Erasure("", NOW).covers(an_order())
    assert not Erasure("", NOW - second).covers(an_order())
    forged = an_order()
    forged.create_time.seconds = 2**62
    assert not ERASED.covers(forged), "and no time breaks it"


def test_orders_of_others_and_later_ones_are_left_alone() -> None:
    theirs, anothers = an_erased_users_order(), an_erased_users_order(user_id="user-1")
    later = an_erased_users_order(now=NOW + datetime.timedelta(minutes=2))
    assert erasures.clear({USER: ERASED}, [anothers, later, theirs]) == [theirs]
    assert (anothers.email, later.email, theirs.email) == (EMAIL, EMAIL, "")


@pytest.mark.parametrize(
    ("user_id", "is_blanked"), [(erasure.pseudonym_of("0f" * 32), True), (USER, False), ("erased-by-name", False)]
)
async def test_unreadable_bytes_that_arrive_after_their_order_was_cleared_are_blanked(
    monkeypatch: pytest.MonkeyPatch, user_id: str, is_blanked: bool
) -> None:
    """Its user id was contact data: the row has a pseudonym by now, of which no erasure is found."""
    order = an_order(user_id=user_id)

    async def as_placed(*_: object) -> dict[str, Order]:
        return {order.order_id: order}

    async def none_found(*_: object) -> dict[str, Erasure]:
        return {}

    class Connection:
        async def fetch(self, *_: object) -> list[object]:
            return []  # it was not there to be blanked before

        async def executemany(self, *_: object) -> None:
            return None

    monkeypatch.setattr(order_rows, "as_placed", as_placed)
    monkeypatch.setattr(erasures, "find", none_found)
    letter = DeadLetter(key=order.order_id.encode(), value=b"\xff" + EMAIL.encode())
    batch = ProjectionBatch("dlq", 0, 7, 8, dead_letters=[(Coordinates("dlq", 0, 7), letter)])
    await erased_letters.clear_arriving(Connection(), batch)  # type: ignore[arg-type]
    assert (letter.value == b"") is is_blanked


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@hypothesis.given(st.fixed_dictionaries({"user_id": TEXT, "email": TEXT, "phone": TEXT, "external_reference": TEXT,
                                         "labels": st.dictionaries(TEXT, TEXT, max_size=3)}))  # fmt: skip
def test_what_an_outcome_does_without_comes_back_from_the_row(fields: dict[str, object]) -> None:
    event = order_event(order=Order(order_id=an_id(), payment_method="pm", **fields))  # type: ignore[arg-type]
    kept = erasure.impersonal(event)
    assert kept.order == Order(
        order_id=event.order.order_id,
        payment_method="pm",
        status=event.order.status,
        payment_status=event.order.payment_status,
        revision=2,
    )
    row = Order(order_id=event.order.order_id, payment_method="another", **fields)  # type: ignore[arg-type]
    again = OrderEvent.FromString(kept.SerializeToString())
    erasure.restore(again.order, row)
    assert again == event


def test_nothing_comes_back_from_another_order() -> None:
    kept = erasure.impersonal(order_created())
    before = kept.SerializeToString(deterministic=True)
    erasure.restore(kept.order, an_order())
    assert kept.SerializeToString(deterministic=True) == before


def test_an_event_without_an_order_gets_none() -> None:
    assert not erasure.impersonal(OrderEvent(event_id=an_id())).HasField("order")


# -- dead letters ------------------------------------------------------------------------------------------------------


def cleared(letter: DeadLetter, *order_ids: str) -> bool:
    return erased_letters.cleared(letter, {USER: ERASED}, contacts={EMAIL, PHONE}, order_ids=order_ids)


def test_the_event_in_a_dead_letter_is_cleared_and_stays_that_event() -> None:
    event = order_created(an_erased_users_order())
    letter = DeadLetter(key=event.order.order_id.encode(), value=event.SerializeToString(), group="g", replay=2)
    assert cleared(letter)
    expected = OrderEvent()
    expected.CopyFrom(event)
    for field in ("email", "phone", "labels"):
        expected.order.ClearField(field)
    assert letters.event_in(letter) == expected
    assert (letter.group, letter.replay) == ("g", 2)
    assert not cleared(letter), "once"


def test_a_command_and_anothers_event_are_left_as_they_are() -> None:
    for event in (a_command("cancel", an_id()), order_created(an_erased_users_order(user_id="user-1"))):
        letter = DeadLetter(key=event.order.order_id.encode(), value=event.SerializeToString())
        before = letter.SerializeToString()
        assert not cleared(letter, event.order.order_id)
        assert letter.SerializeToString() == before


@pytest.mark.parametrize(
    "letter",
    [
        DeadLetter(key=b"junk", value=b"\xff to " + EMAIL.encode()),
        DeadLetter(key=PHONE.encode()),
        DeadLetter(value=b"\xff", headers=[RecordHeader(name="reply-to", value=EMAIL.encode())]),
    ],
)
def test_of_bytes_that_hold_a_contact_and_are_no_event_nothing_is_kept(letter: DeadLetter) -> None:
    letter.error_class = "UNDECODABLE"
    assert cleared(letter)
    assert letter == DeadLetter(error_class="UNDECODABLE")
    assert not cleared(letter), "once"


def test_nor_of_bytes_under_the_key_of_an_order_of_the_user() -> None:
    order_id = an_id()
    letter = DeadLetter(key=order_id.encode(), value=b"\xff who knows")
    assert not cleared(letter, an_id())
    assert cleared(letter, order_id)
    assert letter == DeadLetter(key=order_id.encode())
    assert not cleared(letter, order_id), "once"
