"""What a valid change of stock or prices is."""

from collections.abc import Iterator
from typing import Final

from domain.money import MAX_AMOUNT_MINOR, is_currency
from domain.validation import REQUEST_ID_RULE, SKU_RULE, Violation, is_request_id, is_sku, text_violations
from orderflow.operations.v1.stock_service_pb2 import (
    AdjustStockRequest,
    GetStockRequest,
    RemovePriceRequest,
    SetPriceRequest,
    SetStockRequest,
)

MAX_UNITS: Final = 10**12
"""Most units that are set or moved at once, so that no sum comes near the limit of 64 bits."""

Change = SetStockRequest | AdjustStockRequest | SetPriceRequest | RemovePriceRequest


def violations_of(request: Change | GetStockRequest) -> list[Violation]:
    """Returns everything that is wrong with the request; empty if it is valid."""
    return list(_violations(request))


def _violations(request: Change | GetStockRequest) -> Iterator[Violation]:
    if not is_sku(request.sku):
        yield Violation("sku", SKU_RULE)
    if isinstance(request, GetStockRequest):
        return
    if isinstance(request, SetStockRequest):
        if not request.HasField("available"):
            yield Violation("available", "must be set; 0 is a number like any other")
        elif not 0 <= request.available <= MAX_UNITS:
            yield Violation("available", f"must be 0 to {MAX_UNITS}")
    elif isinstance(request, AdjustStockRequest):
        if not 1 <= abs(request.delta) <= MAX_UNITS:
            yield Violation("delta", f"must be 1 to {MAX_UNITS}, or as much below zero")
        if not request.request_id:
            yield Violation("request_id", "must be set, so that the call is safe to repeat")
    elif isinstance(request, SetPriceRequest):
        if not request.HasField("price"):
            yield Violation("price", "must be set")
        else:
            yield from _currency("price.currency_code", request.price.currency_code)
            if not 0 <= request.price.amount_minor <= MAX_AMOUNT_MINOR:
                yield Violation("price.amount_minor", f"must be 0 to {MAX_AMOUNT_MINOR}")
    else:
        yield from _currency("currency_code", request.currency_code)
    if request.request_id and not is_request_id(request.request_id):
        yield Violation("request_id", REQUEST_ID_RULE)
    yield from text_violations("reason", request.reason, most=255)


def _currency(field: str, code: str) -> Iterator[Violation]:
    if not is_currency(code):
        yield Violation(field, "must be an ISO 4217 code such as EUR")
