"""Consistency tokens: opaque, and refused unless they are ours."""

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.tokens import ConsistencyToken, InvalidTokenError

ORDER_ID = "5b6f1c1e-7d5b-5c0a-9a4e-0d6f1b2c3a41"


@given(st.uuids(), st.integers(0, 2**63 - 1))
def test_there_and_back(order_id: object, revision: int) -> None:
    token = ConsistencyToken(str(order_id), revision)
    text = token.encode()
    assert ConsistencyToken.decode(text) == token
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_a_token_of_version_1_stays_readable() -> None:
    assert ConsistencyToken.decode("AVtvHB59W1wKmk4NbxssOkEAAAAAAAAABw") == ConsistencyToken(ORDER_ID, 7)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "=",
        "AVtvHB59W1wKmk4NbxssOkEAAAAAAAAAB",
        "AVtvHB59W1wKmk4NbxssOkEAAAAAAAAABwAA",
        "AVtvHB59W1wKmk4NbxssOkEAAAAAAAAABw\n",
        "AVtvHB59W1wKmk4NbxssOkEAAAAAAAAAü",
        "A" * 100_000,
        base64.urlsafe_b64encode(b"\x02" + bytes(24)).decode(),
        base64.urlsafe_b64encode(b"\x01" + bytes(23)).decode(),
    ],
)
def test_what_is_no_token_of_ours(text: str) -> None:
    with pytest.raises(InvalidTokenError):
        ConsistencyToken.decode(text)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidTokenError):
        ConsistencyToken.decode(text)
