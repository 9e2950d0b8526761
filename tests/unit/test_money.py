"""Money is integers: sums, currencies and exponents as ISO 4217 has them."""

import pytest

from domain.money import CurrencyMismatchError, format_amount, is_currency, total_of
from orderflow.orders.v1.order_pb2 import Money
from tests.builders import an_item


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([(1, 1999)], 1999),
        ([(3, 33), (1, 1)], 100),
        ([(10_000, 99_999), (1, 1)], 999_990_001),
        ([(1, 0)], 0),
        ([(2, 10**15), (7, 10**15)], 9 * 10**15),
        ([(1, -5), (2, 10)], 15),
    ],
)
def test_a_total_is_the_sum_of_quantity_times_price(lines: list[tuple[int, int]], expected: int) -> None:
    items = [an_item(f"SKU-{n}", quantity, amount) for n, (quantity, amount) in enumerate(lines)]
    assert total_of(items) == Money(currency_code="EUR", amount_minor=expected)


@pytest.mark.parametrize("currencies", [("EUR", "USD"), ("EUR", "EUR", "JPY"), ("USD", "")])
def test_mixed_currencies_raise(currencies: tuple[str, ...]) -> None:
    with pytest.raises(CurrencyMismatchError):
        total_of([an_item(currency_code=code) for code in currencies])


def test_no_line_has_no_total() -> None:
    with pytest.raises(CurrencyMismatchError):
        total_of([])


@pytest.mark.parametrize(
    ("amount_minor", "currency_code", "text"),
    [
        (3998, "EUR", "39.98 EUR"),
        (5, "EUR", "0.05 EUR"),
        (0, "EUR", "0.00 EUR"),
        (100, "USD", "1.00 USD"),
        (-5, "EUR", "-0.05 EUR"),
        (-12345, "USD", "-123.45 USD"),
        (500, "JPY", "500 JPY"),
        (0, "JPY", "0 JPY"),
        (-7, "KRW", "-7 KRW"),
        (1234, "KWD", "1.234 KWD"),
        (9, "BHD", "0.009 BHD"),
        (-9, "TND", "-0.009 TND"),
        (12345, "CLF", "1.2345 CLF"),
        (10**15, "EUR", "10000000000000.00 EUR"),
        (1, "???", "0.01 ???"),
    ],
)
def test_amounts_for_people(amount_minor: int, currency_code: str, text: str) -> None:
    assert format_amount(amount_minor, currency_code) == text


@pytest.mark.parametrize("code", ["EUR", "USD", "JPY", "KWD", "CLF", "ISK", "HUF", "ZWG"])
def test_currencies(code: str) -> None:
    assert is_currency(code)


# XXX and XTS are no money, XAU is gold, HRK and DEM are history.
@pytest.mark.parametrize("code", ["", "eur", "EURO", "EU", "XXX", "XTS", "XAU", "HRK", "DEM", "\u0395UR"])
def test_what_is_no_currency(code: str) -> None:
    assert not is_currency(code)
