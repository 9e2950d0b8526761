"""What the payment processor gives back: of cancelled orders, what was asked for, several at once, and replays."""

import asyncio
import datetime
from typing import Any

import pytest

from domain.failures import Permanent, Transient
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.events.v1.order_event_pb2 import OrderEventType as E
from orderflow.operations.v1.dead_letter_service_pb2 import DeadLetterState
from orderflow.orders.v1.order_pb2 import Money
from storage.database import Database
from storage.dead_letters import DeadLetterId, DeadLetters, DiscardRefused
from storage.refund_decisions import RefundIntent
from tests import engines
from tests.builders import a_delivery, an_id, order_event
from tests.lives import ORDER_PROCESSOR, PAYMENT_PROCESSOR, TOTAL, Life
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
    last = a_delivery(event, group=PAYMENT_PROCESSOR, attempt=9)
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
    assert isinstance(await life._refunds._decisions.intend(refund, is_last=False), RefundIntent)
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
    letter = DeadLetter(group=PAYMENT_PROCESSOR, error_class="GATEWAY_CHARGE_UNKNOWN", key=life.order_id.encode())
    letter.origin.topic, letter.origin.offset = "orders", int(life.order_id[:8], 16) + 10**9
    await ReadModel(database).add(dead_letters=[letter])
    [row] = await engines.fetch(
        database, "select partition, record_offset from dead_letters where order_id = $1", life.order_id
    )
    which = DeadLetterId(int(str(row["partition"])), int(str(row["record_offset"])))
    discarded = DeadLetterState.DEAD_LETTER_STATE_DISCARDED
    with pytest.raises(DiscardRefused, match="REFUND_OPEN"):
        await DeadLetters(database).resolve(which, discarded, by="olga", reason="gone")
    await life.replay_dead()
    assert (await life.stands())[1] == "REFUNDED"
    await DeadLetters(database).resolve(which, discarded, by="olga", reason="it was replayed")
    await life.check()
