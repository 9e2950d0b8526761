"""GetOrder, BatchGetOrders, ListOrders and ListOrderEvents, over a real server."""

import asyncio
import base64
import datetime
import random
import statistics
import time
from collections.abc import AsyncIterator, Collection
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.events.v1.order_event_pb2 import (
    NotificationFailedDetails,
    NotificationSentDetails,
    OrderEvent,
    OrderEventType,
    OrderPaidDetails,
    OrderRejectedDetails,
)
from orderflow.orders.v1.order_history_pb2 import DeadLetterEntry, NotificationEntry, OrderHistoryEntry, PaymentEntry
from orderflow.orders.v1.order_pb2 import Money, NotificationChannel, Order, OrderStatus, PaymentStatus
from orderflow.orders.v1.order_service_pb2 import (
    BatchGetOrdersRequest,
    FindOrdersRequest,
    GetOrderRequest,
    ListOrderEventsRequest,
    ListOrdersRequest,
)
from server import calls
from server.gathering import Gathering
from server.tokens import ConsistencyToken
from settings import DatabaseSettings
from storage.database import Database
from storage.order_views import OrderView, OrderViews
from tests import engines, served
from tests.builders import NOW, a_group, an_id, an_order, order_created, order_event
from tests.served import ReadModel, Served, called_as, order_life, orders_of, refusal

E = OrderEventType
S = OrderStatus
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS")
NOT_FOUND = (grpc.StatusCode.NOT_FOUND, "ORDER_NOT_FOUND", [])
NOT_THERE_YET = (grpc.StatusCode.UNAVAILABLE, "NOT_THERE_YET", ["0.5"])
SECOND = datetime.timedelta(seconds=1)


@pytest.fixture
async def server(database: Database, database_settings: DatabaseSettings) -> AsyncIterator[Served]:
    async with served.served(database, database_settings) as server:
        yield server


@pytest.fixture
async def stub(server: Served) -> AsyncIterator[Any]:
    async with server.channel() as stub:
        yield stub


@pytest.fixture
async def impatient(database: Database, database_settings: DatabaseSettings) -> AsyncIterator[Any]:
    """The stub of a server that soon gives up waiting; a caller's deadline would end the call beside its answer."""
    async with served.served(database, database_settings, default_deadline=0.4) as server, server.channel() as stub:
        yield stub


@pytest.fixture
def model(database: Database) -> ReadModel:
    return ReadModel(database)


async def refused(call: Any) -> tuple[grpc.StatusCode, str, list[str]]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return refusal(error.value)


def token(order: Order, revision: int) -> str:
    return ConsistencyToken(order.order_id, revision).encode()


def at(time: datetime.datetime, nanos: int = 0) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time)
    stamp.nanos += nanos
    return stamp


# -- BatchGetOrders ----------------------------------------------------------------------------------------------------


async def test_a_batch_is_in_the_order_of_its_requests(stub: Any, model: ReadModel) -> None:
    events = orders_of(20)
    await model.add(*events)
    random.Random(1).shuffle(events)
    events.append(events[3])
    batch = await stub.BatchGetOrders(
        BatchGetOrdersRequest(requests=[GetOrderRequest(order_id=event.order.order_id) for event in events])
    )
    assert [each.order for each in batch.orders] == [event.order for event in events]
    for each in batch.orders:
        assert ConsistencyToken.decode(each.consistency_token) == ConsistencyToken(each.order.order_id, 1)


async def test_a_batch_is_one_look(
    database: Database, stub: Any, model: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = orders_of(500)
    await model.add(*events)
    looks = []
    original = database.connection
    monkeypatch.setattr(database, "connection", lambda: looks.append(1) or original())
    batch = await stub.BatchGetOrders(
        BatchGetOrdersRequest(requests=[GetOrderRequest(order_id=event.order.order_id) for event in events])
    )
    assert len(batch.orders) == 500
    assert len(looks) == 1


async def test_a_batch_waits_for_each_of_its_tokens(
    server: Served, stub: Any, model: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = order_life(), order_life()
    await model.add(*quick[:2], slow[0])
    requests = [
        GetOrderRequest(order_id=slow[0].order.order_id, consistency_token=token(slow[0].order, 3)),
        GetOrderRequest(order_id=quick[0].order.order_id, consistency_token=token(quick[0].order, 2)),
    ]
    looked: list[list[str]] = []
    original = OrderViews.get_many

    async def get_many(self: OrderViews, order_ids: Any) -> Any:
        found = await original(self, order_ids)
        looked.append(list(order_ids))
        return found

    monkeypatch.setattr(OrderViews, "get_many", get_many)
    monkeypatch.setattr(server.queries, "_awaited", Gathering(server.queries._views.get_many))
    call = stub.BatchGetOrders(BatchGetOrdersRequest(requests=requests), timeout=20)
    for event in slow[1:3]:
        looks = len(looked)
        await engines.eventually(lambda looks=looks: len(looked) > looks, "it has looked")  # type: ignore[misc]
        await model.add(event)
    assert [each.order.revision for each in (await call).orders] == [3, 2]
    assert looked[0] == [each.order_id for each in requests]
    assert looked[-1] == [requests[0].order_id], "what was there is not looked for again"


async def test_reads_that_wait_look_together(
    server: Served, stub: Any, model: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be as many as the server takes, and PostgreSQL has ten connections for all."""
    lives = [order_life() for _ in range(20)]
    await model.add(*(life[0] for life in lives))
    sizes: list[int] = []

    async def together(order_ids: Collection[str]) -> dict[str, OrderView]:
        sizes.append(len(order_ids))
        return await server.queries._views.get_many(order_ids)

    monkeypatch.setattr(server.queries, "_awaited", Gathering(together))
    requests = [
        GetOrderRequest(order_id=life[0].order.order_id, consistency_token=token(life[0].order, 2)) for life in lives
    ]
    reads = [asyncio.ensure_future(stub.GetOrder(request, timeout=20)) for request in requests]
    await engines.eventually(lambda: max(sizes, default=0) > 1, "some of those who wait look together")
    await model.add(*(life[1] for life in lives))
    assert {read.order.revision for read in await asyncio.gather(*reads)} == {2}


async def test_a_batch_has_the_error_of_its_first_order_that_has_one(
    stub: Any, impatient: Any, model: ReadModel
) -> None:
    known = order_life()
    await model.add(known[0])
    there = GetOrderRequest(order_id=known[0].order.order_id)
    late = GetOrderRequest(order_id=known[0].order.order_id, consistency_token=token(known[0].order, 9))
    absent = GetOrderRequest(order_id=an_id())

    async def first_error(stub: Any, *requests: GetOrderRequest) -> Any:
        return await refused(stub.BatchGetOrders(BatchGetOrdersRequest(requests=requests)))

    assert await first_error(stub, there, absent) == NOT_FOUND
    assert await first_error(stub, absent, late) == NOT_FOUND
    assert await first_error(impatient, late, absent) == NOT_THERE_YET


async def test_the_callers_deadline_ends_the_wait_for_a_revision(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_ANSWER_SECONDS", 2.0)  # after a pause of 0.1 s it may be the channel that says so
    absent = an_id()
    request = GetOrderRequest(order_id=absent, consistency_token=ConsistencyToken(absent, 1).encode())
    batch = BatchGetOrdersRequest(requests=[request])
    answers = [refused(stub.GetOrder(request, timeout=8)), refused(stub.BatchGetOrders(batch, timeout=8))]
    assert await asyncio.gather(*answers) == [NOT_THERE_YET] * 2


async def test_a_batch_that_is_not_valid(stub: Any) -> None:
    async def fields(*requests: GetOrderRequest) -> list[str]:
        code, reason, fields = await refused(stub.BatchGetOrders(BatchGetOrdersRequest(requests=requests)))
        assert (code, reason) == INVALID
        return fields

    assert await fields() == ["requests"]
    assert await fields(*[GetOrderRequest(order_id=an_id())] * 501) == ["requests"]
    assert await fields(GetOrderRequest(order_id=an_id()), GetOrderRequest(order_id="x")) == ["requests[1].order_id"]
    other = ConsistencyToken(an_id(), 1).encode()
    assert await fields(GetOrderRequest(order_id=an_id(), consistency_token=other)) == ["requests[0].consistency_token"]


async def test_anothers_order_is_as_one_that_is_not_there(
    stub: Any, impatient: Any, model: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    called_as(monkeypatch)
    theirs = order_life(caller="them")[0]
    await model.add(theirs)
    own = (("caller", "them"),)
    assert (await stub.GetOrder(GetOrderRequest(order_id=theirs.order.order_id), metadata=own)).order == theirs.order
    for order_id in (theirs.order.order_id, an_id()):
        plain = GetOrderRequest(order_id=order_id)
        forged = GetOrderRequest(order_id=order_id, consistency_token=ConsistencyToken(order_id, 1).encode())
        assert await refused(stub.GetOrder(plain)) == NOT_FOUND
        assert await refused(impatient.GetOrder(forged)) == NOT_THERE_YET
        assert await refused(stub.BatchGetOrders(BatchGetOrdersRequest(requests=[plain]))) == NOT_FOUND
        assert await refused(impatient.BatchGetOrders(BatchGetOrdersRequest(requests=[forged]))) == NOT_THERE_YET
        assert await refused(stub.ListOrderEvents(ListOrderEventsRequest(order_id=order_id))) == NOT_FOUND


# -- ListOrders --------------------------------------------------------------------------------------------------------


async def listed(stub: Any, *, metadata: Any = (), **fields: Any) -> list[Order]:
    """Returns all pages."""
    orders: list[Order] = []
    request = ListOrdersRequest(**fields)
    while True:
        page = await stub.ListOrders(request, metadata=metadata)
        orders += page.orders
        if not page.next_page_token:
            return orders
        assert page.orders, "a page leads on and has nothing"
        request.page_token = page.next_page_token


def newest_first(events: list[OrderEvent]) -> list[Order]:
    return sorted(
        (event.order for event in events),
        key=lambda order: (order.create_time.ToNanoseconds(), order.order_id),
        reverse=True,
    )


@pytest.mark.parametrize("page_size", [1, 3, 0, 1000, 5000])
@pytest.mark.parametrize("every", [1.0, 0.0])
async def test_pages_have_every_order_once_and_newest_first(
    stub: Any, model: ReadModel, page_size: int, every: float
) -> None:
    user = a_group()
    events = orders_of(70 if page_size != 1 else 7, user_id=user, every=every)
    await model.add(*events)
    assert await listed(stub, user_id=user, page_size=page_size) == newest_first(events)


async def test_how_large_a_page_is(stub: Any, model: ReadModel) -> None:
    user = a_group()
    await model.add(*orders_of(1001, user_id=user))

    async def size(page_size: int) -> int:
        return len((await stub.ListOrders(ListOrdersRequest(user_id=user, page_size=page_size))).orders)

    assert [await size(each) for each in (0, 1, 999, 1000, 1001, 2**31 - 1)] == [50, 1, 999, 1000, 1000, 1000]


async def test_large_orders_make_shorter_pages(stub: Any, model: ReadModel) -> None:
    user = a_group()
    labels = {f"label-{number}": "\U0001f600" * 255 for number in range(32)}
    events = orders_of(200, user_id=user, labels=labels)
    await model.add(*events)
    page = await stub.ListOrders(ListOrdersRequest(user_id=user, page_size=1000))
    assert 50 < len(page.orders) < 200
    assert await listed(stub, user_id=user, page_size=1000) == newest_first(events)


async def test_each_filter(stub: Any, model: ReadModel) -> None:
    user = a_group()
    lives = [order_life(an_order(user_id=user, now=NOW + number * SECOND)) for number in range(10)]
    # Order n stands at revision 1 + n % 4.
    await model.add(*(event for number, life in enumerate(lives) for event in life[: 1 + number % 4]))
    stands = [life[number % 4] for number, life in enumerate(lives)]

    async def which(**fields: Any) -> list[int]:
        found = await listed(stub, user_id=user, page_size=2, **fields)
        return [[event.order for event in stands].index(order) for order in found]

    assert await which() == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert await which(statuses=[S.ORDER_STATUS_PAID]) == [6, 2]
    assert await which(statuses=[S.ORDER_STATUS_PAID, S.ORDER_STATUS_CREATED, S.ORDER_STATUS_PAID]) == [8, 6, 4, 2, 0]
    assert await which(statuses=[S.ORDER_STATUS_CANCELLED]) == []
    assert await which(created_from=at(NOW + 8 * SECOND)) == [9, 8]
    assert await which(created_before=at(NOW + 2 * SECOND)) == [1, 0]
    assert await which(created_from=at(NOW + 3 * SECOND), created_before=at(NOW + 6 * SECOND)) == [5, 4, 3]
    assert await which(created_from=at(NOW + 3 * SECOND, nanos=1), created_before=at(NOW + 6 * SECOND, nanos=1)) == [
        6,
        5,
        4,
    ], "a time between two microseconds"
    assert await which(created_from=at(NOW + 6 * SECOND), created_before=at(NOW)) == []
    assert await which(statuses=[S.ORDER_STATUS_SHIPPED], created_before=at(NOW + 7 * SECOND)) == [3]
    assert await listed(stub, user_id=a_group()) == []


async def test_an_unknown_payment_shows_in_lists_too(stub: Any, model: ReadModel) -> None:
    user = a_group()
    life = order_life(an_order(user_id=user))
    letter = DeadLetter(group="payment-processor", error_class="PAYMENT_UNKNOWN", key=life[0].order.order_id.encode())
    await model.add(*life[:2], dead_letters=[letter])
    (order,) = await listed(stub, user_id=user)
    assert order.payment_status == PaymentStatus.PAYMENT_STATUS_UNKNOWN


async def test_lists_have_the_callers_orders_only(stub: Any, model: ReadModel, monkeypatch: pytest.MonkeyPatch) -> None:
    user = a_group()
    mine, theirs = orders_of(5, user_id=user, caller="me"), orders_of(5, user_id=user, caller="them", every=0.7)
    await model.add(*mine, *theirs)
    called_as(monkeypatch)
    for caller, events in (("me", mine), ("them", theirs), ("nobody", [])):
        found = await listed(stub, user_id=user, page_size=2, metadata=(("caller", caller),))
        assert found == newest_first(events)
        of_all_users = await stub.ListOrders(ListOrdersRequest(page_size=1000), metadata=(("caller", caller),))
        assert [order for order in of_all_users.orders if order.user_id == user] == newest_first(events)
    called_as(monkeypatch, sees_all=True)
    assert await listed(stub, user_id=user, page_size=3) == newest_first(mine + theirs)


async def test_a_page_token_is_for_one_request_of_one_caller(
    stub: Any, model: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    called_as(monkeypatch)
    user = a_group()
    await model.add(*orders_of(4, user_id=user))
    request = ListOrdersRequest(user_id=user, page_size=2)
    request.page_token = (await stub.ListOrders(request)).next_page_token
    assert len((await stub.ListOrders(request)).orders) == 2, "unchanged it is good"

    async def fields(metadata: Any = (), **changes: Any) -> Any:
        changed = ListOrdersRequest()
        changed.CopyFrom(request)
        changed.MergeFrom(ListOrdersRequest(**changes))
        return await refused(stub.ListOrders(changed, metadata=metadata))

    bad = (*INVALID, ["page_token"])
    assert await fields(metadata=(("caller", "them"),)) == bad
    assert await fields(user_id=a_group()) == bad
    assert await fields(statuses=[S.ORDER_STATUS_CREATED]) == bad
    assert await fields(created_from=at(NOW)) == bad
    assert await fields(created_before=at(NOW + 9 * SECOND)) == bad
    assert await fields(page_size=3) == bad
    cut = request.page_token[:-8]
    forged = base64.urlsafe_b64encode(base64.urlsafe_b64decode(request.page_token + "==")[:33] + b"\x00" * 36).decode()
    for nonsense in (
        "x",
        "\u2603",
        "AAAA",
        cut,
        request.page_token + "A" * 8,
        forged,
        "=" * 9,
        "!" + request.page_token,
    ):
        assert await fields(page_token=nonsense) == bad, nonsense
    life = order_life()
    await model.add(*life)
    events = ListOrderEventsRequest(order_id=life[0].order.order_id, page_size=2)
    events.page_token = (await stub.ListOrderEvents(events)).next_page_token
    assert await fields(page_token=events.page_token) == bad, "another method's"


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"page_size": -1}, "page_size"),
        ({"statuses": [0]}, "statuses[0]"),
        ({"statuses": [S.ORDER_STATUS_PAID, 77]}, "statuses[1]"),
        ({"created_from": Timestamp(seconds=-1)}, "created_from"),
        ({"created_from": Timestamp(seconds=1, nanos=-1)}, "created_from"),
        ({"created_before": Timestamp(seconds=253_402_300_800)}, "created_before"),
        ({"created_before": Timestamp(seconds=1, nanos=10**9)}, "created_before"),
        ({"user_id": "a\x00b"}, "user_id"),
        ({"user_id": "u" * 129}, "user_id"),
    ],
)
async def test_a_list_that_is_not_valid(stub: Any, fields: dict[str, Any], wrong: str) -> None:
    assert await refused(stub.ListOrders(ListOrdersRequest(**fields))) == (*INVALID, [wrong])


async def test_what_is_placed_meanwhile_moves_nothing(stub: Any, model: ReadModel) -> None:
    await page_while_orders_arrive(stub, model, count=5_000, page_size=100)


async def page_while_orders_arrive(stub: Any, model: ReadModel, *, count: int, page_size: int, **fields: Any) -> float:
    """Pages through orders while newer ones arrive and old ones move on: each comes once, none is missing.

    Returns how many times as long the last pages take as the first.
    """
    user = a_group()
    # Ten at each moment, so that pages end among orders of one moment.
    events = [
        order_created(an_order(user_id=user, now=NOW + SECOND * (number // 10)), caller=served.LOCAL)
        for number in range(count)
    ]
    for start in range(0, count, 1_000):
        await model.add(*events[start : start + 1_000])
    done = asyncio.Event()
    arrived: list[OrderEvent] = []

    async def arrive() -> None:
        rng = random.Random(7)
        while not done.is_set():
            newer = NOW + SECOND * (count + len(arrived))
            new = [order_created(an_order(user_id=user, now=newer), caller=served.LOCAL) for _ in range(5)]
            old = [order_event(order=rng.choice(events).order, now=newer)]
            for event in old:
                event.metadata.caller = served.LOCAL
            await model.add(*new, *old)
            arrived.extend(new)
            await asyncio.sleep(0)

    arriving = asyncio.create_task(arrive())
    found: list[str] = []
    tokens: list[str] = []
    request = ListOrdersRequest(user_id=user, page_size=page_size, **fields)
    try:
        while True:
            page = await stub.ListOrders(request)
            found += [order.order_id for order in page.orders]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
            tokens.append(page.next_page_token)
        ratio = await last_to_first(stub, request, tokens)
    finally:
        done.set()
        await arriving
    assert len(arrived) > 10
    before = [event.order.order_id for event in events]
    assert len(found) == len(set(found)), "an order came twice"
    assert set(before) <= set(found), "an order is missing"
    first = found.index(newest_first(events)[0].order_id)
    assert found[first:] == [order.order_id for order in newest_first(events)]
    return ratio


async def last_to_first(stub: Any, request: ListOrdersRequest, tokens: list[str]) -> float:
    """Reads first and last pages in turn, so that whatever else the machine does falls on both."""
    some = max(len(tokens) // 10, 1)
    took: dict[str, list[float]] = {"first": [], "last": []}
    for first, last in zip(tokens[:some], tokens[-some - 1 : -1], strict=True):
        for which, token in (("first", first), ("last", last)):
            request.page_token = token
            started = time.perf_counter()
            page = await stub.ListOrders(request)
            took[which].append(time.perf_counter() - started)
            assert len(page.orders) == request.page_size
    medians = {which: statistics.median(times) for which, times in took.items()}
    ratio = medians["last"] / medians["first"]
    print(f"{len(tokens) + 1} pages: first and last take {medians} s, ratio {ratio:.2f}")
    return ratio


@pytest.mark.heavy
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("fields", [{}, {"statuses": [S.ORDER_STATUS_CREATED, S.ORDER_STATUS_PROCESSING]}], ids=str)
async def test_200_000_orders_page_by_page(
    own_database: Database, postgres: engines.PostgresServer, fields: dict[str, Any]
) -> None:
    unused = engines.database_settings(postgres.dsn)
    async with served.served(own_database, unused) as server, server.channel() as stub:
        ratio = await page_while_orders_arrive(stub, ReadModel(own_database), count=200_000, page_size=200, **fields)
    assert ratio <= 1.5


@pytest.mark.parametrize("sees_all", [False, True])
@pytest.mark.parametrize("fields", [{}, {"user_id": "user-1"}, {"statuses": [S.ORDER_STATUS_REJECTED]}], ids=str)
async def test_a_page_reads_no_more_than_it_needs(
    own_database: Database,
    postgres: engines.PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    sees_all: bool,
) -> None:
    """Counts blocks instead of time: a scan or a sort of all that match is ten times as many."""
    called_as(monkeypatch, sees_all=sees_all)
    await engines.fetch(
        own_database, "alter table order_views set (autovacuum_enabled = false)"
    )  # it reads blocks, too
    await engines.fetch(
        own_database,
        "insert into order_views select gen_random_uuid(), 'local', 'user-1', 4 + n % 2, 3,"
        " timestamptz '2026-01-01' + n * interval '1 second', '\\x' from generate_series(1, 20000) n",
    )
    async with served.served(own_database, engines.database_settings(postgres.dsn)) as server, server.channel() as stub:
        for analyzed in (False, True):
            if analyzed:
                await engines.fetch(own_database, "analyze order_views")
            for depth in (100, 10_000, 19_900):
                before = at(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) + (20_000 - depth) * SECOND)
                request = ListOrdersRequest(created_before=before, page_size=50, **fields)
                read = await _blocks(own_database)
                page = await stub.ListOrders(request)
                assert len(page.orders) == (0 if "statuses" in fields else 50)
                assert await _blocks(own_database) - read < 300, (analyzed, depth)


async def _blocks(database: Database) -> int:
    async with database.connection() as connection:
        await connection.execute("select pg_stat_force_next_flush()")
        (row,) = await connection.fetch(
            "select heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit as blocks"
            " from pg_statio_user_tables where relname = 'order_views'"
        )
    return int(row["blocks"])


# -- ListOrderEvents ---------------------------------------------------------------------------------------------------


async def history(stub: Any, order_id: str, *, page_size: int = 0) -> list[OrderHistoryEntry]:
    """Returns all pages."""
    entries: list[OrderHistoryEntry] = []
    request = ListOrderEventsRequest(order_id=order_id, page_size=page_size)
    while True:
        page = await stub.ListOrderEvents(request)
        entries += page.entries
        if not page.next_page_token:
            return entries
        assert page.entries, "a page leads on and has nothing"
        request.page_token = page.next_page_token


def lived() -> tuple[Order, list[OrderEvent], list[DeadLetter]]:
    """Returns an order with everything that a history may have, in the order of its history."""
    order = an_order(email="carla.customer@example.com", phone="+491701234567")
    created, processing, paid, *_ = order_life(order)
    processing.metadata.causation_id = created.event_id
    paid.order_paid.CopyFrom(
        OrderPaidDetails(gateway_reference="ch_1", amount=Money(currency_code="EUR", amount_minor=3998))
    )
    sent = order_event(E.ORDER_EVENT_TYPE_NOTIFICATION_SENT, paid.order, revision=0, now=NOW + 7 * SECOND)
    sent.notification_sent.CopyFrom(
        NotificationSentDetails(
            channel=NotificationChannel.NOTIFICATION_CHANNEL_EMAIL,
            notified_type=E.ORDER_EVENT_TYPE_ORDER_PAID,
            provider_message_id="<m@x>",
            template="en/email/order_paid",
        )
    )
    failed = order_event(E.ORDER_EVENT_TYPE_NOTIFICATION_FAILED, paid.order, revision=0, now=NOW + 8 * SECOND)
    failed.notification_failed.CopyFrom(
        NotificationFailedDetails(
            channel=NotificationChannel.NOTIFICATION_CHANNEL_SMS,
            notified_type=E.ORDER_EVENT_TYPE_ORDER_PAID,
            reason="SMS_422",
            provider_message_id="SM-1",
            template="en/sms/order_paid",
        )
    )
    letter = DeadLetter(
        key=order.order_id.encode(),
        value=paid.SerializeToString(),
        group="notification-sms",
        error_class="CHANNEL_BROKEN",
        error_message="the channel broke",
        attempts=9,
        replay=1,
        first_failure_time=at(NOW + 9 * SECOND),
    )
    letter.origin.topic = "payments"
    return order, [created, processing, paid, sent, failed], [letter]


@pytest.mark.parametrize("page_size", [0, 1, 2, 6])
async def test_a_history_has_everything_and_nobody(
    stub: Any, model: ReadModel, database: Database, page_size: int
) -> None:
    order, events, letters = lived()
    created, processing, paid, sent, failed = events
    await model.add(*random.Random(page_size).sample(events, len(events)), dead_letters=letters)
    entries = await history(stub, order.order_id, page_size=page_size)
    (row,) = await engines.fetch(
        database, "select partition, record_offset from dead_letters where order_id = $1", order.order_id
    )
    plain = {"source": "test", "attempt": 1, "correlation_id": "correlation"}
    assert entries == [
        OrderHistoryEntry(
            entry_id=created.event_id,
            type="ORDER_CREATED",
            revision=1,
            occur_time=at(NOW),
            source="server",
            attempt=1,
            correlation_id=f"correlation-{order.order_id}",
            status=S.ORDER_STATUS_CREATED,
            payment_status=PaymentStatus.PAYMENT_STATUS_NONE,
        ),
        OrderHistoryEntry(
            entry_id=processing.event_id,
            type="ORDER_PROCESSING",
            revision=2,
            occur_time=at(NOW + 2 * SECOND),
            cause_id=created.event_id,
            status=S.ORDER_STATUS_PROCESSING,
            payment_status=PaymentStatus.PAYMENT_STATUS_PENDING,
            **plain,
        ),
        OrderHistoryEntry(
            entry_id=paid.event_id,
            type="ORDER_PAID",
            revision=3,
            occur_time=at(NOW + 3 * SECOND),
            status=S.ORDER_STATUS_PAID,
            payment_status=PaymentStatus.PAYMENT_STATUS_NONE,
            payment=PaymentEntry(gateway_reference="ch_1", amount=Money(currency_code="EUR", amount_minor=3998)),
            **plain,
        ),
        OrderHistoryEntry(
            entry_id=sent.event_id,
            type="NOTIFICATION_SENT",
            occur_time=at(NOW + 7 * SECOND),
            notification=NotificationEntry(
                channel=NotificationChannel.NOTIFICATION_CHANNEL_EMAIL,
                notified_type="ORDER_PAID",
                provider_message_id="<m@x>",
                template="en/email/order_paid",
            ),
            **plain,
        ),
        OrderHistoryEntry(
            entry_id=failed.event_id,
            type="NOTIFICATION_FAILED",
            occur_time=at(NOW + 8 * SECOND),
            reason="SMS_422",
            notification=NotificationEntry(
                channel=NotificationChannel.NOTIFICATION_CHANNEL_SMS,
                notified_type="ORDER_PAID",
                provider_message_id="SM-1",
                template="en/sms/order_paid",
            ),
            **plain,
        ),
        OrderHistoryEntry(
            entry_id=f"dlq/{row['partition']}-{row['record_offset']}",
            type="DEAD_LETTER",
            occur_time=at(NOW + 9 * SECOND),
            source="notification-sms",
            attempt=9,
            cause_id=paid.event_id,
            correlation_id="correlation",
            reason="CHANNEL_BROKEN",
            dead_letter=DeadLetterEntry(message="the channel broke", replay=1),
        ),
    ]
    shown = b"".join(entry.SerializeToString() for entry in entries)
    for personal in (b"carla", b"+4917", b"user-1", b"pm_card"):
        assert personal not in shown


async def test_a_history_of_one_moment_has_a_total_order(stub: Any, model: ReadModel) -> None:
    order = an_order()
    created = order_created(order, caller=served.LOCAL)
    told = [order_event(E.ORDER_EVENT_TYPE_NOTIFICATION_SENT, order, revision=0) for _ in range(30)]
    processing = order_event(order=order, revision=2)
    processing.metadata.caller = served.LOCAL
    letters = [
        DeadLetter(key=order.order_id.encode(), group=f"g{number}", first_failure_time=at(NOW)) for number in range(30)
    ]
    await model.add(created, processing, *told, dead_letters=letters)
    entries = await history(stub, order.order_id, page_size=7)
    assert len({entry.entry_id for entry in entries}) == len(entries) == 62
    assert entries == sorted(entries, key=lambda entry: (entry.revision, entry.entry_id))


async def test_a_reason_is_told_once(stub: Any, model: ReadModel) -> None:
    order = an_order()
    rejected = order_event(E.ORDER_EVENT_TYPE_ORDER_REJECTED, order, revision=2)
    rejected.metadata.caller = served.LOCAL
    rejected.order_rejected.CopyFrom(OrderRejectedDetails(reason="OUT_OF_STOCK", skus=["SKU-1"]))
    await model.add(order_created(order, caller=served.LOCAL), rejected)
    assert [entry.reason for entry in await history(stub, order.order_id)] == ["", "OUT_OF_STOCK"]


FORGED: dict[str, DeadLetter] = {
    "nothing but a key": DeadLetter(),
    "a value that is no event": DeadLetter(value=b"\xff" * 300, group="\ufffd" * 200, error_class="x" * 512),
    "a time to come": DeadLetter(first_failure_time=Timestamp(seconds=253_402_300_799)),
    "a time past the calendar": DeadLetter(first_failure_time=Timestamp(seconds=2**60, nanos=-1)),
    "a time before the calendar": DeadLetter(first_failure_time=Timestamp(seconds=-(2**60))),
    "numbers": DeadLetter(attempts=-(2**31), replay=2**31 - 1),
}


@pytest.mark.parametrize("name", FORGED)
async def test_a_forged_dead_letter_shows_and_breaks_nothing(stub: Any, model: ReadModel, name: str) -> None:
    created = order_life()[0]
    letter = DeadLetter()
    letter.CopyFrom(FORGED[name])
    letter.key = created.order.order_id.encode()
    now = datetime.datetime.now(datetime.UTC)
    await model.add(created, dead_letters=[letter])
    entries = await history(stub, created.order.order_id, page_size=1)
    (shown,) = [entry for entry in entries if entry.type == "DEAD_LETTER"]
    recorded = shown.occur_time.ToDatetime(datetime.UTC)
    assert abs(recorded - now) < datetime.timedelta(minutes=1), "no time that can be: when it was recorded"
    assert (shown.source, shown.attempt, shown.reason) == (letter.group, letter.attempts, letter.error_class)


async def test_a_history_that_is_not_valid(stub: Any, model: ReadModel, monkeypatch: pytest.MonkeyPatch) -> None:
    called_as(monkeypatch, sees_all=True)
    one, other = order_life(), order_life()
    await model.add(*one, *other)

    async def refusal_of(metadata: Any = (), **fields: Any) -> Any:
        return await refused(stub.ListOrderEvents(ListOrderEventsRequest(**fields), metadata=metadata))

    page = await stub.ListOrderEvents(ListOrderEventsRequest(order_id=one[0].order.order_id, page_size=2))
    good: dict[str, Any] = {
        "order_id": one[0].order.order_id,
        "page_size": 2,
        "page_token": page.next_page_token,
    }
    assert len((await stub.ListOrderEvents(ListOrderEventsRequest(**good))).entries) == 2
    bad_token = (*INVALID, ["page_token"])
    assert await refusal_of(**(good | {"order_id": other[0].order.order_id})) == bad_token
    assert await refusal_of(**(good | {"page_size": 3})) == bad_token
    assert await refusal_of(**(good | {"page_token": "AAAA"})) == bad_token
    assert await refusal_of(metadata=(("caller", "them"),), **good) == bad_token
    assert await refusal_of(order_id="x") == (*INVALID, ["order_id"])
    assert await refusal_of(order_id=an_id(), page_size=-1) == (*INVALID, ["page_size"])


# -- PostgreSQL away ---------------------------------------------------------------------------------------------------


async def test_with_postgresql_away_reads_say_when_to_come_back() -> None:
    (port,) = engines.free_ports(1)
    away = engines.database_settings(f"postgresql://u:p@127.0.0.1:{port}/d")
    order_id = an_id()
    async with engines.opened(away) as database, served.served(database, away) as server, server.channel() as channel:
        stub: Any = channel
        calls: list[tuple[Any, Message]] = [
            (stub.GetOrder, GetOrderRequest(order_id=order_id)),
            (stub.BatchGetOrders, BatchGetOrdersRequest(requests=[GetOrderRequest(order_id=order_id)])),
            (stub.ListOrders, ListOrdersRequest()),
            (stub.FindOrders, FindOrdersRequest(id=order_id)),
            (stub.ListOrderEvents, ListOrderEventsRequest(order_id=order_id)),
        ]
        for method, request in calls:
            assert await refused(method(request)) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", ["1.0"])
