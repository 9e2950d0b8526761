"""A tenant on another's order: the same as on one that is not there."""

from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from messaging import topics
from orderflow.orders.v1.order_pb2 import Order
from orderflow.orders.v1.order_service_pb2 import FindOrdersRequest, GetOrderRequest, ListOrdersRequest
from server import scopes
from server.tokens import ConsistencyToken
from settings import DatabaseSettings, KafkaSettings, ServerSettings, TokenSettings
from storage import order_rows
from storage.database import Database
from storage.order_decisions import OrderDecisions
from storage.stock import Stock
from tests import engines
from tests.builders import CALLER, NOW, a_delivery, a_request, a_sku, an_id, an_item, an_order, order_created
from tests.security import ingress
from tests.security.issuer import Issuer, bearer
from tests.security.methods import THERE, Method, call, named

ABOUT_AN_ORDER = [
    each
    for each in THERE
    if scopes.REQUIRED[each.path] == scopes.READ and each.name not in ("ListOrders", "FindOrders")
]


def about(method: Method, order_id: str, **fields: Any) -> Message:
    """Returns the method's request about an order."""
    request: Any = method.request()
    if method.name == "BatchGetOrders":
        request.requests.add(order_id=order_id, **fields)
    else:
        request.order_id = order_id
        for name, value in fields.items():
            setattr(request, name, value)
    return request


@pytest.mark.parametrize("method", ABOUT_AN_ORDER, ids=lambda method: method.name)
async def test_anothers_order_is_not_there(
    channel: grpc.aio.Channel, issuer: Issuer, orders_of: dict[str, Order], method: Method
) -> None:
    theirs = orders_of["tenant-b"].order_id
    credential = bearer(issuer.token("tenant-a"))
    answers = [await call(channel, method, about(method, each), credential) for each in (theirs, an_id())]
    assert answers[0] == answers[1]
    assert answers[0].code is grpc.StatusCode.NOT_FOUND
    assert (await call(channel, method, about(method, theirs), bearer(issuer.token("tenant-b")))).code is (
        grpc.StatusCode.OK
    )


@pytest.mark.parametrize(
    "metadata",
    [
        (("x-caller", "tenant-b"), ("caller", "tenant-b"), ("user", "tenant-b"), ("sub", "tenant-b")),
        (("x-forwarded-user", "tenant-b"), ("x-spiffe-id", "tenant-b"), ("x-forwarded-client-cert", "By=tenant-b")),
    ],
)
async def test_who_calls_is_never_what_the_metadata_says(
    channel: grpc.aio.Channel, issuer: Issuer, orders_of: dict[str, Order], metadata: tuple[tuple[str, str], ...]
) -> None:
    request = GetOrderRequest(order_id=orders_of["tenant-b"].order_id)
    answer = await call(channel, named("GetOrder"), request, bearer(issuer.token("tenant-a")) + metadata)
    assert answer.code is grpc.StatusCode.NOT_FOUND


async def test_anothers_consistency_token_tells_nothing(
    channel: grpc.aio.Channel,
    database_settings: DatabaseSettings,
    tokens: TokenSettings,
    issuer: Issuer,
    orders_of: dict[str, Order],
) -> None:
    """With a token the server waits for the order; for another's as long as for one that is not there."""
    credential = bearer(issuer.token("tenant-a"))
    theirs, nobodys = orders_of["tenant-b"].order_id, an_id()
    answers = []
    soon = ServerSettings(listen="127.0.0.1:0", default_deadline=0.4)
    async with ingress.serving(database_settings, tokens=tokens, server=soon) as at, ingress.plain(at) as impatient:
        for order_id in (theirs, nobodys):
            token = ConsistencyToken(order_id, 1).encode()
            request = GetOrderRequest(order_id=order_id, consistency_token=token)
            answers.append(await call(impatient, named("GetOrder"), request, credential, deadline=None))
    assert answers[0] == answers[1]
    assert answers[0].code is grpc.StatusCode.UNAVAILABLE
    # On the caller's own order it is refused, as any token of another order is.
    request = GetOrderRequest(
        order_id=orders_of["tenant-a"].order_id, consistency_token=ConsistencyToken(theirs, 1).encode()
    )
    assert (await call(channel, named("GetOrder"), request, credential)).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_list_never_has_anothers_orders(
    channel: grpc.aio.Channel, issuer: Issuer, orders_of: dict[str, Order]
) -> None:
    method = named("ListOrders")
    if method not in THERE:
        pytest.skip("ListOrders is not there yet")
    theirs = orders_of["tenant-b"]
    own = await call(channel, method, ListOrdersRequest(), bearer(issuer.token("tenant-a")))
    assert {order.order_id for order in own.response.orders} == {orders_of["tenant-a"].order_id}
    named_theirs = ListOrdersRequest(user_id=theirs.user_id)
    assert not (await call(channel, method, named_theirs, bearer(issuer.token("tenant-a")))).response.orders
    all_ = await call(channel, method, named_theirs, bearer(issuer.token("x", "orders:operate")))
    assert [order.order_id for order in all_.response.orders] == [theirs.order_id]


async def test_nothing_finds_anothers_orders(
    channel: grpc.aio.Channel, database: Database, issuer: Issuer, orders_of: dict[str, Order]
) -> None:
    theirs = orders_of["tenant-b"].order_id
    rows = await engines.fetch(database, "select event_id from order_events where order_id = $1", theirs)
    for text in [theirs, *(str(row["event_id"]) for row in rows)]:
        request = FindOrdersRequest(id=text)
        answers = [
            (await call(channel, named("FindOrders"), request, bearer(issuer.token(*who)))).response.orders
            for who in (("tenant-a",), ("tenant-b",), ("x", "orders:operate"))
        ]
        assert [[each.order_id for each in found] for found in answers] == [[], [theirs], [theirs]]


async def test_a_page_token_of_another_is_refused_or_shows_own_orders_only(
    channel: grpc.aio.Channel, issuer: Issuer, orders_of: dict[str, Order]
) -> None:
    method = named("ListOrders")
    if method not in THERE:
        pytest.skip("ListOrders is not there yet")
    operator, tenant = bearer(issuer.token("x", "orders:operate")), bearer(issuer.token("tenant-a"))
    page = await call(channel, method, ListOrdersRequest(page_size=1), operator)
    assert page.response.next_page_token
    request = ListOrdersRequest(page_size=1, page_token=page.response.next_page_token)
    answer = await call(channel, method, request, tenant)
    if answer.code is grpc.StatusCode.OK:
        assert {order.order_id for order in answer.response.orders} <= {orders_of["tenant-a"].order_id}
    else:
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("scope", ["orders:operate", "orders:admin", "orders:read orders:operate"])
async def test_operators_see_everybodys_orders(
    channel: grpc.aio.Channel, issuer: Issuer, orders_of: dict[str, Order], scope: str
) -> None:
    for order in orders_of.values():
        request = GetOrderRequest(order_id=order.order_id)
        answer = await call(channel, named("GetOrder"), request, bearer(issuer.token("operator", scope)))
        assert answer.response.order.order_id == order.order_id


async def test_an_order_belongs_to_the_token_and_not_to_the_message(
    placing: grpc.aio.Channel, kafka: KafkaSettings, issuer: Issuer
) -> None:
    forged = (("x-caller", CALLER), ("caller", CALLER))
    async with engines.tail(kafka, topics.ORDERS) as tail:
        answer = await call(
            placing,
            named("CreateOrder"),
            a_request(user_id="tenant-b", labels={"caller": "tenant-b"}),
            bearer(issuer.token("tenant-a")) + forged,
        )
        assert answer.code is grpc.StatusCode.OK, answer
        await tail.to_end()
    (event,) = [event for event in tail.events if event.order.order_id == answer.response.order.order_id]
    assert event.order_created.caller == "tenant-a"


async def test_a_request_id_is_the_callers_own(placing: grpc.aio.Channel, issuer: Issuer) -> None:
    """Another tenant's request_id neither finds its order nor is refused."""
    request = a_request(request_id=an_id())
    placed = [
        (await call(placing, named("CreateOrder"), request, bearer(issuer.token(name)))).response.order.order_id
        for name in ("tenant-a", "tenant-b", "tenant-a")
    ]
    assert placed[0] != placed[1]
    assert placed[0] == placed[2]


@pytest.mark.parametrize("name", ["CancelOrder", "ShipOrder", "CompleteOrder", "RefundOrder"])
async def test_anothers_order_cannot_be_touched(
    placing: grpc.aio.Channel, issuer: Issuer, database: Database, name: str
) -> None:
    sku = a_sku()
    await Stock(database).set_available(sku, 10)
    created = order_created(an_order(items=[an_item(sku)]), caller="tenant-b")
    theirs = created.order.order_id
    await OrderDecisions(database, now=lambda: NOW).accept(a_delivery(created, group="order-processor"))
    fields = {"carrier": "C"} if name == "ShipOrder" else {}
    scope = "orders:write orders:read"
    answers = [
        await call(placing, named(name), about(named(name), each, **fields), bearer(issuer.token("tenant-a", scope)))
        for each in (theirs, an_id())
    ]
    assert answers[0] == answers[1]
    if name == "CancelOrder":
        assert (answers[0].code, answers[0].reason) == (grpc.StatusCode.NOT_FOUND, "ORDER_NOT_FOUND")
    else:
        assert (answers[0].code, answers[0].reason) == (grpc.StatusCode.PERMISSION_DENIED, "INSUFFICIENT_SCOPE")
    async with database.connection() as connection:
        order = await order_rows.find(connection, theirs)
    assert order is not None
    assert order.revision == 2
