"""Money: integers in a currency's minor unit, never a float."""

from collections.abc import Iterable
from typing import Final

from orderflow.orders.v1.order_pb2 import LineItem, Money

MAX_AMOUNT_MINOR: Final = 10**15
"""Largest amount that is accepted anywhere, so that no sum comes near the limit of 64 bits."""

# ISO 4217: the currencies whose minor unit is not a hundredth, and all the others.
_EXPONENTS: Final = {
    **dict.fromkeys("BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF".split(), 0),
    **dict.fromkeys("BHD IQD JOD KWD LYD OMR TND".split(), 3),
    **dict.fromkeys(("CLF", "UYW"), 4),
    **dict.fromkeys(
        (
            "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY "
            "COP CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF "
            "IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR "
            "MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG "
            "SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VED VES "
            "WST XCD XCG YER ZAR ZMW ZWG "
        ).split(),
        2,
    ),
}


class CurrencyMismatchError(ValueError):
    """Amounts of different currencies cannot be added."""


def is_currency(code: str) -> bool:
    """Tells whether `code` is an ISO 4217 code that money can be charged in."""
    return code in _EXPONENTS


def total_of(items: Iterable[LineItem]) -> Money:
    """Returns the sum of quantity times unit price.

    Raises:
        CurrencyMismatchError: the lines are not all in one currency, or there is no line.
    """
    total = Money()
    add_up(items, total)
    return total


def add_up(items: Iterable[LineItem], total: Money) -> None:
    """Does so in place."""
    currency, amount = "", 0
    for item in items:
        price = item.unit_price
        code = price.currency_code
        if currency and code != currency:
            raise CurrencyMismatchError(f"{code} among lines in {currency}")
        currency = code
        amount += item.quantity * price.amount_minor
    if not currency:
        raise CurrencyMismatchError("no line, so no currency")
    total.currency_code, total.amount_minor = currency, amount


def format_amount(amount_minor: int, currency_code: str) -> str:
    """Returns the amount for people, for example `39.98 EUR` or `500 JPY`."""
    exponent = _EXPONENTS.get(currency_code, 2)
    sign, digits = "-" if amount_minor < 0 else "", str(abs(amount_minor)).rjust(exponent + 1, "0")
    if exponent:
        digits = f"{digits[:-exponent]}.{digits[-exponent:]}"
    return f"{sign}{digits} {currency_code}"
