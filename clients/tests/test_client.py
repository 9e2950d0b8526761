"""Both clients, by one suite, against a gRPC server on loopback."""

import asyncio
import json
import pickle
import uuid

import grpc
import pytest

import orderflow_client
from clients.tests.caller import ORDER, Caller, failure
from clients.tests.scripted_server import Refusal, bad_request, error_info, retry_info, serving
from orderflow_client import (
    FieldViolation,
    InvalidOrder,
    OrdersClient,
    Outcome,
    RequestIdReused,
    Unavailable,
    UnexpectedStatus,
)
from orderflow_client._channel import channel_options

CODE = grpc.StatusCode


async def test_create_sends_every_field_and_returns_the_answer(caller, orders):
    response = await caller.create(
        email="a@example.com",
        phone="+491701234567",
        labels={"shop": "berlin"},
        external_reference="ref-1",
        language="de-AT",
        muted_channels=[orderflow_client.NotificationChannel.NOTIFICATION_CHANNEL_SMS],
        request_id="mine",
    )
    checked = await caller.create(validate_only=True)
    assert (response.order.order_id, response.consistency_token) == ("order-of-mine", "token-1")
    request = orders.seen[0].request
    sent = {field.name for seen in orders.seen for field, _ in seen.request.ListFields()}
    assert sent == set(request.DESCRIPTOR.fields_by_name)
    assert (checked.order.order_id, checked.consistency_token) == ("", "")
    assert request.items[0].quantity == 2
    assert request.items[0].unit_price.amount_minor == 1999


async def test_get_passes_the_consistency_token(caller, orders):
    response = await caller.get("order-1", consistency_token="token-1")
    assert (response.order.order_id, response.consistency_token) == ("order-1", "token-1")


def test_new_order_has_the_fields_of_the_request():
    fields = orderflow_client._requests.CreateOrderRequest.DESCRIPTOR.fields_by_name
    assert set(orderflow_client.NewOrder.__annotations__) == set(fields)


@pytest.mark.parametrize("missing", [None, ""])
async def test_each_create_gets_a_request_id_of_its_own(caller, orders, missing):
    await caller.create()
    await caller.create(request_id=missing)
    first, second = (uuid.UUID(seen.request.request_id) for seen in orders.seen)
    assert first != second


async def test_a_create_keeps_its_request_id_over_its_retries(caller, orders):
    orders.script.extend([Refusal(CODE.UNAVAILABLE)] * 3)
    await caller.create()
    assert len(orders.seen) == 4
    assert len({seen.request.SerializeToString(deterministic=True) for seen in orders.seen}) == 1
    # The server needs these: after a first attempt it cannot say for the whole call that nothing was accepted.
    attempts = [seen.metadata.get("grpc-previous-rpc-attempts") for seen in orders.seen]
    assert attempts == [None, "1", "2", "3"]


async def test_gives_up_after_four_attempts(caller, orders):
    orders.script.extend([Refusal(CODE.UNAVAILABLE)] * 5)
    assert isinstance(await failure(caller.get("order-1")), Unavailable)
    assert len(orders.seen) == 4


async def test_what_a_stopping_server_cancelled_is_retried(caller, orders):
    orders.script.append(Refusal(CODE.CANCELLED))
    await caller.create()
    assert len(orders.seen) == 2


@pytest.mark.parametrize("code", [code for code in CODE if code not in (CODE.OK, CODE.UNAVAILABLE, CODE.CANCELLED)])
async def test_nothing_else_is_retried(caller, orders, code):
    orders.script.append(Refusal(code))
    assert (await failure(caller.create())).code is code
    assert len(orders.seen) == 1


async def test_the_server_can_forbid_retries(caller, orders):
    orders.script.append(Refusal(CODE.UNAVAILABLE, metadata=(("grpc-retry-pushback-ms", "-1"),)))
    await failure(caller.create())
    assert len(orders.seen) == 1


async def test_a_server_that_starts_late_is_not_noticed(flavour, orders):
    """A refused connection is UNAVAILABLE too: the attempts reach past gRPC's first reconnect."""
    async with serving(orders) as target:
        pass
    client = Caller(flavour(target))
    call = asyncio.create_task(client.create())
    await asyncio.sleep(0.5)
    async with serving(orders, target):
        await call
        await client.close()


def test_the_attempts_of_a_call_outlast_the_wait_before_a_connect():
    """Both waits vary by a fifth (gRPC, A6 and the connection backoff protocol)."""
    options = dict(channel_options("127.0.0.1:1", None, insecure=False))
    policy = json.loads(options["grpc.service_config"])["methodConfig"][0]["retryPolicy"]
    first, most = (float(policy[name].rstrip("s")) for name in ("initialBackoff", "maxBackoff"))
    waits = [min(most, first * policy["backoffMultiplier"] ** retry) for retry in range(policy["maxAttempts"] - 1)]
    assert 1.2 * options["grpc.max_reconnect_backoff_ms"] / 1000 < 0.8 * sum(waits) - 0.5


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("create_order", ORDER),
        ("batch_create_orders", {"orders": [ORDER]}),
        ("create_orders", {"orders": [ORDER]}),
        ("cancel_order", {"order_id": "order-1"}),
        ("ship_order", {"order_id": "order-1", "carrier": "Parcel Service"}),
        ("complete_order", {"order_id": "order-1"}),
        ("refund_order", {"order_id": "order-1"}),
        ("get_order", {"order_id": "order-1"}),
        ("batch_get_orders", {"order_ids": ["order-1"]}),
        ("list_orders", {}),
        ("list_orders_page", {}),
        ("find_orders", {"identifier": "order-1"}),
        ("list_order_events", {"order_id": "order-1"}),
        ("list_order_events_page", {"order_id": "order-1"}),
    ],
)
async def test_every_call_has_a_deadline(caller, orders, method, arguments):
    is_iterator = method in ("create_orders", "list_orders", "list_order_events")
    call = caller.all if is_iterator else caller.call
    await call(method, **arguments)
    assert all(3.5 < seen.time_remaining < 10.5 for seen in orders.seen)
    orders.seen.clear()
    await call(method, **arguments, timeout=3)
    assert all(0 < seen.time_remaining < 3.5 for seen in orders.seen)


async def test_a_call_ends_at_its_deadline_with_outcome_unknown(caller, orders):
    async def hang(_context: object) -> None:
        await asyncio.sleep(30)

    orders.script.append(hang)
    error = await failure(caller.create(timeout=0.2, request_id="mine"))
    assert isinstance(error, orderflow_client.DeadlineExceeded)
    assert (error.request_id, error.outcome, error.safe_to_repeat) == ("mine", Outcome.UNKNOWN, True)


async def test_metadata_reaches_the_server(caller, orders):
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    await caller.create(metadata=[("traceparent", traceparent)])
    await caller.get("order-1", metadata=[("traceparent", traceparent)])
    assert [seen.metadata["traceparent"] for seen in orders.seen] == [traceparent] * 2


@pytest.mark.parametrize(
    ("code", "kind", "safe_to_repeat"),
    [
        (CODE.INVALID_ARGUMENT, "InvalidOrder", False),
        (CODE.NOT_FOUND, "OrderNotFound", False),
        (CODE.FAILED_PRECONDITION, "PreconditionFailed", False),
        (CODE.UNAUTHENTICATED, "Unauthenticated", False),
        (CODE.PERMISSION_DENIED, "PermissionDenied", False),
        (CODE.RESOURCE_EXHAUSTED, "Overloaded", True),
        (CODE.UNAVAILABLE, "Unavailable", True),
        (CODE.DEADLINE_EXCEEDED, "DeadlineExceeded", True),
        (CODE.INTERNAL, "UnexpectedStatus", True),
    ],
)
async def test_errors_by_meaning(caller, orders, code, kind, safe_to_repeat):
    no_retry = (("grpc-retry-pushback-ms", "-1"),)
    details = (error_info("THE_REASON", outcome="NOT_ACCEPTED", limit="7"), retry_info(0.25))
    orders.script.append(Refusal(code, "the message", details, no_retry))
    error = await failure(caller.create(request_id="mine"))
    assert type(error) is getattr(orderflow_client, kind)
    assert (error.code, error.reason, error.message) == (code, "THE_REASON", "the message")
    assert error.metadata == {"outcome": "NOT_ACCEPTED", "limit": "7"}
    assert (error.request_id, error.outcome, error.retry_delay) == ("mine", Outcome.NOT_ACCEPTED, 0.25)
    assert error.safe_to_repeat is safe_to_repeat
    assert isinstance(error.__cause__, grpc.RpcError)


async def test_what_is_more_than_the_server_ever_takes_is_not_safe_to_repeat(caller, orders):
    orders.script.append(Refusal(CODE.RESOURCE_EXHAUSTED, "Received message larger than max"))
    error = await failure(caller.create())
    assert (type(error).__name__, error.retry_delay, error.safe_to_repeat) == ("Overloaded", None, False)


async def test_an_invalid_order_names_every_violation(caller, orders):
    details = (
        error_info("INVALID_ORDER", outcome="NOT_ACCEPTED"),
        bad_request(user_id="must be set", items="must be 1 to 100"),
    )
    orders.script.append(Refusal(CODE.INVALID_ARGUMENT, "2 fields are wrong", details))
    error = await failure(caller.create(request_id="mine"))
    assert isinstance(error, InvalidOrder)
    assert error.violations == (
        FieldViolation("user_id", "must be set"),
        FieldViolation("items", "must be 1 to 100"),
    )
    assert str(error) == (
        "INVALID_ORDER: 2 fields are wrong; user_id: must be set; items: must be 1 to 100;"
        " request_id mine; outcome NOT_ACCEPTED; safe to repeat: no"
    )


async def test_a_reused_request_id_has_a_class_of_its_own(caller, orders):
    orders.script.append(Refusal(CODE.FAILED_PRECONDITION, details=(error_info("REQUEST_ID_REUSED"),)))
    assert isinstance(await failure(caller.create()), RequestIdReused)


@pytest.mark.parametrize(
    "details",
    [(), (error_info("LB_DRAINING", domain="proxy.example", outcome="NOT_ACCEPTED"),)],
    ids=["bare", "of-a-proxy"],
)
async def test_only_our_server_can_say_that_nothing_was_accepted(caller, orders, details):
    orders.script.append(Refusal(CODE.UNAVAILABLE, details=details, metadata=(("grpc-retry-pushback-ms", "-1"),)))
    error = await failure(caller.create())
    assert (error.reason, error.outcome, error.safe_to_repeat) == ("", Outcome.UNKNOWN, True)


async def test_broken_details_are_left_out(caller, orders):
    orders.script.append(Refusal(CODE.INTERNAL, metadata=(("grpc-status-details-bin", b"\xff\xff"),)))
    error = await failure(caller.create())
    assert (type(error), error.reason, error.message) == (UnexpectedStatus, "", "because")


async def test_an_order_that_is_only_checked_has_no_outcome(caller, orders):
    orders.script.append(Refusal(CODE.INVALID_ARGUMENT, details=(error_info("X", outcome="NOT_ACCEPTED"),)))
    error = await failure(caller.create(validate_only=True))
    assert (error.outcome, error.request_id, error.request_ids) == (None, None, ())


async def test_a_read_has_no_outcome(caller, orders):
    orders.script.append(Refusal(CODE.NOT_FOUND, "no such order", (error_info("ORDER_NOT_FOUND"),)))
    error = await failure(caller.get("order-1"))
    assert (error.outcome, error.request_id) == (None, None)
    assert str(error) == "ORDER_NOT_FOUND: no such order; safe to repeat: no"


async def test_errors_survive_pickling(caller, orders):
    orders.script.append(Refusal(CODE.RESOURCE_EXHAUSTED, details=(error_info("RATE_LIMIT"), retry_info(0.5))))
    error = await failure(caller.create())
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)


async def test_closing_the_client_fails_its_calls_with_an_error(caller, orders):
    """grpc.aio raises CancelledError here, which a TaskGroup takes for a clean end."""
    under_way = asyncio.Event()

    async def hang(_context: object) -> None:
        under_way.set()
        await asyncio.sleep(30)

    orders.script.append(hang)
    call = asyncio.create_task(caller.create())
    await under_way.wait()
    await caller.close()
    error = await failure(call)
    assert (error.code, error.outcome) == (CODE.CANCELLED, Outcome.UNKNOWN)


async def test_cancelling_a_task_stays_a_cancellation(target, orders):
    under_way = asyncio.Event()

    async def hang(_context: object) -> None:
        under_way.set()
        await asyncio.sleep(30)

    orders.script.append(hang)
    async with OrdersClient(target) as client:
        call = asyncio.create_task(Caller(client).create())
        await under_way.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


LOOPBACK = [
    "127.0.0.1:50051",
    "127.1.2.3",
    "localhost:1",
    "[::1]:1",
    "dns:///localhost:1",
    "ipv4:127.0.0.1:1",
    "ipv4:127.0.0.1:1,127.0.0.1:2",
    "ipv6:[::1]:1,[::1]:2",
    "unix:/s",
]
ELSEWHERE = [
    "orders.example.com:50051",
    "10.0.0.1:50051",
    "0.0.0.0:50051",
    "127.0.0.1.example.com:50051",
    "localhost.example.com",
    "dns:///127.0.0.1.example.com:1",
    "dns://8.8.8.8/localhost:1",
    "ipv4:127.0.0.1:1,10.0.0.1:1",
    "127.0.0.1:1,10.0.0.1:1",
    "localhost:1\n.example.com",
    "",
]


@pytest.mark.parametrize("address", LOOPBACK)
async def test_loopback_may_be_plaintext(flavour, address):
    await Caller(flavour(address)).close()


@pytest.mark.parametrize("address", ELSEWHERE)
async def test_plaintext_to_another_machine_is_refused(flavour, address):
    with pytest.raises(ValueError, match="insecure=True"):
        flavour(address)


async def test_another_machine_is_reached_by_tls_or_by_saying_insecure(flavour):
    await Caller(flavour("orders.example.com:50051", insecure=True)).close()
    await Caller(flavour("orders.example.com:50051", channel_credentials=grpc.ssl_channel_credentials())).close()
    with pytest.raises(ValueError, match="either"):
        flavour("localhost:1", insecure=True, channel_credentials=grpc.ssl_channel_credentials())


async def test_loopback_calls_never_go_through_a_proxy(flavour, target, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    client = flavour(target)
    await Caller(client).get("order-1")
    await Caller(client).close()


async def test_the_async_client_belongs_to_a_loop():
    with pytest.raises(RuntimeError, match="no running event loop"):
        await asyncio.to_thread(OrdersClient)
