"""Pages: how large they are, and the tokens that lead to the next, good for one request of one caller only."""

import base64
import binascii
import copy
import datetime
import hashlib
import struct
from typing import Final, NamedTuple

from domain.validation import Violation
from orderflow.operations.v1.dead_letter_service_pb2 import ListDeadLettersRequest
from orderflow.operations.v1.stock_service_pb2 import ListStockRequest
from orderflow.orders.v1.order_service_pb2 import ListOrderEventsRequest, ListOrdersRequest
from server import errors

_DEFAULT_PAGE: Final = 50
_LARGEST_PAGE: Final = 1_000
_HEAD: Final = struct.Struct(">B16sqq")  # version, what it is bound to, microseconds since 1970, revision
_VERSION: Final = 1
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

Listing = ListOrdersRequest | ListOrderEventsRequest | ListStockRequest


class Position(NamedTuple):
    """Where the last entry of a page stands. Time and revision are 1970 and 0 where the order has no use for them."""

    time: datetime.datetime
    revision: int
    entry_id: str


def page_size(request: Listing | ListDeadLettersRequest) -> int:
    """Returns how many entries a page of the request has at the most.

    Raises:
        CallError: it asks for less than none.
    """
    if request.page_size < 0:
        raise errors.invalid([Violation("page_size", "must not be negative")])
    return min(request.page_size or _DEFAULT_PAGE, _LARGEST_PAGE)


def encode(request: Listing, caller: str, last: Position) -> str:
    """Returns the token that leads past `last`."""
    micros = (last.time - _EPOCH) // datetime.timedelta(microseconds=1)
    raw = _HEAD.pack(_VERSION, _bound(request, caller), micros, last.revision) + last.entry_id.encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def decode(request: Listing, caller: str) -> Position | None:
    """Returns where the page that the request asks for begins; None for the first.

    Raises:
        CallError: the token is none, or another request's or another caller's.
    """
    token = request.page_token
    if not token:
        return None
    try:
        raw = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        version, bound, micros, revision = _HEAD.unpack_from(raw)
        position = Position(
            _EPOCH + datetime.timedelta(microseconds=micros), revision, raw[_HEAD.size :].decode("ascii")
        )
    except (UnicodeError, binascii.Error, struct.error, OverflowError):
        raise foreign_token() from None
    if version != _VERSION or bound != _bound(request, caller) or not position.entry_id.isprintable():
        raise foreign_token()
    return position


def foreign_token() -> errors.CallError:
    """Returns INVALID_ARGUMENT for a page_token that does not fit."""
    return errors.invalid([Violation("page_token", "must be the last page's next_page_token, for the same request")])


def _bound(request: Listing, caller: str) -> bytes:
    """Returns what a token is bound to: who calls, and everything that is asked for but the page."""
    content = copy.deepcopy(request)
    content.page_token = ""
    digest = hashlib.sha256(caller.encode() + b"\x00" + content.SerializeToString(deterministic=True))
    return digest.digest()[:16]
