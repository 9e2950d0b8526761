"""CancelOrder, ShipOrder, CompleteOrder and RefundOrder as their callers see them; workers that decide at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from typing import Any

import grpc
import grpc.aio
import pytest

from domain.failures import DependencyDown
from messaging.publisher import NotHandedOver, OutcomeUnknown, TooManyWaiting
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_pb2 import Money, OrderStatus, PaymentStatus
from orderflow.orders.v1.order_service_pb2 import (
    CancelOrderRequest,
    CompleteOrderRequest,
    CreateOrderRequest,
    GetOrderRequest,
    ListOrderEventsRequest,
    RefundOrderRequest,
    ShipOrderRequest,
)
from orderflow.orders.v1.order_service_pb2_grpc import OrderServiceStub
from server import order_commands
from server.testing import OrdersTestServer, _MemoryAnswers, _MemoryPublisher
from server.tokens import ConsistencyToken
from storage.command_answers import CommandAnswer
from tests.builders import a_request, an_id
from tests.served import called_as, refusal

EUR = "EUR"


class Bench:
    """One paid order of 39.98 EUR, and the stub of its caller."""

    def __init__(self, server: OrdersTestServer, stub: Any) -> None:
        self.server = server
        self.stub = stub

    async def placed(self, **fields: Any) -> str:
        request: CreateOrderRequest = a_request(**fields)
        return str((await self.stub.CreateOrder(request)).order.order_id)

    async def paid(self) -> str:
        order_id = await self.placed()
        self.server.pay(order_id)
        return order_id

    async def shipped(self) -> str:
        order_id = await self.paid()
        await self.stub.ShipOrder(ShipOrderRequest(order_id=order_id, carrier="Parcel Service"))
        return order_id

    def events(self, order_id: str) -> list[OrderEvent]:
        return self.server._store.histories[order_id]


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(order_commands, "_ROW_SECONDS", 0.05)
    async with OrdersTestServer() as server, grpc.aio.insecure_channel(server.target) as channel:
        yield Bench(server, OrderServiceStub(channel))


async def refused(call: Any) -> tuple[grpc.StatusCode, str, list[str]]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return refusal(error.value)


async def test_an_order_is_cancelled_before_and_after_its_payment(bench: Bench) -> None:
    for order_id, payment in (
        (await bench.placed(), PaymentStatus.PAYMENT_STATUS_NONE),
        (await bench.paid(), PaymentStatus.PAYMENT_STATUS_CAPTURED),
    ):
        answer = await bench.stub.CancelOrder(CancelOrderRequest(order_id=order_id, reason="OUT_OF_BUSINESS"))
        assert (answer.order.status, answer.order.payment_status) == (OrderStatus.ORDER_STATUS_CANCELLED, payment)
        assert answer.order.failure_reason == "OUT_OF_BUSINESS"
        assert ConsistencyToken.decode(answer.consistency_token).revision == answer.order.revision
        token = GetOrderRequest(order_id=order_id, consistency_token=answer.consistency_token)
        assert (await bench.stub.GetOrder(token)).order == answer.order


async def test_a_cancellation_without_a_reason_is_the_customers(bench: Bench) -> None:
    answer = await bench.stub.CancelOrder(CancelOrderRequest(order_id=await bench.paid()))
    assert answer.order.failure_reason == "CUSTOMER_REQUEST"


async def test_an_order_is_shipped_completed_and_refunded(bench: Bench) -> None:
    order_id = await bench.paid()
    ship = ShipOrderRequest(order_id=order_id, carrier="Parcel Service", tracking_code="T-1")
    shipped = (await bench.stub.ShipOrder(ship)).order
    assert (shipped.shipment.carrier, shipped.shipment.tracking_code) == ("Parcel Service", "T-1")
    completed = (await bench.stub.CompleteOrder(CompleteOrderRequest(order_id=order_id))).order
    assert completed.status == OrderStatus.ORDER_STATUS_COMPLETED
    assert completed.shipment == shipped.shipment
    part = RefundOrderRequest(order_id=order_id, amount=Money(currency_code=EUR, amount_minor=998), reason="DAMAGED")
    after = (await bench.stub.RefundOrder(part)).order
    assert (after.status, after.payment_status, after.refunded.amount_minor) == (
        OrderStatus.ORDER_STATUS_COMPLETED,
        PaymentStatus.PAYMENT_STATUS_PARTIALLY_REFUNDED,
        998,
    )
    rest = (await bench.stub.RefundOrder(RefundOrderRequest(order_id=order_id))).order
    assert (rest.status, rest.payment_status, rest.refunded.amount_minor) == (
        OrderStatus.ORDER_STATUS_REFUNDED,
        PaymentStatus.PAYMENT_STATUS_REFUNDED,
        3998,
    )
    entries = (await bench.stub.ListOrderEvents(ListOrderEventsRequest(order_id=order_id))).entries
    assert [entry.reason for entry in entries if entry.type == "PAYMENT_REFUNDED"] == ["DAMAGED", ""]
    assert [entry.revision for entry in entries] == list(range(1, 8))


async def test_a_repeat_with_its_request_id_is_the_same_answer_and_happens_once(bench: Bench) -> None:
    order_id = await bench.paid()
    part = RefundOrderRequest(
        order_id=order_id, amount=Money(currency_code=EUR, amount_minor=100), request_id="refund-1"
    )
    first = await bench.stub.RefundOrder(part)
    await bench.stub.ShipOrder(ShipOrderRequest(order_id=order_id, carrier="C", request_id="refund-1"))
    assert await bench.stub.RefundOrder(part) == first
    part.amount.amount_minor = 101
    assert await refused(bench.stub.RefundOrder(part)) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "REQUEST_ID_REUSED",
        [],
    )
    refunds = [event for event in bench.events(order_id) if event.HasField("payment_refunded")]
    assert len(refunds) == 1


async def test_a_refusal_is_repeated_too(bench: Bench) -> None:
    order_id = await bench.shipped()
    cancel = CancelOrderRequest(order_id=order_id, request_id="cancel-1")
    for _ in range(2):
        code, reason, _ = await refused(bench.stub.CancelOrder(cancel))
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ILLEGAL_TRANSITION")


async def test_cancelling_what_is_cancelled_changes_nothing(bench: Bench) -> None:
    order_id = await bench.paid()
    first = await bench.stub.CancelOrder(CancelOrderRequest(order_id=order_id))
    assert await bench.stub.CancelOrder(CancelOrderRequest(order_id=order_id)) == first


async def test_what_the_order_does_not_allow(bench: Bench) -> None:
    paid, completed = await bench.paid(), await bench.shipped()
    await bench.stub.CompleteOrder(CompleteOrderRequest(order_id=completed))
    for call in (
        bench.stub.CompleteOrder(CompleteOrderRequest(order_id=paid)),
        bench.stub.CancelOrder(CancelOrderRequest(order_id=completed)),
        bench.stub.RefundOrder(RefundOrderRequest(order_id=await bench.placed())),
        bench.stub.ShipOrder(ShipOrderRequest(order_id=completed, carrier="C")),
    ):
        assert await refused(call) == (grpc.StatusCode.FAILED_PRECONDITION, "ILLEGAL_TRANSITION", [])


async def test_a_refund_is_at_most_what_is_left_and_in_its_currency(bench: Bench) -> None:
    order_id = await bench.paid()
    for amount, reason in (
        (Money(currency_code=EUR, amount_minor=3999), "REFUND_TOO_LARGE"),
        (Money(currency_code="USD", amount_minor=1), "CURRENCY_MISMATCH"),
    ):
        call = bench.stub.RefundOrder(RefundOrderRequest(order_id=order_id, amount=amount))
        assert await refused(call) == (grpc.StatusCode.FAILED_PRECONDITION, reason, [])


async def test_an_etag_that_is_not_the_orders_any_more_aborts(bench: Bench) -> None:
    order_id = await bench.paid()
    etag = bench.events(order_id)[-1].order.etag
    await bench.stub.ShipOrder(ShipOrderRequest(order_id=order_id, carrier="C", etag=etag))
    call = bench.stub.CompleteOrder(CompleteOrderRequest(order_id=order_id, etag=etag))
    assert await refused(call) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH", [])


async def test_anothers_order_is_not_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    called_as(monkeypatch)
    order_id = await bench.paid()
    stranger = (("caller", "stranger"),)
    theirs, none = [
        await refused(bench.stub.CancelOrder(CancelOrderRequest(order_id=each), metadata=stranger))
        for each in (order_id, an_id())
    ]
    assert theirs == none == (grpc.StatusCode.NOT_FOUND, "ORDER_NOT_FOUND", [])
    assert bench.events(order_id)[-1].order.status == OrderStatus.ORDER_STATUS_PAID
    assert bench.server._store.answers == {}, "it was not even handed over"


async def test_with_little_time_anothers_order_is_not_there_either(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_commands, "_ROW_SECONDS", 60.0)
    called_as(monkeypatch)
    for order_id in (await bench.paid(), an_id()):
        call = bench.stub.CancelOrder(
            CancelOrderRequest(order_id=order_id), metadata=(("caller", "stranger"),), timeout=0.5
        )
        assert await refused(call) == (grpc.StatusCode.NOT_FOUND, "ORDER_NOT_FOUND", [])


async def test_an_answer_that_is_known_needs_no_kafka(bench: Bench) -> None:
    cancel = CancelOrderRequest(order_id=await bench.paid(), request_id="c-1")
    first = await bench.stub.CancelOrder(cancel)
    bench.server.is_available = False
    assert await bench.stub.CancelOrder(cancel) == first


async def test_an_order_that_was_just_placed_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_commands, "_ROW_SECONDS", 10.0)
    order_id, looks = await bench.paid(), 0
    owner = _MemoryAnswers.owner

    async def later(answers: _MemoryAnswers, order_id: str) -> str | None:
        nonlocal looks
        looks += 1
        return await owner(answers, order_id) if looks > 2 else None

    monkeypatch.setattr(bench.server._service._commands, "_owner", lambda order_id: later(_answers(bench), order_id))
    assert (await bench.stub.CancelOrder(CancelOrderRequest(order_id=order_id))).order.revision == 4


def _answers(bench: Bench) -> _MemoryAnswers:
    return _MemoryAnswers(bench.server._store)


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("CancelOrder", CancelOrderRequest(order_id="1"), "order_id"),
        ("CancelOrder", CancelOrderRequest(order_id=an_id(), reason="because"), "reason"),
        ("CancelOrder", CancelOrderRequest(order_id=an_id(), request_id="a b"), "request_id"),
        ("CancelOrder", CancelOrderRequest(order_id=an_id(), etag="x" * 65), "etag"),
        ("ShipOrder", ShipOrderRequest(order_id=an_id()), "carrier"),
        ("CompleteOrder", CompleteOrderRequest(), "order_id"),
        ("RefundOrder", RefundOrderRequest(order_id=an_id(), amount=Money(currency_code=EUR)), "amount.amount_minor"),
    ],
)
async def test_what_is_not_valid_is_told_by_field(bench: Bench, method: str, request_: Any, field: str) -> None:
    assert await refused(getattr(bench.stub, method)(request_)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELDS",
        [field],
    )


@contextlib.contextmanager
def publishing(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> Any:
    async def publish_all(*_: Any, **__: Any) -> list[Exception]:
        return [failure]

    with monkeypatch.context() as patched:
        patched.setattr(_MemoryPublisher, "publish_all", publish_all)
        yield


async def test_what_is_not_handed_over_was_not_accepted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    order_id = await bench.paid()
    cancel = CancelOrderRequest(order_id=order_id)
    for failure, code, reason in (
        (NotHandedOver("told to"), grpc.StatusCode.UNAVAILABLE, "KAFKA_UNAVAILABLE"),
        (TooManyWaiting("told to"), grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_UNACKNOWLEDGED"),
        (OutcomeUnknown("told to"), grpc.StatusCode.DEADLINE_EXCEEDED, "OUTCOME_UNKNOWN"),
    ):
        with publishing(monkeypatch, failure):
            assert (await refused(bench.stub.CancelOrder(cancel)))[:2] == (code, reason)
    bench.server.is_available = False
    assert (await refused(bench.stub.CancelOrder(cancel)))[:2] == (grpc.StatusCode.UNAVAILABLE, "KAFKA_UNAVAILABLE")
    assert bench.events(order_id)[-1].order.status == OrderStatus.ORDER_STATUS_PAID


async def test_a_command_that_is_not_decided_in_time_has_an_unknown_outcome_and_a_repeat_tells_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_id = await bench.paid()
    cancel = CancelOrderRequest(order_id=order_id, request_id="c-1")
    looked = asyncio.Event()

    async def nothing(_: Collection[tuple[str, str]]) -> dict[tuple[str, str], CommandAnswer]:
        looked.set()
        return {}

    answers = bench.server._service._commands._answers
    with monkeypatch.context() as patched:
        patched.setattr(answers, "_query", nothing)
        error = await refused(bench.stub.CancelOrder(cancel, timeout=0.3))
    assert error == (grpc.StatusCode.DEADLINE_EXCEEDED, "OUTCOME_UNKNOWN", [])
    assert looked.is_set()
    again = (await bench.stub.CancelOrder(cancel)).order
    assert again.revision == bench.events(order_id)[-1].revision == 4


async def test_a_database_that_is_away_accepts_nothing_before_and_is_waited_for_after_the_hand_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_id = await bench.paid()
    order_commands_ = bench.server._service._commands
    query, looks = order_commands_._answers._query, 0

    async def away(*_: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks < 3:
            raise DependencyDown("postgres", "told to")
        return await query(*_)

    with monkeypatch.context() as patched:
        patched.setattr(order_commands_, "_owner", away)
        error = await refused(bench.stub.CancelOrder(CancelOrderRequest(order_id=order_id)))
        assert error[:2] == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        assert bench.events(order_id)[-1].order.status == OrderStatus.ORDER_STATUS_PAID
    looks = 0
    monkeypatch.setattr(order_commands_._answers, "_query", away)
    assert (await bench.stub.CancelOrder(CancelOrderRequest(order_id=order_id))).order.revision == 4
