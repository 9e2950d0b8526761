"""The checker: a clean run is green, and each planted violation turns its invariant red, and only that one."""

import ast
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest

from chaos import checker
from chaos.oracle import rules
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_pb2 import Order, OrderStatus
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
    assert verdict.counts["orders"] == 5
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
        {"order_id": a_uuid("nobody"), "idempotency_key": f"charge-{a_uuid('nobody')}", "state": "declined"}
    )


def leave_the_row_behind(saved: SavedRun) -> None:
    row = saved.rows("orders", saved.paid[0].order.order_id)[0]
    row["status"], row["revision"] = OrderStatus.ORDER_STATUS_PROCESSING, 2


def swap_amounts(saved: SavedRun) -> None:
    """One order is charged too much and one too little, so that the sums agree."""
    charges = [line for line in saved.gateway if line["approved"]]
    charges[0]["amount_minor"], charges[1]["amount_minor"] = 400, 1600


def charge_nobody(saved: SavedRun) -> None:
    saved.gateway.append({**saved.gateway[0], "key": "charge-other", "order_id": a_uuid("other")})


def use_two_keys(saved: SavedRun) -> None:
    saved.gateway.append({**saved.gateway[1], "key": "charge-again", "reference": "ch_again"})


def use_a_key_twice(saved: SavedRun) -> None:
    saved.gateway.append({**saved.gateway[1], "amount_minor": 1, "reference": "ch_again"})


def leave_a_charge_open(saved: SavedRun) -> None:
    saved.rows("payments", saved.declined[0].order.order_id)[0]["state"] = "intended"


def oversell(saved: SavedRun) -> None:
    saved.tables["stock"][0] = {"sku": SKU, "available": -1, "held": 2, "sold": 99}


def leak_stock(saved: SavedRun) -> None:
    saved.tables["stock"][0]["available"] -= 2


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


def emit_twice(saved: SavedRun) -> None:
    saved.append("payments", saved.paid[2].order.order_id.encode(), saved.paid[2].SerializeToString())
    saved.end()


def pass_a_record_by(saved: SavedRun) -> None:
    """What followed from it is there, and the decision is not: the next replay would decide again."""
    saved.tables["outcomes"].remove(saved.outcome("notification-sms", saved.declined[1].event_id))


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


def hide_a_dead_letter(saved: SavedRun) -> None:
    saved.tables["dead_letters"].pop()


def see_an_order_go_back(saved: SavedRun) -> None:
    seen = next(line for line in saved.clients if line["kind"] == "seen")
    saved.clients.append({**seen, "revision": 1})


def read_older_than_the_token(saved: SavedRun) -> None:
    seen = next(line for line in saved.clients if line["kind"] == "seen")
    seen["least"] = 4


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
    ("I6", charge_nobody),
    ("I7", use_two_keys),
    ("I7", use_a_key_twice),
    ("I7", leave_a_charge_open),
    ("I8", oversell),
    ("I8", leak_stock),
    ("I9", tell_nobody),
    ("I9", tell_twice),
    ("I9", tell_somebody_else),
    ("I9", tell_of_nothing),
    ("I10", emit_twice),
    ("I10", pass_a_record_by),
    ("I10", emit_other_than_decided),
    ("I11", park_without_an_attempt),
    ("I11", handle_too_early),
    ("I11", forget_a_parked_record),
    ("I12", skip_a_dead_letter),
    ("I12", change_a_dead_letter),
    ("I12", write_a_dead_letter_twice),
    ("I12", kill_a_valid_record),
    ("I12", hide_a_dead_letter),
    ("I13", see_an_order_go_back),
    ("I13", read_older_than_the_token),
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
    ("sometimes", meet_no_danger),
]


@pytest.mark.parametrize(("invariant", "spoil"), PLANTED, ids=[f"{name}-{spoil.__name__}" for name, spoil in PLANTED])
def test_a_planted_violation_turns_its_invariant_red(tmp_path: pathlib.Path, invariant: str, spoil: Spoil) -> None:
    verdict = spoilt(tmp_path, spoil)
    assert verdict.broken() == {invariant}, verdict.text()


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
