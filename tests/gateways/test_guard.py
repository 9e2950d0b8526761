"""The breaker discipline of GuardedGateway."""

import asyncio
import datetime
from collections.abc import Callable

import pytest

from domain.failures import DependencyDown
from workers.gateways.gateway import (
    Charge,
    ChargeUnderWay,
    ChargeUnknown,
    GatewayRefused,
    GatewayUnavailable,
    MovementPage,
    Refund,
)
from workers.gateways.guard import GuardedGateway, Outcome, State

APPROVED = Charge("ch_1", "k", True, "", 100, "EUR")
DECLINED = Charge("ch_1", "k", False, "CARD_DECLINED", 100, "EUR")
REFUNDED = Refund("re_1", "r", "ch_1", 1, "EUR")


class ScriptedGateway:
    """Answers what it is told, and on demand holds calls until they are let go."""

    def __init__(self) -> None:
        self.answer: Charge | Exception = APPROVED
        self.calls = 0
        self.arrived = asyncio.Event()
        self.let_go = asyncio.Event()
        self.let_go.set()

    async def charge(
        self, key: str, *, order_id: str, amount_minor: int, currency_code: str, payment_method: str
    ) -> Charge:
        self.calls += 1
        answer = self.answer
        self.arrived.set()
        await self.let_go.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def find(self, key: str) -> Charge | None:
        return await self.charge(key, order_id="", amount_minor=0, currency_code="", payment_method="")

    async def refund(self, key: str, *, charge_reference: str, amount_minor: int) -> Refund:
        await self.find(key)
        return REFUNDED

    async def find_refund(self, key: str, *, charge_reference: str) -> Refund | None:
        return await self.refund(key, charge_reference="", amount_minor=0)

    async def close(self, key: str) -> Charge | None:
        return await self.find(key)

    async def movements(self, since: datetime.datetime, until: datetime.datetime, cursor: str = "") -> MovementPage:
        await self.find(cursor)
        return MovementPage((), f"{since:%H} to {until:%H} after {cursor}")

    async def aclose(self) -> None:
        self.calls = -1

    def hold(self) -> None:
        self.arrived.clear()
        self.let_go.clear()


class Bench:
    """A guard (three failures open it, for 30 s) around a scripted gateway, with its clock and what it reported."""

    def __init__(self) -> None:
        self.now = 50.0
        self.gateway = ScriptedGateway()
        self.transitions: list[tuple[State, State]] = []
        self.outcomes: list[Outcome] = []
        self.guard = GuardedGateway(
            self.gateway,
            fail_max=3,
            reset_timeout=30.0,
            on_transition=lambda old, new: self.transitions.append((old, new)),
            on_call=self.outcomes.append,
            clock=lambda: self.now,
        )

    @property
    def state(self) -> str:
        return self.guard.state

    async def charge(self) -> Charge:
        return await self.guard.charge(
            "k", order_id="o", amount_minor=100, currency_code="EUR", payment_method="pm_card_visa"
        )

    async def fail(self, times: int = 3) -> None:
        self.gateway.answer = ChargeUnknown("timed out")
        for _ in range(times):
            with pytest.raises(ChargeUnknown):
                await self.charge()
        self.gateway.answer = APPROVED

    async def trip(self) -> None:
        await self.fail()
        assert self.state == "open"

    async def hold_one(self) -> asyncio.Task[Charge]:
        """A call that is with the gateway and stays there."""
        self.gateway.hold()
        task = asyncio.create_task(self.charge())
        await self.gateway.arrived.wait()
        return task


@pytest.fixture
async def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(
    "failure", [lambda: ChargeUnknown("5xx"), lambda: GatewayUnavailable("refused"), lambda: OSError()]
)
async def test_opens_after_fail_max_failures_and_the_caller_sees_the_real_error(
    bench: Bench, failure: Callable[[], Exception]
) -> None:
    bench.gateway.answer = failure()
    for expected in ("closed", "closed", "open"):
        with pytest.raises(type(bench.gateway.answer)):
            await bench.charge()
        assert bench.state == expected
    assert bench.transitions == [("closed", "open")]
    assert bench.outcomes == ["failure"] * 3


async def test_open_rejects_with_the_time_left_and_calls_nobody(bench: Bench) -> None:
    await bench.trip()
    calls = bench.gateway.calls
    bench.now += 12.0
    for call in (bench.charge(), bench.guard.find("k"), bench.guard.close("k")):
        with pytest.raises(DependencyDown) as down:
            await call
        assert down.value.dependency == "gateway"
        assert down.value.retry_after == pytest.approx(18.0)
    assert bench.gateway.calls == calls
    assert bench.outcomes[-3:] == ["not_permitted"] * 3


async def test_a_success_between_failures_starts_the_count_anew(bench: Bench) -> None:
    await bench.fail(2)
    await bench.charge()
    await bench.fail(2)
    assert bench.state == "closed"


@pytest.mark.parametrize("answer", [DECLINED, GatewayRefused("GATEWAY_KEY_REUSED", "other parameters")])
async def test_a_decline_or_refusal_counts_as_an_answer(bench: Bench, answer: Charge | Exception) -> None:
    await bench.fail(2)
    bench.gateway.answer = answer
    if isinstance(answer, Exception):
        with pytest.raises(GatewayRefused):
            await bench.charge()
    else:
        assert await bench.charge() == answer
    assert bench.outcomes[-1] == ("success" if isinstance(answer, Exception) else "declined")
    await bench.fail(2)
    assert bench.state == "closed"


async def test_half_open_admits_one_probe_of_50_and_its_success_closes(bench: Bench) -> None:
    await bench.trip()
    calls = bench.gateway.calls
    bench.now += 30.0
    bench.gateway.hold()
    tasks = [asyncio.create_task(bench.charge()) for _ in range(50)]
    done, probe = await _all_but_one(tasks)
    assert bench.gateway.calls == calls + 1
    assert bench.state == "half_open"
    assert all(isinstance(task.exception(), DependencyDown) for task in done)
    bench.gateway.let_go.set()
    assert await probe == APPROVED
    assert bench.state == "closed"
    assert bench.transitions == [("closed", "open"), ("open", "half_open"), ("half_open", "closed")]


async def test_a_declined_probe_closes(bench: Bench) -> None:
    await bench.trip()
    bench.now += 30.0
    bench.gateway.answer = DECLINED
    assert await bench.charge() == DECLINED
    assert bench.state == "closed"


async def test_a_failed_probe_opens_for_the_whole_time_again(bench: Bench) -> None:
    await bench.trip()
    bench.now += 31.0
    await bench.fail(1)
    assert bench.state == "open"
    with pytest.raises(DependencyDown) as down:
        await bench.charge()
    assert down.value.retry_after == pytest.approx(30.0)
    bench.now += 30.0
    assert await bench.charge() == APPROVED
    assert bench.state == "closed"


async def test_a_cancelled_call_is_neither_failure_nor_success(bench: Bench) -> None:
    await bench.fail(2)
    task = await bench.hold_one()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    bench.gateway.let_go.set()
    assert bench.state == "closed", "it was no third failure"
    await bench.fail(1)
    assert bench.state == "open", "it did not reset the count"
    assert bench.outcomes == ["failure"] * 3


async def test_a_cancelled_probe_opens_again_and_the_next_probe_is_admitted(bench: Bench) -> None:
    await bench.trip()
    bench.now += 30.0
    probe = await bench.hold_one()
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert bench.state == "open"
    bench.gateway.let_go.set()
    with pytest.raises(DependencyDown) as down:
        await bench.charge()
    assert down.value.retry_after == pytest.approx(30.0)
    bench.now += 30.0
    assert await bench.charge() == APPROVED
    assert bench.state == "closed"


async def test_what_was_sent_before_the_breaker_opened_does_not_close_it(bench: Bench) -> None:
    early = await bench.hold_one()
    gate = bench.gateway.let_go
    bench.gateway.let_go = asyncio.Event()
    bench.gateway.let_go.set()
    await bench.trip()
    gate.set()
    assert await early == APPROVED
    assert bench.state == "open"


async def test_a_late_failure_from_before_does_not_end_the_probe(bench: Bench) -> None:
    bench.gateway.answer = ChargeUnknown("late")
    early = await bench.hold_one()
    early_gate = bench.gateway.let_go
    bench.gateway.let_go = asyncio.Event()
    bench.gateway.let_go.set()
    await bench.trip()
    bench.now += 30.0
    probe = await bench.hold_one()
    early_gate.set()
    with pytest.raises(ChargeUnknown):
        await early
    assert bench.state == "half_open"
    with pytest.raises(DependencyDown):
        await bench.charge()
    bench.gateway.let_go.set()
    await probe
    assert bench.state == "closed"


async def test_find_and_close_feed_the_breaker_too(bench: Bench) -> None:
    bench.gateway.answer = GatewayUnavailable("no look-up")
    for call in (bench.guard.find, bench.guard.close, bench.guard.find):
        with pytest.raises(GatewayUnavailable):
            await call("k")
    assert bench.state == "open"


async def test_a_page_of_movements_is_a_call_like_the_others(bench: Bench) -> None:
    since = datetime.datetime(2026, 1, 1, 7, tzinfo=datetime.UTC)
    until = since + datetime.timedelta(hours=1)
    assert (await bench.guard.movements(since, until, "c")).next_cursor == "07 to 08 after c"
    bench.gateway.answer = GatewayUnavailable("refused")
    for _ in range(3):
        with pytest.raises(GatewayUnavailable):
            await bench.guard.movements(since, until)
    assert bench.state == "open"
    calls = bench.gateway.calls
    with pytest.raises(GatewayUnavailable, match="the breaker is open"):
        await bench.guard.movements(since, until)
    assert bench.gateway.calls == calls


async def test_aclose_closes_the_gateway_inside(bench: Bench) -> None:
    await bench.guard.aclose()
    assert bench.gateway.calls == -1


async def _all_but_one(tasks: list[asyncio.Task[Charge]]) -> tuple[list[asyncio.Task[Charge]], asyncio.Task[Charge]]:
    """Wait until exactly one is left, or fail. Returns the others and that one."""
    pending = set(tasks)
    while len(pending) > 1:
        done, pending = await asyncio.wait(pending, timeout=5.0, return_when=asyncio.FIRST_COMPLETED)
        assert done, f"{len(pending)} calls are still with the gateway"
    (left,) = pending
    return [task for task in tasks if task.done()], left


async def test_an_unknown_probe_may_be_looked_up_once_although_the_breaker_is_open(bench: Bench) -> None:
    await bench.trip()
    with pytest.raises(GatewayUnavailable):
        await bench.guard.find("k")  # no probe yet
    bench.now += 30
    await bench.fail(times=1)
    assert bench.state == "open"
    with pytest.raises(GatewayUnavailable):
        await bench.guard.find("another key")
    assert await bench.guard.find("k") == APPROVED
    assert bench.state == "open", "a look-up says nothing about charges"
    with pytest.raises(GatewayUnavailable):
        await bench.guard.find("k")


async def test_an_unknown_probe_that_was_a_refund_may_be_looked_up_too(bench: Bench) -> None:
    await bench.trip()
    bench.now += 30
    bench.gateway.answer = ChargeUnknown("a stored error")
    with pytest.raises(ChargeUnknown):
        await bench.guard.refund("r", charge_reference="c", amount_minor=1)
    bench.gateway.answer = APPROVED
    assert bench.state == "open"
    assert await bench.guard.find_refund("r", charge_reference="c") == REFUNDED
    with pytest.raises(GatewayUnavailable):
        await bench.guard.find_refund("r", charge_reference="c")


async def test_a_dependency_of_ours_that_is_away_says_nothing_of_the_gateway(bench: Bench) -> None:
    bench.gateway.answer = DependencyDown("postgres", "away")
    for _ in range(5):
        with pytest.raises(DependencyDown):
            await bench.charge()
    assert (bench.state, bench.outcomes) == ("closed", [])
    await bench.trip()
    bench.now += 30.0
    bench.gateway.answer = DependencyDown("postgres", "away")
    with pytest.raises(DependencyDown, match="postgres"):
        await bench.charge()
    assert bench.state == "open", "the probe asked nobody: another one will"


async def test_a_close_that_found_the_charge_under_way_was_answered(bench: Bench) -> None:
    await bench.fail(2)
    bench.gateway.answer = ChargeUnderWay("processing")
    with pytest.raises(ChargeUnderWay):
        await bench.guard.close("k")
    assert bench.outcomes[-1] == "success"
    await bench.fail(2)
    assert bench.state == "closed"
