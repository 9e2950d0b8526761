"""The rules of the simulated gateway: keys, parameters, expiry, close, declines, refunds."""

import asyncio
import datetime
import zlib
from typing import Any

import pytest

from domain.reconciliation import Movement
from workers.gateways.book import ChargeExecuted, Execution, KeyWasClosed, RefundExecuted
from workers.gateways.gateway import (
    Charge,
    ChargeUnknown,
    GatewayRefused,
    GatewayUnavailable,
    KeyClosed,
    PaymentGateway,
)
from workers.gateways.simulated import SimulatedGateway


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


async def charge(gateway: PaymentGateway, key: str = "k-1", **changes: Any) -> Charge:
    asked = {"order_id": "o-1", "amount_minor": 3998, "currency_code": "EUR", "payment_method": "pm_card_visa"}
    return await gateway.charge(key, **{**asked, **changes})


async def test_a_repeat_answers_the_first_charge_and_executes_nothing() -> None:
    executions: list[Execution] = []
    gateway = SimulatedGateway(on_execution=executions.append)
    first = await charge(gateway)
    assert first == Charge(first.reference, "k-1", True, "", 3998, "EUR")
    assert await charge(gateway) == first
    assert len(executions) == 1


async def test_concurrent_repeats_execute_once() -> None:
    executions: list[Execution] = []
    gateway = SimulatedGateway(latency=0.001, on_execution=executions.append)
    answers = await asyncio.gather(*(charge(gateway) for _ in range(20)))
    assert len(set(answers)) == 1
    assert len(executions) == 1


@pytest.mark.parametrize(
    "change",
    [{"amount_minor": 3999}, {"currency_code": "USD"}, {"order_id": "o-2"}, {"payment_method": "pm_card_amex"}],
)
async def test_a_used_key_with_another_parameter_is_refused(change: dict[str, Any]) -> None:
    gateway = SimulatedGateway()
    first = await charge(gateway)
    with pytest.raises(GatewayRefused) as refused:
        await charge(gateway, **change)
    assert refused.value.error_class == "GATEWAY_KEY_REUSED"
    assert await gateway.find("k-1") == first


async def test_past_its_window_a_key_charges_again_but_is_still_found() -> None:
    clock, executions = Clock(), list[Execution]()
    gateway = SimulatedGateway(key_ttl=60, clock=clock, on_execution=executions.append)
    first = await charge(gateway)
    clock.now += 59.9
    assert await charge(gateway) == first
    clock.now += 0.1
    assert await gateway.find("k-1") == first
    assert (await charge(gateway)).reference != first.reference
    assert len(executions) == 2


async def test_find_prefers_the_approved_charge_over_a_later_decline() -> None:
    clock = Clock()
    gateway = SimulatedGateway(key_ttl=60, clock=clock)
    approved = await charge(gateway)
    clock.now += 60
    await charge(gateway, payment_method="pm_card_chargeDeclined")
    assert await gateway.find("k-1") == approved


async def test_find_says_none_when_nothing_executed() -> None:
    assert await SimulatedGateway().find("k-1") is None


async def test_no_charge_succeeds_under_a_closed_key_not_even_past_the_window() -> None:
    clock, executions = Clock(), list[Execution]()
    gateway = SimulatedGateway(key_ttl=60, clock=clock, on_execution=executions.append)
    assert await gateway.close("k-1") is None
    with pytest.raises(KeyClosed) as closed:
        await charge(gateway)
    assert closed.value.error_class == "GATEWAY_KEY_CLOSED"
    clock.now += 3600
    with pytest.raises(KeyClosed):
        await charge(gateway)
    assert executions == [KeyWasClosed(1_000_000.0, "k-1")]


async def test_close_returns_the_charge_that_came_first_and_stops_a_second() -> None:
    clock = Clock()
    gateway = SimulatedGateway(key_ttl=60, clock=clock)
    first = await charge(gateway)
    assert await gateway.close("k-1") == first
    assert await gateway.close("k-1") == first
    assert await charge(gateway) == first, "a replay inside the window answers what happened"
    clock.now += 60
    with pytest.raises(KeyClosed):
        await charge(gateway)


@pytest.mark.parametrize(
    ("payment_method", "reason"),
    [
        ("pm_card_visa", ""),
        ("pm_card_mastercard", ""),
        ("pm_card_chargeDeclined", "CARD_DECLINED"),
        ("pm_card_chargeDeclinedInsufficientFunds", "INSUFFICIENT_FUNDS"),
        ("pm_card_chargeDeclinedExpiredCard", "EXPIRED_CARD"),
        ("pm_card_chargeDeclinedLostCard", "CARD_DECLINED"),
    ],
)
async def test_the_payment_method_decides(payment_method: str, reason: str) -> None:
    answer = await charge(SimulatedGateway(), payment_method=payment_method)
    assert (answer.approved, answer.decline_reason) == (reason == "", reason)


async def test_benchmark_setting_declines_one_order_in_fifty_by_crc32() -> None:
    orders = [f"o-{number}" for number in range(500)]
    gateway, plain = SimulatedGateway(benchmark_declines=True), SimulatedGateway()
    declined = [order for order in orders if not (await charge(gateway, order, order_id=order)).approved]
    assert declined == [order for order in orders if zlib.crc32(order.encode()) % 50 == 0]
    assert declined
    assert (await charge(plain, order_id=declined[0])).approved


async def test_refunds_go_up_to_the_charge_and_replay_under_their_key() -> None:
    executions: list[Execution] = []
    gateway = SimulatedGateway(on_execution=executions.append)
    paid = await charge(gateway)
    first = await gateway.refund("r-1", charge_reference=paid.reference, amount_minor=1000)
    assert (first.charge_reference, first.amount_minor, first.currency_code) == (paid.reference, 1000, "EUR")
    assert await gateway.refund("r-1", charge_reference=paid.reference, amount_minor=1000) == first
    with pytest.raises(GatewayRefused) as too_large:
        await gateway.refund("r-2", charge_reference=paid.reference, amount_minor=2999)
    assert too_large.value.error_class == "GATEWAY_REFUND_TOO_LARGE"
    await gateway.refund("r-2", charge_reference=paid.reference, amount_minor=2998)
    assert [type(execution) for execution in executions] == [ChargeExecuted, RefundExecuted, RefundExecuted]


async def test_a_refund_is_found_by_its_key_past_the_window_too_and_no_charge_is() -> None:
    clock = Clock()
    gateway = SimulatedGateway(key_ttl=60, clock=clock)
    paid = await charge(gateway)
    assert await gateway.find_refund("r-1", charge_reference=paid.reference) is None
    refund = await gateway.refund("r-1", charge_reference=paid.reference, amount_minor=1000)
    clock.now += 3600
    assert await gateway.find_refund("r-1", charge_reference=paid.reference) == refund
    assert await gateway.find_refund("k-1", charge_reference=paid.reference) is None


async def test_a_decline_cannot_be_refunded() -> None:
    gateway = SimulatedGateway()
    declined = await charge(gateway, payment_method="pm_card_chargeDeclined")
    with pytest.raises(GatewayRefused) as refused:
        await gateway.refund("r-1", charge_reference=declined.reference, amount_minor=1)
    assert refused.value.error_class == "GATEWAY_CHARGE_NOT_FOUND"


async def test_one_key_does_not_serve_a_charge_and_a_refund() -> None:
    gateway = SimulatedGateway()
    paid = await charge(gateway)
    with pytest.raises(GatewayRefused, match="GATEWAY_KEY_REUSED"):
        await gateway.refund("k-1", charge_reference=paid.reference, amount_minor=1)


async def test_a_nonpositive_amount_is_refused() -> None:
    with pytest.raises(GatewayRefused, match="GATEWAY_INVALID_REQUEST"):
        await charge(SimulatedGateway(), amount_minor=0)


async def test_a_lost_answer_has_executed_and_an_unavailable_gateway_has_not() -> None:
    gateway = SimulatedGateway(unknown_rate=1.0)
    with pytest.raises(ChargeUnknown):
        await charge(gateway)
    assert await gateway.find("k-1") is not None
    gateway.unavailable_rate = 1.0
    with pytest.raises(GatewayUnavailable):
        await charge(gateway, "k-2")
    gateway.unavailable_rate = 0.0
    assert await gateway.find("k-2") is None


async def moved(gateway: SimulatedGateway, since: float, until: float) -> list[list[Movement]]:
    """Returns the pages of the movements between two times."""
    begin, end = (datetime.datetime.fromtimestamp(time, datetime.UTC) for time in (since, until))
    pages, cursor = [], ""
    while True:
        page = await gateway.movements(begin, end, cursor)
        pages.append(list(page.movements))
        if not page.next_cursor:
            return pages
        cursor = page.next_cursor


async def test_movements_are_what_was_approved_and_given_back_in_its_time() -> None:
    clock = Clock()
    gateway = SimulatedGateway(clock=clock)
    paid = await charge(gateway)
    await charge(gateway, "k-2", payment_method="pm_card_chargeDeclined")
    await gateway.close("k-3")
    clock.now += 10
    back = await gateway.refund("r-1", charge_reference=paid.reference, amount_minor=998)
    times = [datetime.datetime.fromtimestamp(clock.now - ago, datetime.UTC) for ago in (10, 0)]
    listed = [
        Movement("charge", times[0], paid.reference, paid.reference, "o-1", 3998, "EUR"),
        Movement("refund", times[1], back.reference, paid.reference, "o-1", 998, "EUR"),
    ]
    assert await moved(gateway, clock.now - 10, clock.now + 1) == [listed]
    assert await moved(gateway, clock.now - 10, clock.now) == [listed[:1]], "without the end"
    assert await moved(gateway, clock.now, clock.now + 1) == [listed[1:]]
    assert await moved(gateway, clock.now + 1, clock.now + 2) == [[]]


async def test_pages_of_movements_part_no_moment_and_bring_each_once() -> None:
    clock = Clock()
    gateway = SimulatedGateway(clock=clock)
    for number in range(250):
        clock.now += number // 200  # most are of one moment
        await charge(gateway, f"k-{number}")
    pages = await moved(gateway, clock.now - 1_000_000, clock.now + 1)
    assert [len(page) for page in pages] == [100, 100, 50]
    assert len({each.reference for page in pages for each in page}) == 250
    assert [len(page) for page in await moved(gateway, 1_000_000, 1_000_001)] == [100, 100]


async def test_a_cursor_of_somebody_else_is_refused() -> None:
    with pytest.raises(GatewayRefused):
        await SimulatedGateway().movements(*[datetime.datetime.now(datetime.UTC)] * 2, "next")
