"""The checker: a clean run is green, and each planted violation turns its invariant red, and only that one."""

import ast
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from chaos import checker
from chaos.oracle import rules
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_pb2 import Money, Order, OrderStatus, PaymentStatus
from orderflow.orders.v1.order_service_pb2 import CancelOrderRequest, ShipOrderRequest
from tests.chaos.saved_run import NOW, SKU, SavedRun, a_uuid, mail, octets, text

Spoil = Callable[[SavedRun], None]

_CHAOS = pathlib.Path(checker.__file__).parent


def spoilt(tmp_path: pathlib.Path, spoil: Spoil) -> checker.Verdict:
    saved = SavedRun()
    spoil(saved)
    return checker.check(saved.write(tmp_path / "run"))


def test_a_clean_run_is_green(tmp_path: pathlib.Path) -> None:
    verdict = spoilt(tmp_path, lambda saved: None)
    assert verdict.passed, verdict.text()
    assert verdict.counts["orders"] == 12
    assert verdict.dangers["aborted transaction"] == 1


# -- one violation each --------------------------------------------------------------------------------------------


def lose_an_acknowledged_order(saved: SavedRun) -> None:
    order = Order()
    order.CopyFrom(saved.paid[0].order)
    order.order_id = a_uuid("lost")
    saved.call(order, request_id="lost")


def acknowledge_other_content(saved: SavedRun) -> None:
    answer = saved.clients[1]
    order = Order.FromString(octets(answer["order"]) or b"")
    order.total.amount_minor += 1
    answer["order"] = text(order.SerializeToString())


def invent_an_order(saved: SavedRun) -> None:
    saved.clients = [line for line in saved.clients if line.get("call") not in (0,)]


def keep_a_refused_order(saved: SavedRun) -> None:
    saved.clients[1] = {"kind": "refused", "call": 0, "reason": "INVALID"}


def invent_a_row(saved: SavedRun) -> None:
    saved.tables["payments"].append(
        {
            "order_id": a_uuid("nobody"),
            "idempotency_key": f"charge-{a_uuid('nobody')}",
            "state": "declined",
            "refund_due": False,
            "gateway_intent": None,
            "gateway_closed": False,
        }
    )


def leave_the_row_behind(saved: SavedRun) -> None:
    row = saved.rows("orders", saved.paid[0].order.order_id)[0]
    row["status"], row["revision"] = OrderStatus.ORDER_STATUS_PROCESSING, 2


def swap_amounts(saved: SavedRun) -> None:
    """One order is charged too much and one too little, so that the sums agree."""
    charges = [line for line in saved.gateway if line.get("approved")]
    charges[0]["amount_minor"], charges[1]["amount_minor"] = 400, 1600


def book_other_amounts(saved: SavedRun) -> None:
    first, second = saved.tables["payment_entries"][:2]
    first["amount_minor"], second["amount_minor"] = 400, 1600


def give_back_other_parts(saved: SavedRun) -> None:
    """As much as PostgreSQL and the topics say, in all."""
    first, second = (line for line in saved.gateway if line["kind"] == "refund" and line["amount_minor"] < 1000)
    first["amount_minor"] = second["amount_minor"] = 500


def give_back_too_much(saved: SavedRun) -> None:
    """Everywhere alike."""
    saved.live_on(saved.completed, lambda life: give_back(saved, life, 1200))


def keep_the_money(saved: SavedRun) -> None:
    """Nobody gives back what a cancelled order was charged, and nobody says so."""
    saved.live_on(saved.paid, lambda life: saved.cancel(life))
    saved.tables["stock"][0].update(available=92, sold=6)


def keep_what_an_expired_order_was_charged(saved: SavedRun) -> None:
    saved.live_on(saved.expired, saved.capture)


def forget_what_was_given_back(saved: SavedRun) -> None:
    def live(life: list[OrderEvent]) -> None:
        give_back(saved, life, 300)
        before = Order()
        before.CopyFrom(life[-1].order)
        before.ClearField("refunded")
        before.payment_status = PaymentStatus.PAYMENT_STATUS_CAPTURED
        saved.obey(life, "ShipOrder", "ORDER_SHIPPED", "SHIPPED", before=before)

    saved.live_on(saved.paid, live)


def charge_nobody(saved: SavedRun) -> None:
    saved.gateway.append({**saved.gateway[0], "key": "charge-other", "order_id": a_uuid("other")})


def give_back_to_nobody(saved: SavedRun) -> None:
    refund = next(line for line in saved.gateway if line["kind"] == "refund")
    saved.gateway.append({**refund, "key": "refund-other", "charge_reference": "ch_other"})


def use_two_keys(saved: SavedRun) -> None:
    saved.gateway.append({**saved.gateway[1], "key": "charge-again", "reference": "ch_again"})


def use_a_key_twice(saved: SavedRun) -> None:
    saved.gateway.append({**saved.gateway[1], "amount_minor": 1, "reference": "ch_again"})


def leave_a_charge_open(saved: SavedRun) -> None:
    saved.rows("payments", saved.declined[0].order.order_id)[0]["state"] = "intended"


def leave_a_charge_of_an_expired_order_open(saved: SavedRun) -> None:
    saved.owe(saved.expired[0].order.order_id, "intended")


def leave_the_key_of_a_cancelled_order_open(saved: SavedRun) -> None:
    key = f"charge-{saved.cancelled[0].order.order_id}"
    saved.gateway = [line for line in saved.gateway if (line["kind"], line["key"]) != ("close", key)]


def leave_a_refund_open(saved: SavedRun) -> None:
    saved.rows("refunds", saved.paid_back[0].order.order_id)[0]["state"] = "intended"


def ask_for_no_refund_that_is_due(saved: SavedRun) -> None:
    saved.rows("payments", saved.paid_back[0].order.order_id)[0]["refund_due"] = True


def oversell(saved: SavedRun) -> None:
    saved.tables["stock"][0] = {"sku": SKU, "available": -1, "held": 2, "sold": 99}


def leak_stock(saved: SavedRun) -> None:
    saved.tables["stock"][0]["available"] -= 2


def sell_what_was_cancelled(saved: SavedRun) -> None:
    saved.tables["stock"][0].update(available=88, sold=10)


def hold_what_has_expired(saved: SavedRun) -> None:
    saved.tables["stock"][0].update(available=88, held=4)


def take_back_what_was_refunded(saved: SavedRun) -> None:
    saved.tables["stock"][0].update(available=92, sold=6)


def first_mail(saved: SavedRun) -> tuple[str, str, str]:
    event = saved.paid[0]
    return "0.eml", f"<{event.event_id}.email@shop.example>", event.order.email


def tell_nobody(saved: SavedRun) -> None:
    del saved.mail[first_mail(saved)[0]]


def tell_twice(saved: SavedRun) -> None:
    _, message_id, recipient = first_mail(saved)
    saved.mail["again.eml"] = mail(message_id, recipient, "email", at=5)


def tell_somebody_else(saved: SavedRun) -> None:
    name, message_id, _ = first_mail(saved)
    saved.mail[name] = mail(message_id, "other@customers.example", "email")


def tell_of_nothing(saved: SavedRun) -> None:
    saved.mail["other.eml"] = mail(f"<{a_uuid('aborted')}.email@shop.example>", "a@b.example", "email")


def tell_nobody_of(event: OrderEvent, saved: SavedRun) -> None:
    saved.mail = {name: content for name, content in saved.mail.items() if f"<{event.event_id}.sms@" not in content}


def tell_nobody_of_a_refund(saved: SavedRun) -> None:
    tell_nobody_of(saved.refunded[-1], saved)


def tell_nobody_of_an_expiry(saved: SavedRun) -> None:
    tell_nobody_of(saved.expired[-1], saved)


def emit_twice(saved: SavedRun) -> None:
    saved.append("payments", saved.paid[2].order.order_id.encode(), saved.paid[2].SerializeToString())
    saved.end()


def pass_a_record_by(saved: SavedRun) -> None:
    """What followed from it is there, and the decision is not: the next replay would decide again."""
    saved.tables["outcomes"].remove(saved.outcome("notification-sms", saved.declined[1].event_id))


def pass_a_command_by(saved: SavedRun) -> None:
    """One that was refused, and answered."""
    saved.tables["outcomes"].remove(saved.outcome("order-processor", a_uuid("sweep 1")))


def pass_a_cancellation_by(saved: SavedRun) -> None:
    """Nothing was charged, so nothing followed."""
    saved.tables["outcomes"].remove(saved.outcome("payment-processor", saved.cancelled[-1].event_id))


def emit_other_than_decided(saved: SavedRun) -> None:
    outcome = saved.outcome("payment-processor", saved.paid[1].event_id)
    event = OrderEvent.FromString(octets(outcome["events"][0]) or b"")
    event.metadata.attempt = 7
    outcome["events"] = [text(event.SerializeToString())]


def forget_a_parked_record(saved: SavedRun) -> None:
    """Parked as a copy that nobody decided on."""
    record = next(row for row in saved.topics if row["value"] == text(saved.paid[1].SerializeToString()))
    parked = saved.park(record, "order-processor", tier=1, attempts=3, at=10)
    assert parked["topic"] == "order-processor.retry.1s"
    saved.end()


def park_without_an_attempt(saved: SavedRun) -> None:
    second = next(row for row in saved.topics if row["topic"] == "order-processor.retry.3s")
    header = next(each for each in second["headers"] if each[0] == "retry_attempts")
    header[1] = text(b"3")


def handle_too_early(saved: SavedRun) -> None:
    second = next(row for row in saved.topics if row["topic"] == "order-processor.retry.3s")
    second["timestamp"] = int((NOW + 10.2) * 1000)


def skip_a_dead_letter(saved: SavedRun) -> None:
    letter = next(row for row in saved.topics if row["topic"] == "dlq" and row["value"] == saved.garbage["value"])
    saved.topics.remove(letter)
    saved.tables["dead_letters"] = [
        row for row in saved.tables["dead_letters"] if row["record_offset"] != letter["offset"]
    ]


def change_a_dead_letter(saved: SavedRun) -> None:
    letter = next(row for row in saved.topics if row["topic"] == "dlq" and row["value"] == saved.garbage["value"])
    letter["value"] = text(b"\xff")


def write_a_dead_letter_twice(saved: SavedRun) -> None:
    saved.letter(saved.garbage, "order-processor", "UNDECODABLE", attempts=1)
    saved.end()


def kill_a_valid_record(saved: SavedRun) -> None:
    record = next(row for row in saved.topics if row["value"] == text(saved.paid[0].SerializeToString()))
    saved.letter(record, "order-processor", "UNEXPECTED_ERROR", attempts=3)
    saved.end()


def blame_no_gateway(saved: SavedRun) -> None:
    """Nothing explains that a charge and a refund are open."""
    saved.faults = [fault for fault in saved.faults if fault["target"] != "gateway"]


def hide_a_dead_letter(saved: SavedRun) -> None:
    saved.tables["dead_letters"].pop()


def see_an_order_go_back(saved: SavedRun) -> None:
    seen = next(line for line in saved.clients if line["kind"] == "seen")
    saved.clients.append({**seen, "revision": 1})


def read_older_than_the_token(saved: SavedRun) -> None:
    seen = next(line for line in saved.clients if line["kind"] == "seen")
    seen["least"] = 4


def skip_a_state(saved: SavedRun) -> None:
    saved.live_on(saved.paid, lambda life: saved.obey(life, "CompleteOrder", "ORDER_COMPLETED", "COMPLETED"))


def cancel_what_is_delivered(saved: SavedRun) -> None:
    def live(life: list[OrderEvent]) -> None:
        saved.cancel(life)
        saved.give_back(life, life[-1], 1000)

    saved.live_on(saved.completed, live)
    saved.tables["stock"][0].update(available=92, sold=6)


def watch_an_order_twice(saved: SavedRun) -> None:
    watched(saved)["revisions"] = [2, 3, 3]


def watch_over_a_gap(saved: SavedRun) -> None:
    watched(saved)["revisions"] = [3]


def watched(saved: SavedRun) -> dict[str, Any]:
    return next(line for line in saved.clients if line["kind"] == "watched")


def lose_a_view(saved: SavedRun) -> None:
    saved.tables["order_views"].pop(0)


def lose_history(saved: SavedRun) -> None:
    saved.tables["order_events"].pop(3)


def project_an_old_state(saved: SavedRun) -> None:
    saved.tables["order_views"][0]["snapshot"] = text(saved.paid[1].order.SerializeToString())


def miss_a_failure(saved: SavedRun) -> None:
    saved.tables["projection_failures"].pop()


def stop_projecting(saved: SavedRun) -> None:
    saved.tables["projection_positions"][0]["position"] -= 1


def answer_one_request_with_two_orders(saved: SavedRun) -> None:
    """The second answer names the order of another request with the same content."""
    saved.call(saved.unknown[0].order, request_id="paid")


def lag(saved: SavedRun) -> None:
    saved.info["committed"]["notification-sms"]["notification-sms.retry.1s"]["0"] -= 1


def hang(saved: SavedRun) -> None:
    saved.info["ends"]["notifications"]["0"]["high"] += 2


def look_nowhere(saved: SavedRun) -> None:
    del saved.info["ends"]["dlq"]


def end_unhealthy(saved: SavedRun) -> None:
    saved.info["unhealthy"] = ["projector"]


def never_settle(saved: SavedRun) -> None:
    saved.info["settled"] = False


def log_an_address(saved: SavedRun) -> None:
    saved.logs["server.log"] = '{"event": "oops", "to": "canary@customers.example"}\n'


def tell_dlq_an_address(saved: SavedRun) -> None:
    letter = next(row for row in saved.topics if row["topic"] == "dlq")
    letter["headers"].append(["dlq_error_message", text(b"no such user: canary@customers.example")])


def say_ok_to_what_was_refused(saved: SavedRun) -> None:
    next(line for line in saved.clients if line.get("reason"))["kind"] = "ok"


def say_no_to_what_was_done(saved: SavedRun) -> None:
    answer = answer_to(saved, "CancelOrder")
    answer["kind"], answer["reason"] = "refused", "ILLEGAL_TRANSITION"


def say_no_to_one_of_two(saved: SavedRun) -> None:
    """The same call, twice."""
    answer = answer_to(saved, "ShipOrder")
    answer["kind"], answer["reason"] = "refused", "ILLEGAL_TRANSITION"


def say_that_kafka_was_away(saved: SavedRun) -> None:
    """What was not handed over has not happened."""
    answer = answer_to(saved, "CancelOrder")
    answer["kind"], answer["reason"] = "refused", "KAFKA_UNAVAILABLE"


def say_how_another_order_is(saved: SavedRun) -> None:
    answer_to(saved, "CancelOrder")["order"] = text(saved.paid[-1].order.SerializeToString())


def say_how_it_was_before(saved: SavedRun) -> None:
    answer_to(saved, "CancelOrder")["order"] = text(saved.cancelled[0].order.SerializeToString())


def lose_a_command(saved: SavedRun) -> None:
    request = CancelOrderRequest(order_id=saved.paid[0].order.order_id, request_id="lost").SerializeToString()
    number, order = len(saved.clients), text(saved.paid[-1].order.SerializeToString())
    call = {"kind": "command", "call": number, "caller": "local", "method": "CancelOrder", "request": text(request)}
    saved.clients += [call, {"kind": "ok", "call": number, "order": order}]


def ask_for_nobody(saved: SavedRun) -> None:
    number = answer_to(saved, "CancelOrder")["call"]
    saved.clients = [line for line in saved.clients if line.get("call") != number]


def ask_by_itself(saved: SavedRun) -> None:
    """The system cancels an order, and nothing is wrong with that but that nobody asked."""
    saved.live_on(saved.paid_back, lambda life: saved.command(life, "CancelOrder", caller=""))


def ask_in_other_words(saved: SavedRun) -> None:
    call = next(line for line in saved.clients if line.get("method") == "ShipOrder")
    request = ShipOrderRequest.FromString(octets(call["request"]) or b"")
    request.carrier = "Another Service"
    for line in saved.clients:
        if line.get("method") == "ShipOrder":
            line["request"] = text(request.SerializeToString())


def answer_no_command(saved: SavedRun) -> None:
    saved.tables["command_answers"].pop()


def do_nothing(saved: SavedRun) -> None:
    saved.live_on(saved.paid, lambda life: saved.command(life, "CancelOrder"))


def give_nothing_back(saved: SavedRun) -> None:
    """A refund is not done by the one before."""
    saved.live_on(saved.refunded, lambda life: saved.command(life, "RefundOrder"))


def give_back_twice(saved: SavedRun) -> None:
    def live(life: list[OrderEvent]) -> None:
        saved.give_back(life, give_back(saved, life, 300), 300)

    saved.live_on(saved.completed, live)


def give_another_amount_back(saved: SavedRun) -> None:
    saved.live_on(saved.completed, lambda life: give_back(saved, life, 300, asked=299))


def give_back(saved: SavedRun, life: list[OrderEvent], amount_minor: int, *, asked: int = 0) -> OrderEvent:
    amount = Money(currency_code="EUR", amount_minor=asked or amount_minor)
    command = saved.command(life, "RefundOrder", amount=amount)
    saved.give_back(life, command, amount_minor)
    saved.clients[-1]["order"] = text(life[-1].order.SerializeToString())
    return command


def refuse_and_do(saved: SavedRun) -> None:
    def live(life: list[OrderEvent]) -> None:
        command = saved.command(life, "ShipOrder", refusal="ETAG_MISMATCH")
        life.append(saved.follow(command, "ORDER_SHIPPED", "SHIPPED", "orders", "order-processor", life[-1].order))

    saved.live_on(saved.paid, live)


def refuse_what_may_be_asked(saved: SavedRun) -> None:
    saved.live_on(saved.paid, lambda life: saved.command(life, "ShipOrder", refusal="ILLEGAL_TRANSITION"))


def refuse_as_what_it_never_was(saved: SavedRun) -> None:
    saved.tables["command_answers"][-2]["refused_status"] = OrderStatus.ORDER_STATUS_SHIPPED


def answer_to(saved: SavedRun, method: str) -> dict[str, Any]:
    number = next(line["call"] for line in saved.clients if line.get("method") == method)
    return next(line for line in saved.clients if line.get("call") == number and line["kind"] == "ok")


def meet_no_danger(saved: SavedRun) -> None:
    saved.logs.clear()


PLANTED: list[tuple[str, Spoil]] = [
    ("I1", lose_an_acknowledged_order),
    ("I1", acknowledge_other_content),
    ("I2", invent_an_order),
    ("I2", keep_a_refused_order),
    ("I2", invent_a_row),
    ("I3", leave_the_row_behind),
    ("I5", swap_amounts),
    ("I5", book_other_amounts),
    ("I5", give_back_other_parts),
    ("I5", give_back_too_much),
    ("I5", keep_the_money),
    ("I5", keep_what_an_expired_order_was_charged),
    ("I5", forget_what_was_given_back),
    ("I6", charge_nobody),
    ("I6", give_back_to_nobody),
    ("I7", use_two_keys),
    ("I7", use_a_key_twice),
    ("I7", leave_a_charge_open),
    ("I7", leave_a_charge_of_an_expired_order_open),
    ("I7", leave_the_key_of_a_cancelled_order_open),
    ("I7", leave_a_refund_open),
    ("I7", ask_for_no_refund_that_is_due),
    ("I8", oversell),
    ("I8", leak_stock),
    ("I8", sell_what_was_cancelled),
    ("I8", hold_what_has_expired),
    ("I8", take_back_what_was_refunded),
    ("I9", tell_nobody),
    ("I9", tell_twice),
    ("I9", tell_somebody_else),
    ("I9", tell_of_nothing),
    ("I9", tell_nobody_of_a_refund),
    ("I9", tell_nobody_of_an_expiry),
    ("I10", emit_twice),
    ("I10", pass_a_record_by),
    ("I10", pass_a_command_by),
    ("I10", pass_a_cancellation_by),
    ("I10", emit_other_than_decided),
    ("I11", park_without_an_attempt),
    ("I11", handle_too_early),
    ("I11", forget_a_parked_record),
    ("I12", skip_a_dead_letter),
    ("I12", change_a_dead_letter),
    ("I12", write_a_dead_letter_twice),
    ("I12", kill_a_valid_record),
    ("I12", blame_no_gateway),
    ("I12", hide_a_dead_letter),
    ("I13", see_an_order_go_back),
    ("I13", read_older_than_the_token),
    ("I13", skip_a_state),
    ("I13", cancel_what_is_delivered),
    ("I13", watch_an_order_twice),
    ("I13", watch_over_a_gap),
    ("I14", lose_a_view),
    ("I14", lose_history),
    ("I14", project_an_old_state),
    ("I14", miss_a_failure),
    ("I14", stop_projecting),
    ("I15", answer_one_request_with_two_orders),
    ("I16", lag),
    ("I16", hang),
    ("I16", look_nowhere),
    ("I16", end_unhealthy),
    ("I16", never_settle),
    ("I17", log_an_address),
    ("I17", tell_dlq_an_address),
    ("I18", say_ok_to_what_was_refused),
    ("I18", say_no_to_what_was_done),
    ("I18", say_no_to_one_of_two),
    ("I18", say_that_kafka_was_away),
    ("I18", say_how_another_order_is),
    ("I18", say_how_it_was_before),
    ("I18", lose_a_command),
    ("I18", ask_for_nobody),
    ("I18", ask_by_itself),
    ("I18", ask_in_other_words),
    ("I18", answer_no_command),
    ("I18", do_nothing),
    ("I18", give_nothing_back),
    ("I18", give_back_twice),
    ("I18", give_another_amount_back),
    ("I18", refuse_and_do),
    ("I18", refuse_what_may_be_asked),
    ("I18", refuse_as_what_it_never_was),
    ("sometimes", meet_no_danger),
]


@pytest.mark.parametrize(("invariant", "spoil"), PLANTED, ids=[f"{name}-{spoil.__name__}" for name, spoil in PLANTED])
def test_a_planted_violation_turns_its_invariant_red(tmp_path: pathlib.Path, invariant: str, spoil: Spoil) -> None:
    verdict = spoilt(tmp_path, spoil)
    assert verdict.broken() == {invariant}, verdict.text()


@pytest.mark.parametrize("intent", [None, "pi_1"])
def test_a_mark_closes_the_key_of_a_cancelled_order_where_the_gateway_has_nothing_to_confirm(
    tmp_path: pathlib.Path, intent: str | None
) -> None:
    def mark(saved: SavedRun) -> None:
        leave_the_key_of_a_cancelled_order_open(saved)
        row = saved.rows("payments", saved.cancelled[0].order.order_id)[0]
        row["gateway_closed"], row["gateway_intent"] = True, intent

    verdict = spoilt(tmp_path, mark)
    assert verdict.broken() == ({"I7"} if intent else set()), verdict.text()


def report(saved: SavedRun, order_id: str) -> OrderEvent:
    """Has the gateway report on an order, twice, and the payment processor make nothing of it."""
    reported = saved.event(None, "PAYMENT_REPORTED", Order(order_id=order_id), payment_reported={"report_id": "evt_1"})
    reported.metadata.source, reported.metadata.caller = "webhook", ""
    reported.command.SetInParent()
    saved.emit(reported, "orders")
    saved.append("orders", order_id.encode(), reported.SerializeToString())
    saved.end()
    return reported


def test_a_report_that_was_delivered_twice_is_green(tmp_path: pathlib.Path) -> None:
    verdict = spoilt(tmp_path, lambda saved: report(saved, saved.paid[0].order.order_id) and None)
    assert verdict.passed, verdict.text()


def test_a_report_that_was_passed_over_is_red(tmp_path: pathlib.Path) -> None:
    def forget(saved: SavedRun) -> None:
        reported = report(saved, saved.paid[0].order.order_id)
        saved.tables["outcomes"].remove(saved.outcome("payment-processor", reported.event_id))

    verdict = spoilt(tmp_path, forget)
    assert verdict.broken() == {"I10"}, verdict.text()


def test_a_gap_in_the_revisions_is_red(tmp_path: pathlib.Path) -> None:
    verdict = checker.check(SavedRun(gap=True).write(tmp_path / "run"))
    assert verdict.broken() == {"I13"}, verdict.text()


def test_a_second_outcome_of_a_payment_is_red(tmp_path: pathlib.Path) -> None:
    saved = SavedRun()
    second = OrderEvent()
    second.CopyFrom(saved.declined[2])
    second.event_id = a_uuid("second")
    saved.outcome("payment-processor", saved.declined[1].event_id)["events"].append(text(second.SerializeToString()))
    saved.emit(second, "payments")
    saved.tell(second)
    saved.end()
    verdict = checker.check(saved.write(tmp_path / "run"))
    assert verdict.broken() == {"I4", "I13"}, "two outcomes are two events of one revision, too: " + verdict.text()


def test_a_payment_after_the_order_was_called_off_is_red(tmp_path: pathlib.Path) -> None:
    def pay(saved: SavedRun) -> None:
        def live(life: list[OrderEvent]) -> None:
            life.append(saved.follow(life[-1], "ORDER_PAID", "PAID", "payments", "payment-processor"))

        saved.live_on(saved.cancelled, live)

    verdict = spoilt(tmp_path, pay)
    assert {"I4", "I13"} <= verdict.broken(), verdict.text()


def test_a_second_charge_under_the_same_key_is_red(tmp_path: pathlib.Path) -> None:
    verdict = spoilt(tmp_path, lambda saved: saved.gateway.append({**saved.gateway[0], "reference": "ch_again"}))
    assert verdict.broken() == {"I5", "I6"}, "it is in the sums, too: " + verdict.text()


def test_an_order_that_never_ends_is_red(tmp_path: pathlib.Path) -> None:
    def resolve(saved: SavedRun) -> None:
        """The dead letter that parks the order is not there."""
        letter = next(row for row in saved.topics if ["dlq_error_class", text(b"PAYMENT_UNKNOWN")] in row["headers"])
        saved.topics.remove(letter)
        saved.tables["dead_letters"] = [
            row for row in saved.tables["dead_letters"] if row["record_offset"] != letter["offset"]
        ]

    verdict = spoilt(tmp_path, resolve)
    assert {"I3", "I4", "I7", "I10"} <= verdict.broken(), verdict.text()


def test_an_expired_order_that_was_charged_all_the_same_gets_its_money_back(tmp_path: pathlib.Path) -> None:
    def give_back(saved: SavedRun) -> None:
        def live(life: list[OrderEvent]) -> None:
            saved.capture(life)
            saved.give_back(life, saved.sweep(life, "REFUND", 3), 1000)

        saved.live_on(saved.expired, live)

    verdict = spoilt(tmp_path, give_back)
    assert verdict.passed, verdict.text()


def test_a_sweep_may_go_on_with_a_refund_that_another_record_asked_for(tmp_path: pathlib.Path) -> None:
    def give_back(saved: SavedRun) -> None:
        def live(life: list[OrderEvent]) -> None:
            asked = saved.command(life, "RefundOrder")
            saved.sweep(life, "REFUND", 3)
            saved.give_back(life, asked, 1000)
            saved.clients[-1]["order"] = text(life[-1].order.SerializeToString())

        saved.live_on(saved.completed, live)

    verdict = spoilt(tmp_path, give_back)
    assert verdict.passed, verdict.text()


def test_a_message_is_excused_by_a_kill_between_its_copies_only(tmp_path: pathlib.Path) -> None:
    def repeat(saved: SavedRun) -> None:
        name, message_id, recipient = first_mail(saved)
        saved.mail[name] = mail(message_id, recipient, "email", at=19)
        saved.mail["again.eml"] = mail(message_id, recipient, "email", at=26)

    verdict = spoilt(tmp_path, repeat)
    assert verdict.passed, verdict.text()


# -- the tool itself -----------------------------------------------------------------------------------------------


def test_every_invariant_has_a_planted_violation() -> None:
    elsewhere = {"I4"}
    assert {name for name, _ in PLANTED} | elsewhere == set(checker.CHECKS)


def test_the_command_tells_by_its_exit_code(tmp_path: pathlib.Path) -> None:
    clean, spoilt_run = SavedRun(), SavedRun()
    leak_stock(spoilt_run)
    for saved, code, told in ((clean, 0, "ok   I8"), (spoilt_run, 1, "FAIL I8")):
        folder = saved.write(tmp_path / str(code))
        ended = subprocess.run(
            [sys.executable, "-m", "chaos.checker", str(folder)],
            cwd=_CHAOS.parent,
            env={"PYTHONPATH": f"{_CHAOS.parent / 'generated'}"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (ended.returncode, ended.stderr) == (code, "")
        assert told in ended.stdout


def test_the_oracle_shares_only_the_contract_with_the_product() -> None:
    allowed = set(sys.stdlib_module_names) | {"google", "orderflow"}
    for path in [_CHAOS / "checker.py", _CHAOS / "__init__.py", *(_CHAOS / "oracle").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                shared = name.split(".")[0] not in allowed and not name.startswith("chaos.oracle")
                assert not shared, f"{path.name} imports {name}"


def test_the_state_table_names_every_lifecycle_event() -> None:
    assert {rules.name(event) for event in rules.MOVES} == {
        "ORDER_CREATED", "ORDER_PROCESSING", "ORDER_REJECTED", "ORDER_PAID", "PAYMENT_FAILED", "ORDER_SHIPPED",
        "ORDER_COMPLETED", "ORDER_CANCELLED", "ORDER_EXPIRED", "PAYMENT_REFUNDED",
    }  # fmt: skip
