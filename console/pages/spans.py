"""Spans of time that lists can be narrowed to."""

import datetime
from typing import Final

SPANS: Final = {"15m": "15 minutes", "1h": "hour", "24h": "24 hours", "7d": "7 days"}
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}


def since(name: str) -> datetime.datetime | None:
    """Returns when the span that ends now began; None for a name that is none."""
    if name not in SPANS:
        return None
    return datetime.datetime.now(datetime.UTC) - datetime.timedelta(**{_UNITS[name[-1]]: int(name[:-1])})
