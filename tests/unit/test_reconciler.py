"""The reconciler: what it reads of each side, that it looks twice, and what it remembers."""

import asyncio
import datetime
import itertools
import random
from collections.abc import AsyncIterator, Iterable, Sequence

import prometheus_client
import pytest

from domain.reconciliation import Account, Case, Entry, Kind
from orderflow.orders.v1.order_pb2 import OrderStatus, PaymentStatus
from tests import engines
from tests.builders import NOW, an_id, an_order
from workers import reconciliation
from workers.gateways.gateway import Charge, GatewayUnavailable, MovementPage
from workers.gateways.simulated import SimulatedGateway
from workers.reconciler import Reconciler, Span
from workers.reconciliation import Reconciliation

SETTLE, OVERLAP = datetime.timedelta(minutes=10), datetime.timedelta(minutes=15)
LATENCY = datetime.timedelta(milliseconds=200)


class Gateway(SimulatedGateway):
    """The simulated gateway, which tells what it is asked and is away when told to."""

    def __init__(self, shop: "Shop") -> None:
        super().__init__(clock=lambda: shop.now.timestamp())
        self.asked: list[tuple[datetime.datetime, datetime.datetime]] = []
        self.looked_up: list[str] = []
        self.is_away = False

    async def movements(self, since: datetime.datetime, until: datetime.datetime, cursor: str = "") -> MovementPage:
        if self.is_away:
            raise GatewayUnavailable("told to")
        if not cursor:
            self.asked.append((since, until))
        return await super().movements(since, until, cursor)

    async def find(self, key: str) -> Charge | None:
        self.looked_up.append(key)
        return await super().find(key)


class Ledger:
    """Accounts in memory. `stale` are hidden from the first reading."""

    def __init__(self) -> None:
        self.booked: dict[str, Account] = {}
        self.touches: list[tuple[datetime.datetime, str]] = []
        self.stale: set[str] = set()
        self.largest = 0

    async def touched(self, since: datetime.datetime, until: datetime.datetime) -> AsyncIterator[list[str]]:
        found = [order_id for time, order_id in self.touches if since <= time < until]
        for start in range(0, len(found), 7):
            yield found[start : start + 7]

    async def accounts(self, order_ids: Sequence[str]) -> dict[str, Account]:
        self.largest = max(self.largest, len(order_ids))
        stale, self.stale = self.stale, set()
        return {each: self.booked[each] for each in order_ids if each in self.booked and each not in stale}


class Cases:
    """Cases in memory."""

    def __init__(self) -> None:
        self.cases: dict[str, Case] = {}
        self.until: datetime.datetime | None = None

    async def of(self, order_ids: Sequence[str]) -> dict[str, Case]:
        return {each: self.cases[each] for each in order_ids if each in self.cases}

    async def open(self, *, after: str, most: int) -> list[str]:
        return sorted(each for each, case in self.cases.items() if case.differences and each > after)[:most]

    async def save(self, cases: Sequence[Case], *, now: datetime.datetime) -> None:
        self.cases |= {case.order_id: case for case in cases}

    async def counts(self) -> dict[Kind, int]:
        found = [each.kind for case in self.cases.values() for each in case.differences]
        return {kind: found.count(kind) for kind in Kind}

    async def reconciled_until(self) -> datetime.datetime | None:
        return self.until

    async def advance(self, until: datetime.datetime) -> None:
        self.until = max(self.until or until, until)


class Shop:
    """Both sides, and a reconciler that looks back two hours."""

    def __init__(self) -> None:
        self.now = NOW
        self.gateway = Gateway(self)
        self.ledger = Ledger()
        self.cases = Cases()
        self.compared = Reconciliation(gateway=self.gateway, ledger=self.ledger, cases=self.cases)
        self.reconciler = Reconciler(
            compared=self.compared,
            cases=self.cases,
            span=Span(settle=SETTLE, overlap=OVERLAP, look_back=datetime.timedelta(hours=2)),
            interval=0.001,
            now=lambda: self.now,
        )

    async def charge(self, order_id: str, *, key: str = "") -> Charge:
        return await self.gateway.charge(
            key or f"charge-{order_id}",
            order_id=order_id,
            amount_minor=3998,
            currency_code="EUR",
            payment_method="pm_card_visa",
        )

    def book(self, order_id: str, charge: Charge, *, time: datetime.datetime | None = None) -> None:
        time = time or self.now + LATENCY
        order = an_order(order_id=order_id, now=time)
        order.status, order.payment_status = OrderStatus.ORDER_STATUS_PAID, PaymentStatus.PAYMENT_STATUS_CAPTURED
        entry = Entry("capture", time, charge.reference, charge.amount_minor, charge.currency_code)
        self.ledger.booked[order_id] = Account(f"charge-{order_id}", (), (entry,), order=order)
        self.ledger.touches.append((time, order_id))

    async def sell(self) -> str:
        order_id = an_id()
        self.book(order_id, await self.charge(order_id))
        return order_id

    async def sell_many(self, count: int, *, within: datetime.timedelta, seed: int = 1) -> list[str]:
        """Sells so many, spread over a time that ends when all is at rest by now."""
        dice, end = random.Random(seed), self.now
        times = sorted(end - SETTLE - LATENCY - within * dice.random() for _ in range(count))
        sold = []
        for self.now in times:
            sold.append(await self.sell())
        self.now = end
        return sold

    async def at_rest(self) -> None:
        self.now += SETTLE + LATENCY * 2

    async def kinds(self) -> list[str]:
        return sorted(each.kind.name for case in self.cases.cases.values() for each in case.differences)


@pytest.fixture
def shop() -> Shop:
    return Shop()


def shown(kind: Kind) -> float | None:
    return prometheus_client.REGISTRY.get_sample_value("orderflow_reconciliation_differences", {"kind": kind.value})


async def compared(batches: AsyncIterator[list[Case]]) -> list[Case]:
    return [case async for batch in batches for case in batch]


def differing(cases: Iterable[Case]) -> list[Case]:
    return [case for case in cases if case.differences]


async def test_every_order_is_compared_once_and_one_that_agrees_is_not_looked_up(shop: Shop) -> None:
    sold = await shop.sell_many(350, within=datetime.timedelta(hours=1))
    until = shop.now - SETTLE
    cases = await compared(shop.compared.window(until - datetime.timedelta(hours=2), until, until=until))
    # Some may be met in two slices: charged in one, booked in the next.
    assert {case.order_id for case in cases} == set(sold)
    assert len(cases) < len(sold) + 20
    assert differing(cases) == []
    assert shop.gateway.looked_up == []
    assert 50 < shop.ledger.largest <= 100, "in batches"


async def test_a_slice_with_too_many_movements_is_halved(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciliation, "_MOVEMENTS", 20)
    sold = await shop.sell_many(400, within=datetime.timedelta(minutes=5))
    until = shop.now - SETTLE
    since = until - datetime.timedelta(hours=30)
    cases = await compared(shop.compared.window(since, until, until=until))
    assert {case.order_id for case in cases} == set(sold)
    assert differing(cases) == []
    whole = [(begin, end) for begin, end in shop.gateway.asked if end - begin <= datetime.timedelta(seconds=20)]
    assert whole, "where there are many they are short"
    assert max(end - begin for begin, end in shop.gateway.asked) > datetime.timedelta(hours=8), "where none is, long"


async def test_more_in_the_shortest_slice_than_one_should_have_are_compared_all_the_same(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciliation, "_MOVEMENTS", 20)
    sold = [await shop.sell() for _ in range(130)]  # all at one moment
    await shop.at_rest()
    assert await shop.reconciler.reconcile() == 0
    cases = await compared(shop.compared.window(NOW, NOW + LATENCY * 2, until=shop.now))
    assert {case.order_id for case in cases} == set(sold)


async def test_a_charge_from_before_the_window_is_looked_up(shop: Shop) -> None:
    order_id = an_id()
    charge = await shop.charge(order_id)
    shop.now += datetime.timedelta(days=2)  # an operator had to
    shop.book(order_id, charge)
    await shop.at_rest()
    assert await shop.reconciler.reconcile() == 0
    assert shop.gateway.looked_up == [f"charge-{order_id}"]


async def test_an_edge_between_a_charge_and_its_booking_is_no_reason_to_look_up(shop: Shop) -> None:
    since = shop.now
    for shop.now in (since + datetime.timedelta(minutes=minutes) - LATENCY / 2 for minutes in (1, 3, 7)):
        await shop.sell()
    await shop.at_rest()
    until = shop.now - SETTLE
    cases = await compared(shop.compared.window(since, until, until=until))
    assert [end - since for _, end in shop.gateway.asked[:3]] == [
        datetime.timedelta(minutes=each) for each in (1, 3, 7)
    ]
    assert len(cases) == 6, "on both sides of the edge"
    assert differing(cases) == []
    assert shop.gateway.looked_up == []


async def test_what_is_booked_while_it_looks_is_no_difference(shop: Shop) -> None:
    order_id = await shop.sell()
    shop.ledger.stale = {order_id}
    await shop.at_rest()
    assert await shop.reconciler.reconcile() == 0
    assert shop.ledger.stale == set()
    assert shop.cases.cases == {}, "not even for a moment"
    del shop.ledger.booked[order_id]
    assert await shop.reconciler.reconcile() == 1


async def test_what_is_younger_than_it_takes_to_settle_waits(shop: Shop) -> None:
    order_id = an_id()
    await shop.charge(order_id)
    shop.now += SETTLE
    assert await shop.reconciler.reconcile() == 0
    shop.now += LATENCY
    assert await shop.reconciler.reconcile() == 1
    assert await shop.kinds() == ["CHARGE_WITHOUT_ORDER"]


async def test_a_difference_is_shown_until_it_is_mended_however_long_that_takes(shop: Shop) -> None:
    await shop.sell_many(20, within=datetime.timedelta(hours=1))
    assert await shop.reconciler.reconcile() == 0
    assert {shown(kind) for kind in Kind} == {0}
    stray = await shop.sell()
    await shop.charge(stray, key="by hand")
    await shop.at_rest()
    assert await shop.reconciler.reconcile() == 1
    assert shown(Kind.CHARGED_TWICE) == 1
    shop.now += datetime.timedelta(days=3)
    assert await shop.reconciler.reconcile() == 1, "no window has it any more"
    asked = len(shop.gateway.asked)
    second = shop.cases.cases[stray].differences[0].reference
    shop.now += datetime.timedelta(minutes=1)
    await shop.gateway.refund("by hand too", charge_reference=second, amount_minor=3998)
    await shop.at_rest()
    for _ in range(3):  # the next ones list the refund again, and the charge no more
        assert await shop.reconciler.reconcile() == 0
        shop.now += datetime.timedelta(minutes=1)
    assert len(shop.gateway.asked) > asked
    assert shown(Kind.CHARGED_TWICE) == 0


async def test_what_was_mended_by_hand_long_ago_is_no_difference_any_more(shop: Shop) -> None:
    order_id = an_id()
    charge = await shop.charge(order_id)
    await shop.at_rest()
    assert await shop.reconciler.reconcile() == 1
    shop.now += datetime.timedelta(days=3)
    assert await shop.reconciler.reconcile() == 1
    shop.book(order_id, charge, time=NOW)  # as it should have been: no window meets it
    assert await shop.reconciler.reconcile() == 0
    assert shop.cases.cases[order_id].differences == ()


async def test_it_reaches_back_for_what_came_late(shop: Shop) -> None:
    assert await shop.reconciler.reconcile() == 0
    done = shop.cases.until
    assert done == shop.now - SETTLE
    before = shop.now
    shop.now = done - OVERLAP
    await shop.charge(an_id())  # listed only now
    shop.now = before + LATENCY
    assert await shop.reconciler.reconcile() == 1


async def test_it_goes_on_where_it_was_left(shop: Shop) -> None:
    shop.gateway.is_away = True
    with pytest.raises(GatewayUnavailable):
        await shop.reconciler.reconcile()
    assert shop.cases.until is None
    shop.gateway.is_away = False
    await shop.reconciler.reconcile()
    assert min(begin for begin, _ in shop.gateway.asked) == shop.now - SETTLE - datetime.timedelta(hours=2)
    shop.gateway.asked.clear()
    done = shop.cases.until
    assert done is not None
    shop.now += datetime.timedelta(hours=5)
    await shop.reconciler.reconcile()
    asked = sorted(shop.gateway.asked)
    assert asked[0][0] == done - OVERLAP
    assert asked[-1][1] == shop.now - SETTLE
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(asked)), "nothing between them"


async def test_a_difference_outlives_the_process(shop: Shop) -> None:
    await shop.charge(an_id())
    await shop.at_rest()
    assert await shop.reconciler.reconcile() == 1
    other = Shop()
    assert shown(Kind.CHARGE_WITHOUT_ORDER) == 0
    other.cases.cases, other.cases.until, other.gateway.is_away = shop.cases.cases, shop.cases.until, True
    with pytest.raises(GatewayUnavailable):
        await other.reconciler.reconcile()
    assert shown(Kind.CHARGE_WITHOUT_ORDER) == 1


async def test_what_is_away_is_told_and_asked_again(shop: Shop) -> None:
    assert not shop.reconciler.is_ready
    stop = asyncio.Event()
    running = asyncio.create_task(shop.reconciler.run(stop))
    await engines.eventually(lambda: shop.reconciler.is_ready, "a reconciliation")
    shop.gateway.is_away = True
    await engines.eventually(lambda: not shop.reconciler.is_ready, "one that cannot look")
    shop.gateway.is_away = False
    await engines.eventually(lambda: shop.reconciler.is_ready, "another one")
    stop.set()
    async with asyncio.timeout(30):
        await running


async def test_a_stop_ends_it_in_the_middle(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = asyncio.Event()

    async def movements(*_: object) -> MovementPage:
        hangs.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(shop.gateway, "movements", movements)
    stop = asyncio.Event()
    running = asyncio.create_task(shop.reconciler.run(stop))
    await hangs.wait()
    stop.set()
    async with asyncio.timeout(30):
        await running


async def test_a_fault_of_its_own_ends_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def counts() -> dict[Kind, int]:
        raise ZeroDivisionError

    monkeypatch.setattr(shop.cases, "counts", counts)
    with pytest.raises(ZeroDivisionError):
        await shop.reconciler.run(asyncio.Event())
