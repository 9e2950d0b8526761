"""FindOrders: every kind of identifier leads to its order, none to another tenant's, and no look-up scans a table."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from domain.projection import ProjectionBatch
from domain.records import Coordinates
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_pb2 import Money
from orderflow.orders.v1.order_service_pb2 import FindOrdersRequest, IdentifierKind
from settings import DatabaseSettings
from storage import order_search
from storage.database import Database
from storage.order_decisions import OrderDecisions
from storage.projection import Projection
from tests import served
from tests.builders import CALLER, NOW, a_delivery, an_id, an_order, order_created, order_event
from tests.lives import ORDER_PROCESSOR, Life
from tests.served import ReadModel, called_as, refusal
from workers.gateways.book import ChargeExecuted, RefundExecuted

K = IdentifierKind
THEIRS = (("caller", CALLER),)


@pytest.fixture
async def stub(
    database: Database, database_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Any]:
    called_as(monkeypatch)
    async with served.served(database, database_settings) as server, server.channel() as stub:
        yield stub


async def found(stub: Any, identifier: str, *, metadata: Any = THEIRS) -> list[tuple[str, str]]:
    answer = await stub.FindOrders(FindOrdersRequest(id=identifier), metadata=metadata)
    return [(each.order_id, K.Name(each.kind).removeprefix("IDENTIFIER_KIND_")) for each in answer.orders]


async def a_life(database: Database, *, trace_id: str = "", **fields: Any) -> Life:
    """Returns the life of an order that was charged, declined or not, and refunded in part; projected."""
    life = await Life(database).begin(**fields)
    await life.drain()
    if not fields:
        life.command("refund", amount=Money(currency_code="EUR", amount_minor=400))
        await life.drain()
    await ReadModel(database).add(*life.emitted, trace_id=trace_id)
    return life


async def test_an_order_is_found_by_its_id_however_it_is_written(database: Database, stub: Any) -> None:
    life = await a_life(database)
    for text in (life.order_id, life.order_id.upper(), f"  {life.order_id} "):
        assert await found(stub, text) == [(life.order_id, "ORDER")]


async def test_by_each_of_its_events(database: Database, stub: Any) -> None:
    life = await a_life(database)
    assert len(life.emitted) == 4
    for event in life.emitted:
        assert await found(stub, event.event_id) == [(life.order_id, "EVENT")]


async def test_by_a_dead_letter(database: Database, stub: Any) -> None:
    life = await a_life(database)
    event = life.emitted[1]
    letter = DeadLetter(key=life.order_id.encode(), value=event.SerializeToString(), group="payment-processor")
    letter.origin.topic = "orders"
    offset = int(an_id()[:7], 16)
    batch = ProjectionBatch("dlq", 7, 0, 1, dead_letters=[(Coordinates("dlq", 7, offset), letter)])
    async with database.connection() as connection:
        await connection.execute("delete from projection_positions where topic = 'dlq' and partition = 7")
    await Projection(database).begin("dlq", 7, 0)
    await Projection(database).apply(batch)
    assert await found(stub, f"dlq/7-{offset}") == [(life.order_id, "EVENT")]
    assert await found(stub, f"dlq/7-{offset + 1}") == []


async def test_by_its_charge_and_its_refund_at_the_gateway_and_by_their_keys(database: Database, stub: Any) -> None:
    life = await a_life(database)
    [charge] = [each for each in life.gateway.executed if isinstance(each, ChargeExecuted)]
    [refund] = [each for each in life.gateway.executed if isinstance(each, RefundExecuted)]
    for text in (charge.reference, refund.reference, charge.key, refund.key):
        assert await found(stub, text) == [(life.order_id, "GATEWAY")]


async def test_by_a_charge_that_was_declined(database: Database, stub: Any) -> None:
    life = await a_life(database, payment_method="pm_card_chargeDeclined")
    [charge] = life.gateway.executed
    assert isinstance(charge, ChargeExecuted)
    assert await found(stub, charge.reference) == [(life.order_id, "GATEWAY")]


async def test_by_a_trace_which_may_have_several(database: Database, stub: Any) -> None:
    trace_id = uuid.uuid4().hex
    assert await found(stub, trace_id) == []
    lives = [await a_life(database, trace_id=trace_id) for _ in range(2)]
    expected = {(life.order_id, "TRACE") for life in lives}
    assert set(await found(stub, trace_id)) == set(await found(stub, trace_id.upper())) == expected
    assert await found(stub, str(uuid.UUID(trace_id))) == [], "with hyphens it is another kind of id"


async def placed(database: Database, request_id: str, caller: str) -> OrderEvent:
    created = order_created(an_order(), request_id=request_id, caller=caller)
    await OrderDecisions(database, now=lambda: NOW).accept(a_delivery(created, group=ORDER_PROCESSOR))
    await ReadModel(database).add(created)
    return created


async def test_by_the_request_that_placed_it(database: Database, stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    request_id = f"request {an_id()}"
    mine = (await placed(database, request_id, CALLER)).order.order_id
    anothers = (await placed(database, request_id, "another")).order.order_id
    assert await found(stub, request_id) == [(mine, "REQUEST")]
    assert await found(stub, request_id, metadata=(("caller", "another"),)) == [(anothers, "REQUEST")]
    called_as(monkeypatch, sees_all=True)
    assert set(await found(stub, request_id)) == {(mine, "REQUEST"), (anothers, "REQUEST")}


async def test_what_is_anothers_is_not_there_and_operators_find_it(
    database: Database, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace_id = uuid.uuid4().hex
    life = await a_life(database, trace_id=trace_id)
    charge = life.gateway.executed[0]
    texts = [life.order_id, life.emitted[2].event_id, trace_id, charge.key]
    for text in texts:
        assert await found(stub, text, metadata=(("caller", "another"),)) == []
    called_as(monkeypatch, sees_all=True)
    for text in texts:
        assert [order_id for order_id, _ in await found(stub, text, metadata=())] == [life.order_id]


async def test_what_nothing_is_known_of_finds_nothing(stub: Any) -> None:
    for text in (an_id(), uuid.uuid4().hex, "no such request", "dlq/0-999999999", "ch_nobody", "%", "'"):
        assert await found(stub, text) == []


@pytest.mark.parametrize("text", ["", "   ", "x" * 256, "a\nb", "a\x00b"])
async def test_what_is_no_identifier_is_refused(stub: Any, text: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await found(stub, text)
    assert refusal(refused.value) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS", ["id"])


async def test_a_trace_of_many_orders_brings_fifty(database: Database, stub: Any) -> None:
    trace_id = uuid.uuid4().hex
    events = [order_event(order=an_order()) for _ in range(60)]
    await ReadModel(database).add(*events, trace_id=trace_id)
    assert len(set(await found(stub, trace_id))) == 50


@pytest.mark.parametrize("text", ["2b1f8a52-9f51-4d0e-8f0e-1f6d4a0b9c11", "0" * 32, "ch_1", "dlq/0-1"])
@pytest.mark.parametrize("owner", [None, CALLER])
async def test_no_look_up_scans_a_table(own_database: Database, text: str, owner: str | None) -> None:
    """Of tables with enough rows that a scan would cost."""
    async with own_database.connection() as connection, connection.transaction():
        await connection.execute(
            "insert into order_events (order_id, event_id, type, revision, occur_time, topic, partition, record_offset,"
            " event, trace_id) select gen_random_uuid(), gen_random_uuid(), 1, 1, now(), 'orders', 0, n, '', "
            " gen_random_uuid() from generate_series(1, 20000) as n"
        )
        await connection.execute(
            "insert into order_requests select 'caller ' || n % 7, 'r-' || n, gen_random_uuid(), ''"
            " from generate_series(1, 20000) as n"
        )
        await connection.execute(
            "insert into payments (order_id, idempotency_key, state, amount_minor, currency_code, update_time)"
            " select gen_random_uuid(), 'k-' || n, 'captured', 1, 'EUR', now() from generate_series(1, 20000) as n"
        )
        await connection.execute(
            "insert into payment_entries (order_id, kind, amount_minor, currency_code, gateway_reference, entry_time)"
            " select order_id, 'capture', 1, 'EUR', 'g-' || idempotency_key, now() from payments"
        )
        await connection.execute(
            "insert into refunds (event_id, order_id, idempotency_key, state, amount_minor, currency_code, update_time)"
            " select gen_random_uuid(), order_id, 'r-' || idempotency_key, 'done', 1, 'EUR', now() from payments"
        )
        await connection.execute(
            "insert into order_views (order_id, caller, user_id, status, revision, create_time, snapshot)"
            " select order_id, 'shop', 'u', 1, 1, now(), '' from order_events"
        )
        await connection.execute(
            "insert into order_tombstones (order_id, caller, status, revision)"
            " select gen_random_uuid(), 'shop', 1, 1 from generate_series(1, 20000)"
        )
        await connection.execute(
            "insert into dead_letters (partition, record_offset, group_name, error_class, dead_letter)"
            " select 0, n, 'g', 'e', '' from generate_series(1, 20000) as n"
        )
        await connection.execute("analyze")
        rows = await connection.fetch(
            f"explain (analyze, timing off) {order_search._FIND}", *order_search.asked(text), owner, 50
        )
        plan = "\n".join(row[0] for row in rows)
        executed = [line for line in plan.splitlines() if "Seq Scan" in line and "never executed" not in line]
        assert executed == [], plan
