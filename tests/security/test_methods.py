"""No method without a credential, and none beyond the caller's scopes."""

from pathlib import Path

import grpc
import grpc.aio
import pytest

from server import scopes
from server.app import SERVICES
from settings import DatabaseSettings
from storage.database import Database
from tests import engines
from tests.security import ingress, messages
from tests.security.issuer import Issuer, bearer
from tests.security.methods import METHODS, call, named

NO_MESSAGE = b"\xff\xff\xff"
"""Bytes that no parser takes: who sees anything but INVALID_ARGUMENT for them was answered before the parser."""


def test_every_method_has_a_scope() -> None:
    ours = {path for path in scopes.REQUIRED if path.startswith("orderflow.")}
    assert ours == {method.path for method in METHODS}
    assert set(scopes.REQUIRED.values()) <= set(scopes.ALL)


def test_every_service_that_is_generated_is_walked() -> None:
    generated = Path(__file__).parents[2] / "generated" / "orderflow"
    services = sorted(path.name.removesuffix("_pb2_grpc.py") for path in generated.rglob("*_pb2_grpc.py"))
    named_in_path = {"order_service": "orderflow.orders.v1.OrderService",
                     "dead_letter_service": "orderflow.operations.v1.DeadLetterService",
                     "stock_service": "orderflow.operations.v1.StockService"}  # fmt: skip
    assert {named_in_path[name] for name in services} == set(SERVICES)


@pytest.mark.parametrize(
    "shape",
    ["none", "empty", "no token", "basic", "another scheme", "twice", "claimed in metadata"],
)
async def test_no_credentials(channel: grpc.aio.Channel, issuer: Issuer, shape: str) -> None:
    token = issuer.token()
    metadata: tuple[tuple[str, str], ...] = {
        "none": (),
        "empty": (("authorization", ""),),
        "no token": (("authorization", "Bearer"),),
        "basic": (("authorization", "Basic c2hvcDpzZWNyZXQ="),),
        "another scheme": (("authorization", f"Token {token}"),),
        "twice": bearer(token) * 2,
        "claimed in metadata": (("x-caller", "shop"), ("user", "shop"), ("x-authorization", f"Bearer {token}")),
    }[shape]
    for method in METHODS:
        answer = await call(channel, method, NO_MESSAGE, metadata)
        assert answer.code is grpc.StatusCode.UNAUTHENTICATED, method.name
        assert (answer.text, answer.reason) == ("the call needs a valid credential", "UNAUTHENTICATED")
        assert len(answer.details) == 1


async def test_the_bytes_are_parsed_for_callers_only(channel: grpc.aio.Channel, issuer: Issuer) -> None:
    for method in METHODS:
        answer = await call(channel, method, NO_MESSAGE, bearer(issuer.token(scope="orders:admin")))
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT, method.name
        assert answer.reason == "UNDECODABLE"


@pytest.mark.parametrize(
    ("held", "opened"),
    [
        ("orders:write", {scopes.WRITE}),
        ("orders:read", {scopes.READ}),
        ("orders:operate", {scopes.READ, scopes.OPERATE}),
        ("orders:admin", set(scopes.ALL)),
        ("orders:write orders:operate", {scopes.WRITE, scopes.READ, scopes.OPERATE}),
        ("", set()),
        ("orders:writes ORDERS:READ orders:* orders:write,orders:read none", set()),
    ],
)
async def test_a_scope_opens_what_it_names(
    channel: grpc.aio.Channel, issuer: Issuer, held: str, opened: set[str]
) -> None:
    for method in METHODS:
        answer = await call(channel, method, NO_MESSAGE, bearer(issuer.token(scope=held)))
        required = scopes.REQUIRED[method.path]
        if required in opened:
            assert answer.code is grpc.StatusCode.INVALID_ARGUMENT, method.name
        else:
            assert answer.code is grpc.StatusCode.PERMISSION_DENIED, method.name
            assert answer.reason == "INSUFFICIENT_SCOPE"
            assert answer.info.metadata["required_scope"] == required


async def test_a_method_that_is_not_in_the_table_is_refused_to_everybody(
    channel: grpc.aio.Channel, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = named("GetOrder")
    monkeypatch.delitem(scopes.REQUIRED, method.path)  # type: ignore[arg-type]
    answer = await call(channel, method, NO_MESSAGE, bearer(issuer.token(scope=" ".join(scopes.ALL))))
    assert (answer.code, answer.reason) == (grpc.StatusCode.PERMISSION_DENIED, "INSUFFICIENT_SCOPE")


async def test_an_operators_method_by_a_tenant_has_no_effect(
    channel: grpc.aio.Channel, issuer: Issuer, database: Database
) -> None:
    tables = ", ".join(
        f"(select count(*) from {table}) as {table}"
        for table in ("dead_letter_resolutions", "replay_plans", "stock", "prices", "stock_changes")
    )
    tables = f"select {tables}"
    before = await engines.fetch(database, tables)
    refused = [method for method in METHODS if method.path.startswith("orderflow.operations.")]
    assert {method.name for method in refused} >= {"ReplayDeadLetter", "SetStock"}
    for method in refused:
        answer = await call(channel, method, messages.base(method), bearer(issuer.token()))
        assert answer.code is grpc.StatusCode.PERMISSION_DENIED, method.name
    assert await engines.fetch(database, tables) == before


async def test_without_authentication_everybody_is_local(database_settings: DatabaseSettings) -> None:
    async with ingress.serving(database_settings) as address, ingress.plain(address) as channel:
        answer = await call(channel, named("SummarizeDeadLetters"), b"")
        assert answer.code is grpc.StatusCode.OK
