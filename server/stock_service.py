"""The StockService: operators see and change what can be ordered, and at what price."""

import datetime
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final

import grpc

from domain import stock_validation
from domain.stock_validation import Change
from orderflow.operations.v1 import stock_service_pb2 as pb
from orderflow.operations.v1 import stock_service_pb2_grpc
from orderflow.orders.v1.order_pb2 import Money
from server import calls, errors, page_tokens
from server.errors import CallError
from server.page_tokens import Position
from storage.stock import ShortageError, Stock, StockLevel, UnknownSkuError
from storage.stock_changes import ChangeRequestIdReusedError, Origin

if TYPE_CHECKING:
    from server.calls import Context

_NO_TIME: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class StockService(stock_service_pb2_grpc.StockServiceServicer):
    """Implements orderflow.operations.v1.StockService. Methods raise CallError and DependencyDown."""

    def __init__(self, *, stock: Stock) -> None:
        """Collaborators are given; nothing is connected here."""
        self._stock = stock

    async def SetStock(self, request: pb.SetStockRequest, context: "Context") -> pb.SetStockResponse:  # noqa: N802
        """Sets how many units are left."""
        origin = _origin(request, context)
        level = await _changed(self._stock.set_available(request.sku, request.available, origin))
        return pb.SetStockResponse(level=level)

    async def AdjustStock(  # noqa: N802
        self, request: pb.AdjustStockRequest, context: "Context"
    ) -> pb.AdjustStockResponse:
        """Adds units or takes some away."""
        origin = _origin(request, context)
        return pb.AdjustStockResponse(level=await _changed(self._stock.adjust(request.sku, request.delta, origin)))

    async def SetPrice(self, request: pb.SetPriceRequest, context: "Context") -> pb.SetPriceResponse:  # noqa: N802
        """Sets the price in one currency."""
        origin, price = _origin(request, context), request.price
        changing = self._stock.set_price(request.sku, price.currency_code, price.amount_minor, origin)
        return pb.SetPriceResponse(level=await _changed(changing))

    async def RemovePrice(  # noqa: N802
        self, request: pb.RemovePriceRequest, context: "Context"
    ) -> pb.RemovePriceResponse:
        """Removes the price in one currency."""
        origin = _origin(request, context)
        level = await _changed(self._stock.remove_price(request.sku, request.currency_code, origin))
        return pb.RemovePriceResponse(level=level)

    async def GetStock(  # noqa: N802
        self,
        request: pb.GetStockRequest,
        context: "Context",  # noqa: ARG002
    ) -> pb.GetStockResponse:
        """Returns one SKU's level."""
        if violations := stock_validation.violations_of(request):
            raise errors.invalid(violations)
        for level in await self._stock.levels(request.sku):
            return pb.GetStockResponse(level=_message(level))
        raise _sku_not_found()

    async def ListStock(self, request: pb.ListStockRequest, context: "Context") -> pb.ListStockResponse:  # noqa: N802
        """Lists levels by SKU."""
        caller = calls.caller(context)
        size = page_tokens.page_size(request)
        begins = page_tokens.decode(request, caller)
        levels = await self._stock.page(size=size + 1, after=begins.entry_id if begins else "")
        response = pb.ListStockResponse(levels=map(_message, levels[:size]))
        if len(levels) > size:
            last = Position(_NO_TIME, 0, levels[size - 1].sku)
            response.next_page_token = page_tokens.encode(request, caller, last)
        return response


def _origin(request: Change, context: "Context") -> Origin:
    if violations := stock_validation.violations_of(request):
        raise errors.invalid(violations, outcome="NOT_ACCEPTED")
    return Origin(calls.caller(context), request.reason, request.request_id)


async def _changed(changing: Awaitable[StockLevel]) -> pb.StockLevel:
    try:
        return _message(await changing)
    except UnknownSkuError as error:
        raise _sku_not_found(outcome="NOT_ACCEPTED") from error
    except ShortageError as error:
        raise errors.failed_precondition(
            "TOO_FEW_UNITS",
            "fewer units are left than are to be taken away; nothing was changed",
            ("STOCK", "delta", "takes more than is left"),
        ) from error
    except ChangeRequestIdReusedError as error:
        raise errors.failed_precondition(
            "REQUEST_ID_REUSED",
            "this request_id was used for another change; use a new one for a new change",
            ("REQUEST_ID", "request_id", "belongs to another change"),
        ) from error


def _message(level: StockLevel) -> pb.StockLevel:
    return pb.StockLevel(
        sku=level.sku,
        available=level.available,
        held=level.held,
        sold=level.sold,
        prices=[Money(currency_code=code, amount_minor=amount) for code, amount in level.prices.items()],
    )


def _sku_not_found(*, outcome: str = "") -> CallError:
    return CallError(
        grpc.StatusCode.NOT_FOUND, "SKU_NOT_FOUND", "nothing was ever set for the SKU: SetStock makes it known", outcome
    )
