"""PostgreSQL away or too busy is a DependencyDown from every repository; a mistake of ours is not (semantics 23)."""

import asyncio
import urllib.parse
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from devstack import free_ports
from domain.failures import DependencyDown
from domain.projection import ProjectionBatch
from orderflow.orders.v1.order_pb2 import Money, NotificationChannel
from settings import DatabaseSettings
from storage.consumer_groups import ConsumerGroups
from storage.database import Database
from storage.known_requests import KnownRequests
from storage.notification_intents import NotificationIntents
from storage.order_decisions import OrderDecisions
from storage.order_history import OrderHistory
from storage.order_views import ListFilter, ListPosition, OrderViews
from storage.payment_decisions import ChargeIntent, PaymentDecisions
from storage.projection import Projection
from storage.stock import Stock
from tests import engines
from tests.builders import NOW, a_delivery, a_sku, an_id, an_item, order_created

Call = Callable[[Database], Awaitable[object]]


def email(database: Database) -> NotificationIntents:
    return NotificationIntents(database, NotificationChannel.NOTIFICATION_CHANNEL_EMAIL)


def payments(database: Database) -> PaymentDecisions:
    return PaymentDecisions(database, now=lambda: NOW)


async def register(database: Database) -> None:
    async with ConsumerGroups(database).registration("test"):
        raise AssertionError("not reached")


AN_INTENT = ChargeIntent(an_id(), "charge-1", Money(currency_code="EUR", amount_minor=1), "pm_card_visa", NOW, None)

A_LIST = ListFilter("c", None, [1], NOW, ListPosition(NOW, uuid.UUID(int=0)))

CALLS: dict[str, Call] = {
    "accept": lambda database: OrderDecisions(database, now=lambda: NOW).accept(a_delivery()),
    "charge intend": lambda database: payments(database).intend(a_delivery()),
    "charge not_sent": lambda database: payments(database).not_sent(AN_INTENT),
    "captured": lambda database: payments(database).captured(a_delivery(), gateway_reference="r"),
    "declined": lambda database: payments(database).declined(a_delivery(), reason="R", gateway_reference="r"),
    "unknown": lambda database: payments(database).unknown(a_delivery()),
    "message intend": lambda database: email(database).intend(a_delivery(), message_id="<1>"),
    "message not_sent": lambda database: email(database).not_sent(a_delivery()),
    "message decide": lambda database: email(database).decide(a_delivery(), None),
    "view": lambda database: OrderViews(database).get(an_id()),
    "revision": lambda database: OrderViews(database).revision(an_id()),
    "history": lambda database: OrderViews(database).history(an_id()),
    "request": lambda database: KnownRequests(database).find([("c", "r")]),
    "list": lambda database: OrderViews(database).page(A_LIST, size=1),
    "entries": lambda database: OrderHistory(database).page(an_id(), size=1, after=None),
    "runs": lambda database: OrderHistory(database).runs([(an_id(), 1)]),
    "apply": lambda database: Projection(database).apply(ProjectionBatch("t", 0, 0, 1)),
    "position": lambda database: Projection(database).position("t", 0),
    "begin": lambda database: Projection(database).begin("t", 0, 0),
    "set stock": lambda database: Stock(database).set_available("s", 1),
    "set price": lambda database: Stock(database).set_price("s", "EUR", 1),
    "adjust stock": lambda database: Stock(database).adjust("s", 1),
    "remove price": lambda database: Stock(database).remove_price("s", "EUR"),
    "levels": lambda database: Stock(database).levels("s"),
    "level page": lambda database: Stock(database).page(size=1),
    "registration": register,
}


@pytest.fixture(scope="module")
async def away() -> AsyncIterator[Database]:
    (port,) = free_ports(1)
    async with engines.opened(engines.database_settings(f"postgresql://u:p@127.0.0.1:{port}/d")) as database:
        yield database


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_away(away: Database, call: Call) -> None:
    with pytest.raises(DependencyDown) as down:
        await call(away)
    assert down.value.dependency == "postgres"


async def test_a_server_that_takes_in_nobody_is_away(database_settings: DatabaseSettings) -> None:
    """As while a password is changed, or a dump restored: no record may use up attempts meanwhile."""
    url = urllib.parse.urlsplit(database_settings.url.get_secret_value())
    wrong_password = url._replace(netloc=url.netloc.replace(f":{url.password}@", ":another@")).geturl()
    for refused in (wrong_password, url._replace(path="/no_such_database").geturl()):
        async with engines.opened(engines.database_settings(refused)) as database:
            with pytest.raises(DependencyDown):
                await OrderViews(database).get(an_id())


async def test_a_connection_that_is_lost_in_a_transaction(database: Database) -> None:
    async def lose() -> None:
        async with database.transaction() as connection:
            pid = await connection.fetchval("select pg_backend_pid()")
            await engines.fetch(database, "select pg_terminate_backend($1)", pid)
            await connection.fetchval("select 1")

    with pytest.raises(DependencyDown):
        await lose()
    assert await engines.fetch(database, "select 1 as one") == [{"one": 1}]


async def test_a_row_that_another_process_keeps_locked(database: Database, database_settings: DatabaseSettings) -> None:
    sku = a_sku()
    await Stock(database).set_available(sku, 5)
    impatient = engines.database_settings(database_settings.url.get_secret_value(), command_timeout=0.5)
    order = order_created(items=[an_item(sku)])
    async with engines.opened(impatient) as other:
        decisions = OrderDecisions(other, now=lambda: NOW)
        async with database.transaction() as connection:
            await connection.execute("select from stock where sku = $1 for update", sku)
            with pytest.raises(DependencyDown):
                await decisions.accept(a_delivery(order))
        patient = OrderDecisions(database, now=lambda: NOW)
        assert len(await patient.accept(a_delivery(order))) == 1, "nothing was left behind"


async def test_a_deadlock(database: Database) -> None:
    skus = sorted(a_sku() for _ in range(2))
    for sku in skus:
        await Stock(database).set_available(sku, 5)
    both = asyncio.Barrier(2)

    async def lock(first: str, second: str) -> None:
        async with database.transaction() as connection:
            await connection.execute("select from stock where sku = $1 for update", first)
            await both.wait()
            await connection.execute("select from stock where sku = $1 for update", second)

    results = await asyncio.gather(lock(*skus), lock(*reversed(skus)), return_exceptions=True)
    assert [type(result) for result in results if result is not None] == [DependencyDown]


async def test_a_pool_without_a_free_connection(
    database_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = engines.database_settings(database_settings.url.get_secret_value(), pool_size=1, command_timeout=5)
    async with engines.opened(small) as database, database.connection():
        # Only now: opening the connection has the same limit.
        monkeypatch.setattr(database, "_settings", small.model_copy(update={"connect_timeout": 0.3}))
        with pytest.raises(DependencyDown):
            await OrderViews(database).get(an_id())


async def test_a_long_queue_before_connections_that_are_answered_is_no_outage(
    database_settings: DatabaseSettings,
) -> None:
    small = engines.database_settings(
        database_settings.url.get_secret_value(), pool_size=1, connect_timeout=2, command_timeout=5
    )
    async with engines.opened(small) as database:

        async def statement() -> None:
            async with database.connection() as connection:
                await connection.execute("select pg_sleep(0.2)")

        await asyncio.gather(*(statement() for _ in range(15)))


@pytest.mark.parametrize(
    ("sql", "argument", "error"),
    [
        ("select $1::int", 2**40, asyncpg.DataError),
        ("select $1::text", "nul\x00", asyncpg.DataError),
        ("select $1::uuid", "no uuid", asyncpg.DataError),
        ("select nonsense where $1::int > 0", 1, asyncpg.UndefinedColumnError),
        ("insert into stock (sku, available) values ('x', $1)", -1, asyncpg.CheckViolationError),
    ],
)
async def test_a_mistake_is_not_taken_for_an_outage(
    database: Database, sql: str, argument: object, error: type[Exception]
) -> None:
    # Else one bad record would hold its partition up for ever.
    with pytest.raises(error):
        await engines.fetch(database, sql, argument)
