"""What the payment processor gives back: of cancelled orders, what was asked for, several at once, and replays."""

import asyncio
import dataclasses
import datetime
from typing import Any

import pytest

from domain.failures import Permanent, Transient
from domain.identifiers import caused_event_id
from domain.records import Delivery
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.events.v1.order_event_pb2 import OrderEventType as E
from orderflow.operations.v1.dead_letter_service_pb2 import DeadLetterState
from orderflow.orders.v1.order_pb2 import Money
from storage.database import Database
from storage.dead_letters import AlreadyResolved, DeadLetterId, DeadLetters
from storage.discarded_refunds import DiscardRefused
from storage.order_history import OrderHistory
from storage.refund_decisions import RefundIntent
from tests import engines
from tests.builders import a_delivery, an_id, order_event
from tests.lives import ORDER_PROCESSOR, PATIENCE, PAYMENT_PROCESSOR, TOTAL, Life
from tests.served import ReadModel
from workers.gateways.gateway import GatewayRefused, KeyClosed


@pytest.fixture
async def life(database: Database) -> Life:
    """A paid order."""
    life = await Life(database).begin()
    await life.drain()
    assert await life.stands() == ("PAID", "CAPTURED")
    return life


def euros(cents: int) -> Money:
    return Money(currency_code="EUR", amount_minor=cents)


async def refunded(life: Life, cents: int | None = None, **fields: Any) -> str | None:
    """Asks for a refund, lets it be handled and returns its answer."""
    if cents is not None:
        fields["amount"] = euros(cents)
    command = life.command("refund", **fields)
    await life.drain()
    return await life.refusal(command)


async def test_parts_up_to_the_total_and_not_a_cent_more(life: Life) -> None:
    assert await refunded(life, 400, reason="DAMAGED") == ""
    assert await life.stands() == ("PAID", "PARTIALLY_REFUNDED")
    event = life.emitted[-1]
    assert (event.type, event.revision) == (E.ORDER_EVENT_TYPE_PAYMENT_REFUNDED, 4)
    assert (event.payment_refunded.amount, event.payment_refunded.whole) == (euros(400), False)
    assert event.payment_refunded.reason == "DAMAGED"
    assert event.order.refunded == euros(400)
    assert await refunded(life, TOTAL - 399) == "REFUND_TOO_LARGE"
    assert await refunded(life, 600) == ""
    assert await refunded(life) == ""
    assert await life.stands() == ("REFUNDED", "REFUNDED")
    assert life.emitted[-1].payment_refunded.whole
    assert await life.entries() == [("capture", TOTAL), ("refund", 400), ("refund", 600), ("refund", 500)]
    assert await refunded(life) == "ILLEGAL_TRANSITION"
    await life.check()


@pytest.mark.parametrize("before", [(), ("ship",), ("ship", "complete")])
async def test_a_whole_refund_of_its_own_is_a_status_and_leaves_the_stock_sold(
    life: Life, before: tuple[str, ...]
) -> None:
    for name in before:
        life.command(name)
    await life.drain()
    assert await refunded(life) == ""
    assert await life.stands() == ("REFUNDED", "REFUNDED")
    await life.check()


async def test_who_may_not_and_what_does_not_fit(life: Life, database: Database) -> None:
    assert await refunded(life, 1, caller="stranger", scopes=[]) == "ORDER_NOT_FOUND"
    assert await refunded(life, 1, scopes=["orders:write"]) == "ORDER_NOT_FOUND", "the owner is no operator"
    assert await refunded(life, 1, caller="") == "NOT_DUE", "the system gives back what is due, and nothing else"
    assert await refunded(life, 1, etag='"other"') == "ETAG_MISMATCH"
    assert await refunded(life, amount=Money(currency_code="USD", amount_minor=1)) == "CURRENCY_MISMATCH"
    unpaid = await Life(database).begin()
    command = unpaid.command("refund")
    unpaid.positions[PAYMENT_PROCESSOR] = 1
    await unpaid.drain()
    assert await unpaid.refusal(command) == "ILLEGAL_TRANSITION"
    assert life.gateway.given_back == 0


async def test_a_refund_without_a_row_is_tried_again_and_in_the_end_refused(life: Life) -> None:
    life.command("refund")
    event = life.orders[-1]
    event.order.order_id = an_id()
    with pytest.raises(Transient, match="ORDER_UNKNOWN"):
        await life.handle(a_delivery(event, group=PAYMENT_PROCESSOR))
    last = a_delivery(event, group=PAYMENT_PROCESSOR, is_last=True)
    assert await life.handle(last) == []
    assert await life.refusal(last) == "ORDER_NOT_FOUND"


async def test_refunds_at_once_never_exceed_the_charge(life: Life) -> None:
    commands = [life.command("refund", amount=euros(400)) for _ in range(6)]
    await asyncio.gather(*map(life.handle, commands))
    refusals = sorted([await life.refusal(each) or "" for each in commands])
    assert refusals == ["", "", "", "REFUND_TOO_LARGE", "REFUND_TOO_LARGE", "REFUND_TOO_LARGE"]
    assert life.gateway.given_back == 1200
    await life.drain()
    await life.check()


async def test_one_refund_by_two_processes_is_one_refund(life: Life) -> None:
    command = life.command("refund", amount=euros(400))
    answers = await asyncio.gather(*(life.handle(command) for _ in range(4)))
    assert all(answer == answers[0] for answer in answers)
    assert (await life.entries())[1:] == [("refund", 400)]
    assert life.gateway.given_back == 400


async def test_a_replay_emits_the_same_and_a_copy_nothing(life: Life) -> None:
    command = life.command("refund", request_id="r-1")
    emitted = await life.handle(command)
    assert [event.type for event in emitted] == [E.ORDER_EVENT_TYPE_PAYMENT_REFUNDED]
    assert await life.handle(command) == emitted
    assert await life.handle(life.put(command.event)) == []
    assert life.gateway.given_back == TOTAL


async def test_a_refund_that_was_sent_goes_on_whatever_the_order_became(life: Life) -> None:
    life.gateway.faults = {1: "dies after"}
    command = life.command("refund", amount=euros(400))
    await life.step(PAYMENT_PROCESSOR)  # ORDER_PROCESSING was handled before; this is the refund, and it dies
    assert life.gateway.given_back == 400
    life.command("ship")
    life.command("complete")
    await life.drain(ORDER_PROCESSOR)
    await life.drain()
    assert await life.refusal(command) == ""
    assert await life.stands() == ("COMPLETED", "PARTIALLY_REFUNDED")
    await life.check()


async def test_a_cancellation_gives_back_what_refunds_have_left(life: Life) -> None:
    assert await refunded(life, 400) == ""
    life.command("cancel")
    await life.drain()
    assert await life.stands() == ("CANCELLED", "REFUNDED")
    assert (await life.entries())[1:] == [("refund", 400), ("refund", 1100)]
    await life.check()


async def test_a_cancellation_does_not_give_back_what_a_refund_under_way_does(life: Life) -> None:
    refund = life.command("refund", amount=euros(400))
    assert isinstance(await life._refunds._decisions.intend(refund), RefundIntent)
    life.positions[PAYMENT_PROCESSOR] += 1
    life.command("cancel")
    await life.drain()
    assert await life.stands() == ("CANCELLED", "PARTIALLY_REFUNDED")
    assert life.gateway.given_back == 1100
    await life.again(refund)
    assert await life.stands() == ("CANCELLED", "REFUNDED")
    await life.check()


async def test_a_refused_refund_counts_no_more_and_a_cancelled_orders_is_asked_for_again(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = life.command("refund", amount=euros(400))
    life.positions[PAYMENT_PROCESSOR] += 1
    refund = life.gateway.refund

    async def cancelled_meanwhile(key: str, **asked: Any) -> Any:
        if key != f"refund-{command.event.event_id}":
            return await refund(key, **asked)
        life.command("cancel")
        await life.drain()
        raise GatewayRefused("GATEWAY_REFUND_TOO_LARGE", "told to")

    monkeypatch.setattr(life.gateway, "refund", cancelled_meanwhile)
    assert await life.handle(command) == []
    assert await life.refusal(command) == "REFUND_REFUSED"
    assert await life.stands() == ("CANCELLED", "PARTIALLY_REFUNDED")
    assert await life.sweep() == 1
    await life.drain()
    assert await life.stands() == ("CANCELLED", "REFUNDED")
    await life.check()


async def test_an_approval_that_finds_its_payment_closed_is_swept_and_given_back(database: Database) -> None:
    """A gateway must not charge under a closed key. One that does loses nobody's money."""
    life = await Life(database).begin()
    charge = life.delivery(PAYMENT_PROCESSOR, 0)
    await life._payments.intend(charge)
    life.positions[PAYMENT_PROCESSOR] = 1
    life.command("cancel")
    await life.drain()
    payment = await life.payment()
    assert payment is not None
    assert payment["state"] == "closed"
    life.gateway._book._closed.clear()
    asked = {"order_id": life.order_id, "amount_minor": TOTAL, "currency_code": "EUR", "payment_method": "pm"}
    late = await life.gateway.charge(f"charge-{life.order_id}", **asked)
    assert await life._payments.captured(charge, gateway_reference=late.reference) == []
    payment = await life.payment()
    assert payment is not None
    assert payment["refund_due"]
    assert await life.sweep() == 1
    await life.drain()
    assert await life.stands() == ("CANCELLED", "REFUNDED")
    assert life.emitted[-1].payment_refunded.reason == "LATE_APPROVAL"
    life.now += datetime.timedelta(minutes=1)
    assert await life.sweep() == 0
    await life.check()


async def test_a_charge_of_an_expired_order_is_swept_and_given_back(database: Database) -> None:
    """Its key was not closed at the gateway: nothing had been sent, for all that PostgreSQL knew."""
    life = await Life(database).begin()
    life.gateway.faults = {0: "away"}
    await life.step(PAYMENT_PROCESSOR)
    charge = life.delivery(PAYMENT_PROCESSOR, 0)
    life.now += datetime.timedelta(days=1)
    assert await life.sweep() == 1
    await life.drain(ORDER_PROCESSOR)
    assert await life.stands() == ("EXPIRED", "NONE")
    asked = {"order_id": life.order_id, "amount_minor": TOTAL, "currency_code": "EUR", "payment_method": "pm"}
    late = await life.gateway.charge(f"charge-{life.order_id}", **asked)
    assert await life._payments.captured(charge, gateway_reference=late.reference) == []
    await life.drain()
    life.now += datetime.timedelta(seconds=30)
    assert await life.sweep() == 1
    await life.drain()
    assert await life.stands() == ("EXPIRED", "REFUNDED")
    assert life.emitted[-1].payment_refunded.whole
    life.now += datetime.timedelta(hours=1)
    assert await life.sweep() == 0
    await life.check()


# -- what nobody has settled -------------------------------------------------------------------------------------------


def pass_by(life: Life) -> None:
    """A payment processor of an older version does not know the types of what stands on the topic."""
    life.positions[PAYMENT_PROCESSOR] = len(life.orders)


async def settled_by_a_sweep(life: Life) -> None:
    assert await life.sweep() == 0, "too early"
    life.now += PATIENCE
    assert await life.sweep() == 1
    await life.drain()
    assert life.dead == []
    life.now += PATIENCE
    assert await life.sweep() == 0
    await life.check()


async def test_a_cancellation_that_nobody_handled_gives_the_money_back_all_the_same(life: Life) -> None:
    life.command("cancel")
    await life.drain(ORDER_PROCESSOR)
    pass_by(life)
    await settled_by_a_sweep(life)
    assert await life.stands() == ("CANCELLED", "REFUNDED")
    assert life.emitted[-1].payment_refunded.reason == "OVERDUE"


@pytest.mark.parametrize(("fault", "payment"), [("dies after", "REFUNDED"), ("dies before", "NONE")])
async def test_a_charge_that_a_cancellation_left_open_is_closed(database: Database, fault: Any, payment: str) -> None:
    life = await Life(database).begin()
    life.gateway.faults = {0: fault}
    await life.step(PAYMENT_PROCESSOR)
    life.command("cancel")
    await life.drain(ORDER_PROCESSOR)
    pass_by(life)
    await settled_by_a_sweep(life)
    assert await life.stands() == ("CANCELLED", payment)
    assert f"charge-{life.order_id}" in life.gateway._book._closed


async def test_a_capture_that_was_booked_after_the_cancellation_passed_by(database: Database) -> None:
    life = await Life(database).begin()
    life.gateway.after_charge = lambda: cancelled(life)
    await life.step(PAYMENT_PROCESSOR)
    pass_by(life)
    payment = await life.payment()
    assert payment is not None
    assert payment["state"] == "captured"
    await settled_by_a_sweep(life)
    assert await life.stands() == ("CANCELLED", "REFUNDED")


async def cancelled(life: Life) -> None:
    life.command("cancel")
    await life.drain(ORDER_PROCESSOR)


async def test_a_cancellation_that_is_only_late_and_a_sweep_give_back_once(life: Life) -> None:
    await cancelled(life)
    life.now += PATIENCE
    assert await life.sweep() == 1
    await life.drain()
    assert (await life.entries())[1:] == [("refund", TOTAL)]
    await life.check()


@pytest.fixture
async def unknown(life: Life, request: pytest.FixtureRequest) -> Delivery:
    """A record whose refund the gateway never answered for: given up, with a dead letter."""
    life.gateway.faults = {1: "late", 2: "late"}
    what = getattr(request, "param", "refund")
    if what == "a part":
        life.command("refund", amount=euros(400))
    else:
        life.command(what)
    await life.drain()
    [given_up] = life.dead
    assert life.gateway.given_back == 0
    return given_up


@pytest.mark.parametrize("unknown", ["refund", "a part", "cancel"], indirect=True)
async def test_a_refund_that_nobody_knows_of_is_settled_once_its_key_is_forgotten(
    life: Life, database: Database, unknown: Delivery
) -> None:
    which = await listed(database, unknown)
    for hours in (1, 21):
        life.now += datetime.timedelta(hours=hours)
        assert await life.sweep() == 0, "inside the window the gateway would only repeat its error"
    life.now += datetime.timedelta(hours=2)
    assert await life.sweep() == 1
    await life.drain()
    refund = life.emitted[-1]
    assert refund.type == E.ORDER_EVENT_TYPE_PAYMENT_REFUNDED
    assert refund.metadata.causation_id == unknown.event.event_id, "it is what that record has led to"
    assert refund.event_id == caused_event_id(unknown.event.event_id, refund.type)
    if unknown.event.type == E.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED:
        assert await life.refusal(unknown) == ""
    letter = await DeadLetters(database).get(which)
    assert letter is not None
    assert letter.state == DeadLetterState.DEAD_LETTER_STATE_SETTLED
    assert letter.resolved_by == PAYMENT_PROCESSOR
    await life.check()
    await life.gateway.execute_late()
    await life.replay_dead()
    assert life.dead == []
    assert life.emitted[-1] == refund, "a replay of what a sweep has settled emits nothing"
    await life.check()


async def test_a_sweep_that_learns_nothing_either_leaves_one_dead_letter_and_the_next_settles_it(
    life: Life, unknown: Delivery
) -> None:
    life.gateway.faults = {3: "late", 4: "late"}
    life.now += datetime.timedelta(days=1)
    assert await life.sweep() == 1
    await life.drain()
    assert life.dead == [unknown]
    assert await life.refusal(life.delivery(PAYMENT_PROCESSOR, len(life.orders) - 1)) == "REFUND_UNKNOWN"
    life.now += datetime.timedelta(hours=1)
    assert await life.sweep() == 0
    life.now += datetime.timedelta(hours=23)
    assert await life.sweep() == 1
    await life.drain()
    await life.check()
    assert await life.stands() == ("REFUNDED", "REFUNDED")


@pytest.mark.parametrize("fault", ["dies before", "dies after", "away", "lost"])
async def test_a_sweep_that_is_interrupted_goes_on_with_what_it_took_up(
    life: Life, unknown: Delivery, fault: Any
) -> None:
    life.gateway.faults = {3: fault}
    life.now += datetime.timedelta(days=1)
    assert await life.sweep() == 1
    await life.drain()
    assert life.dead == [unknown]
    assert (await life.entries())[1:] == [("refund", TOTAL)]
    await life.check()


async def test_what_a_caller_asked_for_and_the_gateway_refuses_in_the_end_is_told(
    life: Life, unknown: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(life, monkeypatch)
    life.now += datetime.timedelta(days=1)
    assert await life.sweep() == 1
    await life.drain()
    assert life.dead == [unknown]
    assert await life.refusal(unknown) == "REFUND_REFUSED"
    monkeypatch.undo()
    assert await refunded(life) == "", "it counts no more"
    await life.check()


async def test_a_refusal_of_a_refund_of_which_nothing_is_out_decides(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.gateway.faults = {1: "away"}
    command = life.command("refund")
    await life.step(PAYMENT_PROCESSOR)
    [row] = await engines.fetch(life.database, "select * from refunds where order_id = $1", life.order_id)
    assert (row["state"], row["first_send_time"]) == ("intended", None)
    refuse(life, monkeypatch)
    await life.drain()
    assert await life.refusal(command) == "REFUND_REFUSED"


async def test_a_refund_whose_send_may_have_been_made_by_another_is_not_taken_back(life: Life) -> None:
    """A zombie intends, its successor goes on and sends: what the zombie failed to send tells nothing of that."""
    command = life.command("refund")
    decisions = life._refunds._decisions
    zombie = await decisions.intend(command)
    assert isinstance(zombie, RefundIntent)
    life.now += datetime.timedelta(seconds=1)
    await decisions.intend(command)
    await decisions.not_sent(zombie)
    [row] = await engines.fetch(life.database, "select * from refunds where order_id = $1", life.order_id)
    assert row["first_send_time"] is not None


def refuse(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the gateway refuse every refund from now on: the charge is disputed, or the account is closed."""

    async def refused(*_: Any, **__: Any) -> Any:
        raise GatewayRefused("GATEWAY_REFUSED", "told to")

    monkeypatch.setattr(life.gateway, "refund", refused)


async def listed(database: Database, given_up: Delivery) -> DeadLetterId:
    """Has the projector read the dead letter of a record, and returns what it is called."""
    event, at = given_up.event, given_up.coordinates
    letter = DeadLetter(
        group=given_up.group,
        error_class="GATEWAY_CHARGE_UNKNOWN",
        key=event.order.order_id.encode(),
        value=event.SerializeToString(),
    )
    letter.origin.topic, letter.origin.partition, letter.origin.offset = at.topic, at.partition, at.offset
    await ReadModel(database).add(dead_letters=[letter])
    rows = await engines.fetch(
        database,
        "select partition, record_offset from dead_letters d where order_id = $1 and dead_letter = $2 and not exists"
        " (select from dead_letter_resolutions r"
        " where r.partition = d.partition and r.record_offset = d.record_offset)",
        event.order.order_id,
        letter.SerializeToString(),
    )
    return DeadLetterId(int(str(rows[0]["partition"])), int(str(rows[0]["record_offset"])))


async def test_a_charge_that_meets_a_closed_key_is_nothing_when_its_order_is_cancelled(database: Database) -> None:
    life = await Life(database).begin()

    async def cancel() -> None:
        life.command("cancel")
        await life.drain(ORDER_PROCESSOR)
        cancelled = life.delivery(PAYMENT_PROCESSOR, len(life.orders) - 1)
        assert await life.handle(cancelled) == []

    life.gateway.before_charge = cancel
    await life.drain()
    assert await life.stands() == ("CANCELLED", "NONE")
    assert life.dead == []
    await life.check()


async def test_a_key_that_somebody_else_closed_is_a_dead_letter(database: Database) -> None:
    life = await Life(database).begin()
    await life.gateway.close(f"charge-{life.order_id}")
    with pytest.raises(KeyClosed):
        await life.handle(life.delivery(PAYMENT_PROCESSOR, 0))


async def test_an_unknown_charge_is_settled_by_a_cancellation(database: Database) -> None:
    for executes in ("lost", "late"):
        life = await Life(database).begin()
        life.gateway.faults = {0: executes, 1: executes}  # type: ignore[dict-item]
        if executes == "lost":
            life.gateway._book.find = lambda _: None  # type: ignore[method-assign]
        await life.drain()
        assert await life.stands() == ("PROCESSING", "UNKNOWN")
        life.command("cancel")
        await life.drain(ORDER_PROCESSOR)
        assert await life.stands() == ("CANCELLED", "NONE")
        if executes == "lost":
            del life.gateway._book.find
        await life.drain()
        await life.gateway.execute_late()
        await life.check()
        await life.replay_dead()
        await life.check()


async def test_a_cancelled_record_of_an_order_that_is_not_is_refused(life: Life) -> None:
    forged = order_event(E.ORDER_EVENT_TYPE_ORDER_CANCELLED, await life.row())
    with pytest.raises(Permanent, match="INVALID_EVENT"):
        await life.handle(a_delivery(forged, group=PAYMENT_PROCESSOR))
    assert life.gateway.given_back == 0


@pytest.mark.parametrize("name", ["refund", "cancel"])
async def test_a_dead_letter_with_money_to_give_back_is_not_discarded(
    life: Life, database: Database, name: str
) -> None:
    life.gateway.faults = {1: "late", 2: "late"}
    life.command(name)
    await life.drain()
    assert len(life.dead) == 1
    [given_up] = life.dead
    which = await listed(database, given_up)
    with pytest.raises(DiscardRefused, match="REFUND_OPEN"):
        await discard(database, which, reason="gone")
    await life.replay_dead()
    assert (await life.stands())[1] == "REFUNDED"
    with pytest.raises(DiscardRefused, match="OUTCOME_STORED"):
        await discard(database, which, reason="gone")
    await life.check()


async def discard(database: Database, which: DeadLetterId, *, reason: str) -> None:
    await DeadLetters(database).resolve(which, DeadLetterState.DEAD_LETTER_STATE_DISCARDED, by="olga", reason=reason)


async def test_a_refund_that_the_gateway_will_never_make_is_given_up_with_its_dead_letter(
    life: Life, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(life, monkeypatch)
    await cancelled(life)
    await life.drain()
    await life.replay_dead()
    [given_up] = life.dead
    which = await listed(database, given_up)
    life.now += datetime.timedelta(days=1)
    assert await life.sweep() == 0, "the gateway has said what it thinks of it"
    await discard(database, which, reason="the charge is disputed")
    assert await life.stands() == ("CANCELLED", "CAPTURED"), "the state says that the money was kept"
    assert await life.entries() == [("capture", TOTAL)]
    history = await OrderHistory(database).page(life.order_id, size=10, after=None)
    assert [(row.resolution, row.resolution_reason) for row in history] == [("DISCARDED", "the charge is disputed")]
    monkeypatch.undo()
    await life.replay_dead()
    assert life.dead == []
    life.put(given_up.event)
    await life.drain()
    for _ in range(2):
        life.now += datetime.timedelta(days=1)
        assert await life.sweep() == 0
    assert life.gateway.given_back == 0
    await life.check(given_up=TOTAL)
    with pytest.raises(DiscardRefused, match="OUTCOME_STORED"):
        await discard(database, await listed(database, given_up), reason="again")


@pytest.mark.parametrize("unknown", ["cancel"], indirect=True)
@pytest.mark.parametrize("by", [0, 1], ids=["who asked", "the sweep"])
async def test_one_discard_gives_up_what_two_records_have_tried(
    life: Life, database: Database, monkeypatch: pytest.MonkeyPatch, unknown: Delivery, by: int
) -> None:
    refuse(life, monkeypatch)
    life.now += datetime.timedelta(days=1)
    assert await life.sweep() == 1
    await life.drain()
    assert life.dead[0] == unknown
    assert len(life.dead) == 2
    letters = [await listed(database, each) for each in life.dead]
    await discard(database, letters[by], reason="the account is closed")
    other = await DeadLetters(database).get(letters[1 - by])
    assert other is not None
    assert other.state == DeadLetterState.DEAD_LETTER_STATE_SETTLED
    with pytest.raises(AlreadyResolved):
        await discard(database, letters[by], reason="again")
    monkeypatch.undo()
    await life.replay_dead()
    assert life.dead == []
    assert life.gateway.given_back == 0
    await life.check(given_up=TOTAL)


async def test_a_discard_goes_by_the_event_and_not_by_a_place_that_a_header_names(
    life: Life, database: Database
) -> None:
    """Who may write to dlq chooses the header. What stands there is no reason to keep the letter of another record."""
    decided = life.command("refund", amount=euros(1))
    await life.drain()
    never_decided = dataclasses.replace(decided, event=order_event(order=await life.row()))
    await discard(database, await listed(database, never_decided), reason="nothing comes of it")
    with pytest.raises(DiscardRefused, match="OUTCOME_STORED"):
        await discard(database, await listed(database, decided), reason="something came of it")
