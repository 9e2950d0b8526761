"""The consistency token: (order id, revision), opaque to callers."""

import base64
import binascii
import dataclasses
import uuid

_VERSION = b"\x01"


class InvalidTokenError(ValueError):
    """Not a token of ours."""


@dataclasses.dataclass(frozen=True)
class ConsistencyToken:
    """Stands for an order at a revision."""

    order_id: str
    revision: int

    def encode(self) -> str:
        """Returns the text that callers keep."""
        raw = _VERSION + bytes.fromhex(self.order_id.replace("-", "")) + self.revision.to_bytes(8, "big")
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> "ConsistencyToken":
        """Returns what the text stands for.

        Raises:
            InvalidTokenError: it is not a token of ours.
        """
        try:
            raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (UnicodeEncodeError, binascii.Error) as error:
            raise InvalidTokenError from error
        if len(raw) != 25 or raw[:1] != _VERSION:
            raise InvalidTokenError
        return cls(str(uuid.UUID(bytes=raw[1:17])), int.from_bytes(raw[17:], "big"))
