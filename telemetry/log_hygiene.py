"""What no log line may do: show personal data or a secret that an error text brought along, or look like two lines."""

import re
from collections.abc import Mapping
from typing import Any, Final

from structlog.typing import EventDict, WrappedLogger

# Bounded, so that no text makes them slow.
_EMAIL: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,255}")
_PHONE: Final = re.compile(r"\+[1-9][0-9]{6,14}(?![0-9])")
_TOKEN: Final = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*){1,2}")
_CARD: Final = re.compile(r"(?<![0-9])[0-9](?:[ -]?[0-9]){12,18}(?![0-9])")
# C0 and C1 controls, line and paragraph separators, and the code points that change the direction of text.
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_MULTILINE: Final = ("exception", "stack")

OURS: Final = ("debug", "info")
"""Levels of lines that hold ids only, unless they tell of an exception."""


def redacted(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Takes e-mail addresses, phone and card numbers and tokens out of what we did not word ourselves.

    Texts of errors and of libraries may quote what they choked on: asyncpg, for one, shows the value.
    """
    redacted_event: EventDict = _redacted(event)
    return redacted_event


def redacted_unless_ours(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """Does so with our own lines, but for those up to info, which hold ids only."""
    ours = event.get("level") in OURS and "exception" not in event
    return event if ours else redacted(logger, name, event)


def on_one_line(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Escapes what could end a line or move the cursor. Tracebacks keep their lines, indented."""
    for key, value in event.items():
        if isinstance(value, str):
            if key in _MULTILINE:
                event[key] = "\n".join(f"    {_UNSAFE.sub(_escaped, line)}" for line in value.split("\n"))
            else:
                event[key] = _UNSAFE.sub(_escaped, value)
    return event


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        for pattern in (_EMAIL, _PHONE, _TOKEN):
            value = pattern.sub("[redacted]", value)
        return _CARD.sub(lambda found: "[redacted]" if _is_card(found.group()) else found.group(), value)
    if isinstance(value, Mapping):
        return {key: _redacted(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(each) for each in value]
    return value


def _is_card(text: str) -> bool:
    # The check digit of ISO/IEC 7812 tells card numbers from most offsets and times.
    digits = [int(character) for character in reversed(text) if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _escaped(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape").decode()
