"""What callers see of a failure inside: a code, a fixed text, ErrorInfo and RetryInfo. Nothing of the inside."""

import re
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2

from devstack import free_ports
from settings import DatabaseSettings, TokenSettings
from storage.database import Database
from tests import engines
from tests.security import ingress, messages
from tests.security.issuer import Issuer, bearer
from tests.security.methods import METHODS, THERE, Answer, call, named

CANARY = "canary-9c1f"
_INSIDE = re.compile(
    r"select |insert |traceback|\.py|asyncpg|aiokafka|postgres|psycopg|python|grpc\.|127\.0\.0\.1|localhost|/work"
    rf"|<class|error:|exception|{CANARY}",
    re.IGNORECASE,
)


def shows_nothing(answer: Answer) -> None:
    assert not _INSIDE.search(answer.text), answer.text
    assert not _INSIDE.search(answer.status.decode("latin-1").replace("type.googleapis.com/google.rpc.", ""))
    kinds = {type(detail) for detail in answer.details}
    assert kinds <= {error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo}
    assert answer.info.domain == "orderflow"


async def test_a_handler_that_raises_is_internal_and_says_no_more(
    channel: grpc.aio.Channel, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{CANARY} select caller from order_views at /work/secret.py")

    monkeypatch.setattr(Database, "connection", broken)
    monkeypatch.setattr(Database, "transaction", broken)
    seen = set()
    for method in THERE:
        if method.name == "CreateOrder" or method.name == "BatchCreateOrders":
            continue  # they answer without the database
        request = messages.base(method)
        answer = await call(channel, method, request, bearer(issuer.token(scope="orders:admin")))
        assert answer.code is grpc.StatusCode.INTERNAL, method.name
        assert answer.text == "internal error; the server's log has it"
        shows_nothing(answer)
        seen.add(method.name)
    assert "GetOrder" in seen


async def test_with_postgresql_away_nothing_of_it_is_told(tokens: TokenSettings, issuer: Issuer) -> None:
    (port,) = free_ports(1)
    away = engines.database_settings(f"postgresql://orderflow:{CANARY}@127.0.0.1:{port}/orderflow")
    async with ingress.serving(away, tokens=tokens) as address, ingress.plain(address) as channel:
        for method in THERE:
            request = messages.base(method)
            answer = await call(channel, method, request, bearer(issuer.token(scope="orders:admin")))
            if method.name == "BatchCreateOrders" and answer.code is grpc.StatusCode.OK:
                continue  # each result has an error of its own, which says what CreateOrder says
            assert answer.code is grpc.StatusCode.UNAVAILABLE, method.name
            shows_nothing(answer)


async def test_with_kafka_away_nothing_of_it_is_told(
    database_settings: DatabaseSettings, tokens: TokenSettings, issuer: Issuer
) -> None:
    async with (
        ingress.serving(database_settings, is_kafka_reachable=lambda: False, tokens=tokens) as address,
        ingress.plain(address) as channel,
    ):
        method = named("CreateOrder")
        answer = await call(channel, method, messages.base(method), bearer(issuer.token()))
        assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "KAFKA_UNAVAILABLE")
        shows_nothing(answer)


async def test_what_was_sent_is_not_echoed(channel: grpc.aio.Channel, issuer: Issuer) -> None:
    credential = bearer(issuer.token(scope="orders:admin"))
    for method in METHODS:
        for _, put in messages.string_fields(method):
            request = messages.base(method)
            put(request, f"{CANARY}\n")
            for metadata in (credential, bearer(CANARY)):
                answer = await call(channel, method, request, metadata)
                assert CANARY not in answer.text
                assert CANARY.encode() not in answer.status


def test_refusals_name_the_scope_and_nothing_else() -> None:
    from server import errors

    for error in (errors.unauthenticated(), errors.insufficient_scope("orders:read"), errors.undecodable()):
        assert not _INSIDE.search(error.message)
