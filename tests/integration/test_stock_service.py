"""The StockService over a real server."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from orderflow.operations.v1 import stock_service_pb2_grpc
from orderflow.operations.v1.stock_service_pb2 import (
    AdjustStockRequest,
    GetStockRequest,
    ListStockRequest,
    RemovePriceRequest,
    SetPriceRequest,
    SetStockRequest,
    StockLevel,
)
from orderflow.orders.v1.order_pb2 import Money
from settings import DatabaseSettings
from storage import stock
from storage.database import Database
from tests.builders import a_sku, an_id, an_item
from tests.security import ingress
from tests.served import called_as, refusal

INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS")
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
async def stub(database_settings: DatabaseSettings) -> AsyncIterator[Any]:
    async with ingress.serving(database_settings) as address, ingress.plain(address) as channel:
        yield stock_service_pb2_grpc.StockServiceStub(channel)


async def refused(call: Any) -> tuple[grpc.StatusCode, str, list[str]]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return refusal(error.value)


async def test_units_and_prices_are_set_changed_and_read(stub: Any, database: Database) -> None:
    sku = a_sku()
    set_to = await stub.SetStock(SetStockRequest(sku=sku, available=10, reason="counted"))
    assert set_to.level == StockLevel(sku=sku, available=10)
    async with database.transaction() as connection:
        await stock.hold(connection, [an_item(sku, 4)])
        await stock.settle(connection, sold=[an_item(sku, 1)], given_back=[])
    adjusted = await stub.AdjustStock(AdjustStockRequest(sku=sku, delta=-6, request_id=an_id()))
    assert adjusted.level == StockLevel(sku=sku, available=0, held=3, sold=1)
    price = Money(currency_code="EUR", amount_minor=1999)
    priced = await stub.SetPrice(SetPriceRequest(sku=sku, price=price))
    assert priced.level == StockLevel(sku=sku, held=3, sold=1, prices=[price])
    assert (await stub.GetStock(GetStockRequest(sku=sku))).level == priced.level
    removed = await stub.RemovePrice(RemovePriceRequest(sku=sku, currency_code="EUR"))
    assert removed.level == adjusted.level
    zero = await stub.SetStock(SetStockRequest(sku=sku, available=0))
    assert zero.level == adjusted.level


async def test_stock_is_never_below_zero(stub: Any) -> None:
    sku = a_sku()
    await stub.SetStock(SetStockRequest(sku=sku, available=2))
    call = stub.AdjustStock(AdjustStockRequest(sku=sku, delta=-3, request_id=an_id()))
    assert await refused(call) == (FAILED_PRECONDITION, "TOO_FEW_UNITS", [])
    assert (await stub.GetStock(GetStockRequest(sku=sku))).level.available == 2


async def test_a_repeat_is_answered_as_the_first_call_was(stub: Any) -> None:
    sku, request_id = a_sku(), an_id()
    await stub.SetStock(SetStockRequest(sku=sku, available=2))
    request = AdjustStockRequest(sku=sku, delta=3, request_id=request_id, reason="delivery 7")
    first = await stub.AdjustStock(request)
    await stub.SetStock(SetStockRequest(sku=sku, available=100))
    assert await stub.AdjustStock(request) == first
    assert first.level.available == 5
    assert (await stub.GetStock(GetStockRequest(sku=sku))).level.available == 100
    other = SetStockRequest(sku=sku, available=5, request_id=request_id)
    assert await refused(stub.SetStock(other)) == (FAILED_PRECONDITION, "REQUEST_ID_REUSED", [])


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("GetStock", GetStockRequest()),
        ("AdjustStock", AdjustStockRequest(delta=1, request_id="r")),
        ("RemovePrice", RemovePriceRequest(currency_code="EUR")),
    ],
)
async def test_a_sku_that_nobody_set_is_not_found(stub: Any, method: str, request_: Any) -> None:
    request_.sku = a_sku()
    assert await refused(getattr(stub, method)(request_)) == (grpc.StatusCode.NOT_FOUND, "SKU_NOT_FOUND", [])


@pytest.mark.parametrize(
    ("method", "request_", "fields"),
    [
        ("GetStock", GetStockRequest(), ["sku"]),
        ("GetStock", GetStockRequest(sku="a b"), ["sku"]),
        ("SetStock", SetStockRequest(), ["sku", "available"]),
        ("SetStock", SetStockRequest(sku="-", available=-1, request_id="a b", reason="x" * 256),
         ["sku", "available", "request_id", "reason"]),
        ("SetStock", SetStockRequest(sku="S", available=10**12 + 1), ["available"]),
        ("AdjustStock", AdjustStockRequest(sku="S"), ["delta", "request_id"]),
        ("AdjustStock", AdjustStockRequest(sku="S", delta=-(10**12) - 1, request_id="\x7f", reason="a\nb"),
         ["delta", "request_id", "reason"]),
        ("SetPrice", SetPriceRequest(sku="S"), ["price"]),
        ("SetPrice", SetPriceRequest(sku="", price=Money(currency_code="EURO", amount_minor=-1)),
         ["sku", "price.currency_code", "price.amount_minor"]),
        ("RemovePrice", RemovePriceRequest(request_id=" "), ["sku", "currency_code", "request_id"]),
        ("ListStock", ListStockRequest(page_size=-1), ["page_size"]),
        ("ListStock", ListStockRequest(page_token="x"), ["page_token"]),
    ],
)  # fmt: skip
async def test_everything_that_is_wrong_is_told_at_once(
    stub: Any, method: str, request_: Message, fields: list[str]
) -> None:
    assert await refused(getattr(stub, method)(request_)) == (*INVALID, fields)


async def test_a_list_is_read_page_by_page(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    called_as(monkeypatch)
    skus = {a_sku() for _ in range(5)}
    for sku in skus:
        await stub.SetStock(SetStockRequest(sku=sku, available=1))
    seen, request = list[str](), ListStockRequest(page_size=2)
    tokens = []
    while True:
        page = await stub.ListStock(request)
        assert len(page.levels) <= 2
        seen += [level.sku for level in page.levels]
        if not page.next_page_token:
            break
        tokens.append(page.next_page_token)
        request.page_token = page.next_page_token
    assert skus <= set(seen)
    assert len(seen) == len(set(seen)), "none twice"
    for foreign, metadata in (
        (ListStockRequest(page_size=3, page_token=tokens[0]), ()),
        (ListStockRequest(page_size=2, page_token=tokens[0]), (("caller", "another"),)),
    ):
        assert await refused(stub.ListStock(foreign, metadata=metadata)) == (*INVALID, ["page_token"])
