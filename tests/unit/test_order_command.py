"""`orderflow order`, against a scripted server."""

import asyncio
import json
import os
import pathlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner, Result

from cli.connection import Connection
from cli.explain import why
from cli.main import app
from cli.order import Channel, Status
from clients.tests.scripted_server import Refusal, ScriptedOrders, bad_request, error_info, proceed, serving
from orderflow.orders.v1.order_history_pb2 import OrderHistoryEntry
from orderflow.orders.v1.order_pb2 import Money, NotificationChannel, Order, OrderStatus, PaymentStatus
from orderflow.orders.v1.order_service_pb2 import GetOrderRequest, WatchOrderRequest
from orderflow.orders.v1.order_service_pb2_grpc import OrderServiceStub

CREATE = "create --user u-1 --email a@example.com --payment-method pm_card_visa --item SKU-1:2:EUR:1999".split()
ID = "0d5c0f8e-6d3f-4b1c-9f57-0123456789ab"

Run = Callable[..., Coroutine[Any, Any, Result]]


@pytest.fixture
def orders() -> ScriptedOrders:
    return ScriptedOrders()


@pytest.fixture
async def run(orders: ScriptedOrders, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Run]:
    """Runs `orderflow order ...` beside the server."""
    async with serving(orders) as target:
        monkeypatch.setenv("ORDERFLOW_TARGET", target)
        yield lambda *arguments: asyncio.to_thread(CliRunner().invoke, app, ["order", *arguments])


async def test_create_sends_what_the_flags_say(run: Run, orders: ScriptedOrders) -> None:
    result = await run(
        *CREATE,
        *("--item", "a:b:1:JPY:5", "--label", "shop=berlin", "--label", "empty=", "--mute", "SMS"),
        *("--request-id", "mine", "--phone", "+491701234567", "--external-reference", "ref", "--language", "de"),
        *("-o", "json"),
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["order"]["order_id"] == "order-of-mine"
    assert json.loads(result.stdout)["consistency_token"] == "token-1"
    assert result.stderr == "Follow it: orderflow order watch order-of-mine\n"
    request = orders.seen[0].request
    sent = {field.name for field, _ in request.ListFields()}
    assert sent == set(request.DESCRIPTOR.fields_by_name) - {"validate_only"}
    assert [(line.sku, line.quantity, line.unit_price.amount_minor) for line in request.items] == [
        ("SKU-1", 2, 1999),
        ("a:b", 1, 5),
    ]
    assert dict(request.labels) == {"shop": "berlin", "empty": ""}


async def test_create_can_only_check(run: Run, orders: ScriptedOrders) -> None:
    result = await run(*CREATE, "--validate-only")
    assert (result.exit_code, result.stderr) == (0, "It would be accepted. Nothing was placed.\n")
    assert orders.seen[0].request.validate_only


@pytest.mark.parametrize(
    "arguments",
    [
        ["--item", "SKU-1:2:1999"],
        ["--item", "SKU-1:two:EUR:1999"],
        ["--item", "SKU-1:99999999999:EUR:1999"],
        ["--label", "shop"],
        ["--mute", "FAX"],
        ["--target", "orders.example.com:1"],
        ["--target", "orders.example.com:1", "--tls", "--insecure"],
        ["--tls-ca", "/does/not/exist"],
        ["--colour"],
    ],
    ids=" ".join,
)
async def test_a_wrong_flag_is_exit_code_2(run: Run, orders: ScriptedOrders, arguments: list[str]) -> None:
    result = await run(*CREATE, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert orders.seen == []


async def test_a_calls_error_is_one_line_and_64_and_its_code(run: Run, orders: ScriptedOrders) -> None:
    details = (error_info("INVALID_FIELDS", outcome="NOT_ACCEPTED"), bad_request(email="must be an address"))
    orders.script.append(Refusal(grpc.StatusCode.INVALID_ARGUMENT, "1 field is wrong", details))
    result = await run(*CREATE, "--request-id", "mine")
    assert (result.exit_code, result.stdout) == (64 + 3, "")
    assert result.stderr == (
        "orderflow: INVALID_FIELDS: 1 field is wrong; email: must be an address; request_id mine;"
        " outcome NOT_ACCEPTED; safe to repeat: no\n"
    )
    for command in ("get", "events", "watch"):
        orders.script.append(Refusal(grpc.StatusCode.NOT_FOUND))
        assert (await run(command, ID)).exit_code == 64 + 5
    orders.script.append(Refusal(grpc.StatusCode.PERMISSION_DENIED))
    assert (await run("list")).exit_code == 64 + 7


async def test_get(run: Run, orders: ScriptedOrders) -> None:
    result = await run("get", ID, "--consistency-token", "token")
    assert (result.exit_code, result.stderr) == (0, "")
    header, row = result.stdout.splitlines()
    assert header.split() == ["ORDER", "ID", "STATUS", "PAYMENT", "REASON", "TOTAL", "USER", "CREATED"]
    assert row.split()[:2] == [ID, "PAID"]
    assert orders.seen[0].request.consistency_token == "token"


@pytest.fixture
def stored(orders: ScriptedOrders) -> list[Order]:
    orders.stored = [
        Order(
            order_id=f"{number}{ID}",
            status=OrderStatus.ORDER_STATUS_PAYMENT_FAILED,
            payment_status=PaymentStatus.PAYMENT_STATUS_DECLINED,
            failure_reason="CARD_DECLINED",
            total=Money(currency_code="EUR", amount_minor=3998),
            user_id="[/][vip]:fire:" + "u" * 300,  # what Rich would take for its own
        )
        for number in range(5)
    ]
    return orders.stored


async def test_list_as_a_table_cuts_nothing(run: Run, stored: list[Order]) -> None:
    result = await run("list")
    assert result.exit_code == 0
    rows = result.stdout.splitlines()[1:]
    assert [row.split()[0] for row in rows] == [order.order_id for order in stored]
    assert rows[0].split()[1:6] == [
        "PAYMENT_FAILED",
        "DECLINED",
        "CARD_DECLINED",
        "EUR:3998",
        "[/][vip]:fire:" + "u" * 300,
    ]
    assert "\x1b" not in result.stdout


async def test_list_as_json_and_as_json_lines(run: Run, stored: list[Order]) -> None:
    listed = json.loads((await run("list", "-o", "json")).stdout)
    lines = [json.loads(line) for line in (await run("list", "-o", "jsonl")).stdout.splitlines()]
    assert listed == lines
    assert listed[0]["total"] == {"currency_code": "EUR", "amount_minor": "3998"}
    assert len(listed) == 5


async def test_list_filters_and_stops_at_the_limit(run: Run, orders: ScriptedOrders, stored: list[Order]) -> None:
    flags = "--user u-1 --status PAID --status REJECTED --since 2h --limit 3 -o jsonl"
    result = await run("list", *flags.split())
    assert len(result.stdout.splitlines()) == 3
    [seen] = orders.seen
    assert (seen.request.user_id, seen.request.page_size) == ("u-1", 3)
    assert list(seen.request.statuses) == [OrderStatus.ORDER_STATUS_PAID, OrderStatus.ORDER_STATUS_REJECTED]
    assert seen.request.HasField("created_from")


def test_flags_know_every_status_and_channel() -> None:
    statuses = {name.removeprefix("ORDER_STATUS_") for name in OrderStatus.keys()}  # noqa: SIM118 - no mapping
    channels = {name.removeprefix("NOTIFICATION_CHANNEL_") for name in NotificationChannel.keys()}  # noqa: SIM118
    assert {*Status} == statuses - {"UNSPECIFIED"}
    assert {*Channel} == channels - {"UNSPECIFIED"}


async def test_nothing_to_list(run: Run) -> None:
    result = await run("list")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "No orders match.\n")
    assert (await run("list", "-o", "json")).stdout == "[]\n"


async def test_explain_opens_with_a_sentence_and_goes_on_with_the_history(run: Run, orders: ScriptedOrders) -> None:
    orders.found = {ID: [ID]}
    result = await run("explain", ID)
    sentence, empty, header, *rows = result.stdout.splitlines()
    assert sentence.startswith("It is paid:")
    assert (empty, header.split()[0], len(rows)) == ("", "TIME", 5)
    told = json.loads((await run("explain", ID, "-o", "json")).stdout)
    assert told["explanation"] == sentence
    assert (told["order"]["order_id"], len(told["entries"])) == (ID, 5)


async def test_explain_takes_any_id_that_leads_to_one_order(run: Run, orders: ScriptedOrders) -> None:
    orders.found = {"pi_1": [ID], "trace": [ID, "another"]}
    result = await run("explain", "pi_1")
    assert result.stdout.startswith("It is paid:")
    assert result.stderr == f"Order {ID}, by its gateway:\n"
    several = await run("explain", "trace")
    assert several.exit_code == 1
    assert [line.split() for line in several.stdout.splitlines()[1:]] == [[ID, "GATEWAY"], ["another", "GATEWAY"]]
    assert several.stderr == "trace has to do with 2 orders: explain one of them.\n"
    nothing = await run("explain", "nobody")
    assert (nothing.exit_code, nothing.stdout) == (69, "")
    assert nothing.stderr == "orderflow: no order has to do with nobody\n"


def test_a_dead_letter_that_was_replayed_keeps_no_order_waiting() -> None:
    order = Order(order_id=ID, status=OrderStatus.ORDER_STATUS_PROCESSING)
    letter = OrderHistoryEntry(entry_id="dlq/0-7", type="DEAD_LETTER", source="payment-processor", reason="OTHER")
    assert "waits for an operator" in why(order, [letter])
    letter.dead_letter.resolution = "REPLAYED"
    assert "waits for payment" in why(order, [letter])


@pytest.mark.parametrize(
    ("payment", "told"),
    [
        (PaymentStatus.PAYMENT_STATUS_NONE, "no money was taken"),
        (PaymentStatus.PAYMENT_STATUS_CAPTURED, "gives its money back by itself"),
        (PaymentStatus.PAYMENT_STATUS_REFUNDED, "its money was given back"),
    ],
)
@pytest.mark.parametrize("status", [OrderStatus.ORDER_STATUS_CANCELLED, OrderStatus.ORDER_STATUS_EXPIRED])
def test_of_an_order_that_was_called_off_it_says_what_becomes_of_its_money(
    status: OrderStatus, payment: PaymentStatus, told: str
) -> None:
    assert told in why(Order(order_id=ID, status=status, payment_status=payment), [])


def test_a_refund_that_was_given_up_is_not_said_to_come_by_itself() -> None:
    order = Order(
        order_id=ID,
        status=OrderStatus.ORDER_STATUS_CANCELLED,
        payment_status=PaymentStatus.PAYMENT_STATUS_CAPTURED,
    )
    letter = OrderHistoryEntry(entry_id="dlq/0-7", type="DEAD_LETTER", source="payment-processor")
    assert "by itself" in why(order, [letter])
    letter.dead_letter.resolution = "DISCARDED"
    cancelled = OrderHistoryEntry(entry_id="1", type="ORDER_CANCELLED")
    assert "its money is kept" in why(order, [cancelled, letter])
    assert "by itself" in why(order, [letter, cancelled]), "that was another refund"


@pytest.mark.parametrize("status", [status for status in OrderStatus.values() if status])
def test_every_state_has_an_explanation(status: OrderStatus) -> None:
    order = Order(order_id=ID, status=status, failure_reason="SOME_REASON")
    assert why(order, []).count(".") >= 1
    assert "SOME_REASON" in why(order, []) or OrderStatus.Name(status)[13:] not in ("REJECTED", "PAYMENT_FAILED")
    assert why(order, []) != "It is ."


def test_an_order_that_waits_for_an_operator_names_its_dead_letter() -> None:
    order = Order(
        order_id=ID,
        status=OrderStatus.ORDER_STATUS_PROCESSING,
        payment_status=PaymentStatus.PAYMENT_STATUS_UNKNOWN,
    )
    letter = OrderHistoryEntry(
        entry_id="dlq/0-7", type="DEAD_LETTER", source="payment-processor", reason="PAYMENT_UNKNOWN"
    )
    mail = OrderHistoryEntry(entry_id="dlq/0-8", type="DEAD_LETTER", source="notification-email", reason="OTHER")
    told = why(order, [letter, mail])
    assert "cannot tell whether it charged" in told
    assert "orderflow dlq show 0-7" in told
    assert "0-8" not in told
    assert "1 of its records became dead letters" in told
    assert "waits for payment" in why(order, [mail]), "it keeps nobody from being charged"
    assert "by itself" in why(order, [])


async def test_events(run: Run) -> None:
    result = await run("events", ID)
    assert [line.split()[1] for line in result.stdout.splitlines()[1:]] == [
        "ORDER_CREATED",
        "ORDER_PROCESSING",
        "NOTIFICATION_SENT",
        "ORDER_PAID",
        "DEAD_LETTER",
    ]
    assert len((await run("events", ID, "--limit", "2", "-o", "jsonl")).stdout.splitlines()) == 2


async def test_watch_shows_each_state_over_a_break(run: Run, orders: ScriptedOrders) -> None:
    orders.stream_script.extend([proceed, Refusal(grpc.StatusCode.UNAVAILABLE)])
    result = await run("watch", ID)
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["2026-07-01T09:12:01.250Z", "1", "CREATED"],
        ["2026-07-01T09:12:02.250Z", "2", "PROCESSING"],
        ["2026-07-01T09:12:03.250Z", "3", "PAID"],
    ]
    lines = (await run("watch", ID, "--resume-token", "1", "-o", "jsonl")).stdout.splitlines()
    assert [json.loads(line)["order"]["revision"] for line in lines] == ["2", "3"]


@pytest.mark.parametrize(
    ("end", "exit_code"),
    [
        (OrderStatus.ORDER_STATUS_PAID, 0),
        (OrderStatus.ORDER_STATUS_CANCELLED, 0),
        (OrderStatus.ORDER_STATUS_REJECTED, 1),
        (OrderStatus.ORDER_STATUS_PAYMENT_FAILED, 1),
    ],
)
async def test_watch_tells_how_it_ended(run: Run, orders: ScriptedOrders, end: int, exit_code: int) -> None:
    orders.life = (OrderStatus.ORDER_STATUS_CREATED, end)
    assert (await run("watch", ID)).exit_code == exit_code
    assert (await run("watch", ID, "-o", "json")).exit_code == exit_code


async def test_watch_gives_up_in_time(run: Run, orders: ScriptedOrders) -> None:
    async def hang(_context: object) -> None:
        await asyncio.sleep(30)

    orders.stream_script.extend([proceed, hang])
    assert (await run("watch", ID, "--timeout", "0.3")).exit_code == 64 + 4


COMMANDS = {
    "cancel": "--reason OUT_OF_BUSINESS",
    "ship": "--carrier Parcels --tracking-code T-1",
    "complete": "",
    "refund": "--amount EUR:998 --reason DAMAGED",
}


@pytest.mark.parametrize(
    ("command", "status"),
    [("cancel", "CANCELLED"), ("ship", "SHIPPED"), ("complete", "COMPLETED"), ("refund", "REFUNDED")],
)
async def test_a_command_sends_what_the_flags_say(run: Run, orders: ScriptedOrders, command: str, status: str) -> None:
    arguments = [command, ID, *COMMANDS[command].split(), "--request-id", "mine", "--etag", "etag-1"]
    result = await run(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[1].split()[:2] == [ID, status]
    request = orders.seen[0].request
    assert {field.name for field, _ in request.ListFields()} == set(request.DESCRIPTOR.fields_by_name)
    assert (request.order_id, request.request_id, request.etag) == (ID, "mine", "etag-1")
    for form in ("json", "jsonl"):
        told = json.loads((await run(*arguments, "-o", form)).stdout)
        assert (told["order"]["order_id"], told["consistency_token"]) == (ID, "token-2")
        assert told["order"]["status"] == f"ORDER_STATUS_{status}"


async def test_the_flags_of_a_command_reach_their_fields(run: Run, orders: ScriptedOrders) -> None:
    for command, flags in COMMANDS.items():
        assert (await run(command, ID, *flags.split())).exit_code == 0
    cancel, ship, _, refund = (seen.request for seen in orders.seen)
    assert (cancel.reason, ship.carrier, ship.tracking_code) == ("OUT_OF_BUSINESS", "Parcels", "T-1")
    assert (refund.amount, refund.reason) == (Money(currency_code="EUR", amount_minor=998), "DAMAGED")
    assert (await run("refund", ID)).exit_code == 0
    assert not orders.seen[-1].request.HasField("amount")


@pytest.mark.parametrize("amount", ["998", "EUR:", ":998", "EUR:9.98", "EUR:-1", "EUR:99999999999999999999"])
async def test_a_refund_of_no_amount_is_exit_code_2(run: Run, orders: ScriptedOrders, amount: str) -> None:
    result = await run("refund", ID, "--amount", amount)
    assert (result.exit_code, result.stdout) == (2, "")
    assert orders.seen == []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "ILLEGAL_TRANSITION", 73),
        (grpc.StatusCode.ABORTED, "ETAG_MISMATCH", 74),
    ],
)
async def test_a_refusal_says_where_the_order_stands(
    run: Run, orders: ScriptedOrders, command: str, code: grpc.StatusCode, reason: str, exit_code: int
) -> None:
    details = (error_info(reason, outcome="NOT_ACCEPTED", order_status="COMPLETED"),)
    orders.script.append(Refusal(code, "it is so", details))
    result = await run(command, ID, *COMMANDS[command].split(), "--request-id", "mine")
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert result.stderr == (
        f"orderflow: {reason}: it is so; order status COMPLETED; request_id mine; outcome NOT_ACCEPTED;"
        " safe to repeat: no\n"
    )


async def test_a_token_by_variable_and_by_file(
    run: Run, orders: ScriptedOrders, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("ORDERFLOW_TOKEN", "by-variable")
    await run("get", ID)
    (tmp_path / "token").write_text("by-file\n")
    await run("get", ID, "--token-file", str(tmp_path / "token"))
    assert [seen.metadata["authorization"] for seen in orders.seen] == ["Bearer by-variable", "Bearer by-file"]


async def test_a_token_file_is_read_again_once_its_token_has_expired(
    run: Run, orders: ScriptedOrders, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")

    async def expire(context: grpc.aio.ServicerContext[Any, Any]) -> None:
        file.write_text("second\n")
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "expired")

    orders.script.append(expire)
    assert (await run("get", ID, "--token-file", str(file))).exit_code == 0
    assert [seen.metadata["authorization"] for seen in orders.seen] == ["Bearer first", "Bearer second"]


async def test_other_services_are_called_with_the_same_token(run: Run, orders: ScriptedOrders) -> None:
    def call() -> None:
        with Connection(os.environ["ORDERFLOW_TARGET"], token="secret").channel() as channel:
            stub = OrderServiceStub(channel)
            stub.GetOrder(GetOrderRequest(order_id=ID), timeout=10, metadata=[("x-mine", "1")])
            assert len(list(stub.WatchOrder(WatchOrderRequest(order_id=ID), timeout=10))) == 3

    await asyncio.to_thread(call)
    assert [seen.metadata["authorization"] for seen in orders.seen] == ["Bearer secret"] * 2
    assert orders.seen[0].metadata["x-mine"] == "1"


async def test_dlq_fails_as_order_does(run: Run) -> None:
    result = await asyncio.to_thread(CliRunner().invoke, app, ["dlq", "list"])
    assert (result.exit_code, result.stdout) == (64 + 12, "")  # the scripted server has no such service
    assert result.stderr.startswith("orderflow: UNIMPLEMENTED: ")
