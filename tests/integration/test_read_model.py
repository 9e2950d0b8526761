"""The projection's rows and what the API reads from them (semantics 32)."""

import asyncio
import datetime
from collections.abc import Sequence

import pytest

from domain.projection import PositionMoved, ProjectionBatch
from domain.records import Coordinates
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import Order, OrderStatus, PaymentStatus
from storage.database import Database
from storage.order_views import OrderView, OrderViews
from storage.projection import Projection
from tests import engines
from tests.builders import CALLER, NOW, a_group, an_id, an_order, order_created, order_event

E = OrderEventType


@pytest.fixture
def projection(database: Database) -> Projection:
    return Projection(database)


@pytest.fixture
def views(database: Database) -> OrderViews:
    return OrderViews(database)


@pytest.fixture
def topic() -> str:
    """A topic of the test's own: the projection does not mind what it is called."""
    return a_group()


def batch(topic: str, begins: int, *events: OrderEvent) -> ProjectionBatch:
    placed = [(Coordinates(topic, 0, begins + n), event) for n, event in enumerate(events)]
    return ProjectionBatch(topic, 0, begins, begins + len(events), events=placed)


def history_of(order: Order) -> list[OrderEvent]:
    """Returns the first three lifecycle events of an order."""
    created = order_created(order)
    created.metadata.caller = CALLER
    second = datetime.timedelta(seconds=1)
    processing = order_event(E.ORDER_EVENT_TYPE_ORDER_PROCESSING, order, revision=2, now=NOW + second)
    paid = order_event(E.ORDER_EVENT_TYPE_ORDER_PAID, order, revision=3, now=NOW + 2 * second)
    paid.order.status = OrderStatus.ORDER_STATUS_PAID
    return [created, processing, paid]


async def test_a_position_moves_only_from_where_it_is(projection: Projection, topic: str) -> None:
    assert await projection.position(topic, 0) is None
    with pytest.raises(PositionMoved):
        await projection.apply(batch(topic, 0))
    await projection.begin(topic, 0, 5)
    await projection.begin(topic, 0, 99)
    assert await projection.position(topic, 0) == 5
    await projection.apply(ProjectionBatch(topic, 0, 5, 8))
    assert await projection.position(topic, 0) == 8
    for begins in (5, 7, 9):
        with pytest.raises(PositionMoved):
            await projection.apply(ProjectionBatch(topic, 0, begins, 10))
    assert await projection.position(topic, 0) == 8
    assert await projection.position(topic, 1) is None


async def test_a_zombies_batch_writes_nothing(projection: Projection, views: OrderViews, topic: str) -> None:
    await projection.begin(topic, 0, 5)
    event = order_created()
    with pytest.raises(PositionMoved):
        await projection.apply(batch(topic, 4, event))
    assert await views.get(event.order.order_id) is None
    assert await views.history(event.order.order_id) == []


async def test_of_two_writers_at_once_one_wins(projection: Projection, topic: str) -> None:
    await projection.begin(topic, 0, 0)
    answers = await asyncio.gather(
        *(projection.apply(ProjectionBatch(topic, 0, 0, n)) for n in range(1, 6)), return_exceptions=True
    )
    assert sum(answer is None for answer in answers) == 1
    assert sum(isinstance(answer, PositionMoved) for answer in answers) == 4


async def test_batches_of_several_partitions_are_written_together(
    projection: Projection, views: OrderViews, topic: str
) -> None:
    order, others = an_order(), a_group()
    created, processing, paid = history_of(order)
    await projection.begin(topic, 0, 5)
    await projection.begin(others, 0, 7)
    await projection.apply(batch(topic, 5, created, processing), batch(others, 7, paid))
    assert await views.history(order.order_id) == [created, processing, paid]
    assert await views.get(order.order_id) == OrderView(paid.order, CALLER)
    assert (await projection.position(topic, 0), await projection.position(others, 0)) == (7, 8)


async def test_of_batches_of_which_one_is_a_zombies_none_is_written(
    projection: Projection, views: OrderViews, topic: str
) -> None:
    event, others = order_created(), a_group()
    await projection.begin(topic, 0, 5)
    await projection.begin(others, 0, 7)
    with pytest.raises(PositionMoved):
        await projection.apply(batch(topic, 5, event), ProjectionBatch(others, 0, 6, 8))
    assert await views.history(event.order.order_id) == []
    assert (await projection.position(topic, 0), await projection.position(others, 0)) == (5, 7)


async def test_two_writers_of_the_same_partitions_do_not_block_each_other_for_good(
    database: Database, topic: str
) -> None:
    """Each has the partitions in an order of its own, and somebody else holds one in between."""
    projection = Projection(database)
    batches = [ProjectionBatch(topic, partition, 0, 1) for partition in range(3)]
    for each in batches:
        await projection.begin(each.topic, each.partition, each.begins)
    async with database.transaction() as connection:
        await connection.execute(
            "select from projection_positions where topic = $1 and partition = 1 for update", topic
        )
        one = asyncio.create_task(projection.apply(*batches))
        await engines.until_waiting(database, 1)
        other = asyncio.create_task(projection.apply(*reversed(batches)))
        await engines.until_waiting(database, 2)
    # A deadlock would be a DependencyDown.
    assert await one is None
    with pytest.raises(PositionMoved):
        await other


async def test_events_become_a_view_and_a_history(projection: Projection, views: OrderViews, topic: str) -> None:
    order = an_order()
    events = history_of(order)
    await projection.begin(topic, 0, 0)
    assert await views.revision(order.order_id) == 0
    await projection.apply(batch(topic, 0, *events))
    assert await views.get(order.order_id) == OrderView(events[2].order, CALLER)
    assert await views.revision(order.order_id) == 3
    assert await views.history(order.order_id) == events


@pytest.mark.parametrize("arrival", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
async def test_the_highest_revision_wins_however_they_arrive(
    projection: Projection, views: OrderViews, topic: str, arrival: Sequence[int]
) -> None:
    order = an_order()
    events = history_of(order)
    await projection.begin(topic, 0, 0)
    for position, which in enumerate(arrival):
        await projection.apply(batch(topic, position, events[which]))
    view = await views.get(order.order_id)
    assert view is not None
    assert view.order == events[2].order
    assert await views.history(order.order_id) == events


async def test_duplicates_are_dropped(projection: Projection, views: OrderViews, topic: str) -> None:
    created, processing, _ = history_of(an_order())
    copy = OrderEvent()
    copy.CopyFrom(created)
    copy.occur_time.seconds += 60
    await projection.begin(topic, 0, 0)
    await projection.apply(batch(topic, 0, created, created, processing))
    await projection.apply(batch(topic, 3, copy, processing))
    assert await views.history(created.order.order_id) == [created, processing], "the first on the topic counts"
    assert await views.revision(created.order.order_id) == 2


async def test_notifications_are_history_and_change_no_view(
    projection: Projection, views: OrderViews, topic: str
) -> None:
    order = an_order()
    told = order_event(E.ORDER_EVENT_TYPE_NOTIFICATION_SENT, order, revision=0)
    await projection.begin(topic, 0, 0)
    await projection.apply(batch(topic, 0, told))
    assert await views.get(order.order_id) is None
    assert await views.history(order.order_id) == [told]


async def test_a_batch_of_many_orders(projection: Projection, views: OrderViews, topic: str) -> None:
    events = [event for _ in range(300) for event in history_of(an_order())]
    await projection.begin(topic, 0, 0)
    await projection.apply(batch(topic, 0, *events))
    assert [await views.revision(event.order.order_id) for event in events[::150]] == [3] * 6


async def test_dead_letters_and_failures_are_recorded_once(
    projection: Projection, database: Database, topic: str
) -> None:
    await projection.begin(topic, 0, 0)
    at = Coordinates(topic, 0, int(an_id()[:7], 16))
    letter = DeadLetter(group="test", error_class="UNDECODABLE", value=b"\x00\xff")
    for begins in (0, 1):
        found = ProjectionBatch(topic, 0, begins, begins + 1, dead_letters=[(at, letter)], failures=[(at, letter)])
        await projection.apply(found)
    for table in ("dead_letters", "projection_failures"):
        (row,) = await engines.fetch(database, f"select * from {table} where record_offset = $1", at.offset)
        assert (row["error_class"], DeadLetter.FromString(row["dead_letter"])) == ("UNDECODABLE", letter)  # type: ignore[arg-type]


@pytest.mark.parametrize("letter_first", [True, False])
async def test_an_unknown_payment_shows_whichever_is_projected_first(
    projection: Projection, views: OrderViews, topic: str, letter_first: bool
) -> None:
    order = an_order()
    created, processing, paid = history_of(order)
    processing.order.status = OrderStatus.ORDER_STATUS_PROCESSING
    letter = DeadLetter(group="payment-processor", error_class="PAYMENT_UNKNOWN", key=order.order_id.encode())
    at = Coordinates("dlq", 0, int(an_id()[:7], 16))
    dead = ProjectionBatch(topic, 0, 0, 1, dead_letters=[(at, letter)])
    for name in (topic, "second " + topic):
        await projection.begin(name, 0, 0)
    if letter_first:
        await projection.apply(dead)
    await projection.apply(batch("second " + topic, 0, created, processing))
    if not letter_first:
        await projection.apply(dead)
    view = await views.get(order.order_id)
    assert view is not None
    assert view.order.payment_status == PaymentStatus.PAYMENT_STATUS_UNKNOWN
    await projection.apply(batch("second " + topic, 2, paid))
    view = await views.get(order.order_id)
    assert view is not None
    assert view.order == paid.order, "settled: what the event says holds"


async def test_an_order_that_nobody_placed(views: OrderViews) -> None:
    assert await views.get(an_id()) is None
    assert await views.revision(an_id()) == 0
    assert await views.history(an_id()) == []
