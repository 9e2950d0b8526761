"""TLS, client certificates, tokens, trace context."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from clients.tests.authority import Authority
from clients.tests.caller import ORDER, connected, failure
from clients.tests.scripted_server import Refusal, error_info, serving
from orderflow_client import OrdersClient, Outcome, SyncOrdersClient, Unauthenticated, Unavailable, tls

CODE = grpc.StatusCode
REFUSED = Refusal(CODE.UNAUTHENTICATED)


def authorizations(orders):
    return [seen.metadata.get("authorization") for seen in orders.seen]


async def test_a_token_goes_along_with_every_call(flavour, target, orders):
    caller = connected(flavour, target, token="secret")
    await caller.create()
    await caller.all("watch_order", "order-1")
    assert authorizations(orders) == ["Bearer secret"] * 2
    orders.script.append(REFUSED)
    assert isinstance(await failure(caller.create()), Unauthenticated)
    assert len(orders.seen) == 3
    await caller.close()


async def test_a_refused_token_is_asked_for_once_more(flavour, target, orders):
    given = iter(["old", "new", "newer"])
    caller = connected(flavour, target, token=lambda: next(given))
    orders.script.append(REFUSED)
    await caller.create(request_id="mine")
    await caller.get("order-1")
    assert authorizations(orders) == ["Bearer old", "Bearer new", "Bearer new"]
    assert {seen.request.request_id for seen in orders.seen[:2]} == {"mine"}
    orders.script.extend([REFUSED] * 2)
    assert isinstance(await failure(caller.create()), Unauthenticated)
    assert authorizations(orders)[3:] == ["Bearer new", "Bearer newer"]
    await caller.close()


async def test_a_renewed_token_makes_no_order_unaccepted(flavour, target, orders):
    given = iter(["old", "new"])
    caller = connected(flavour, target, token=lambda: next(given))
    may_be_accepted = Refusal(CODE.UNAUTHENTICATED, details=(error_info("UNAUTHENTICATED", outcome="UNKNOWN"),))
    not_accepted = (error_info("INVALID_ORDER", outcome="NOT_ACCEPTED"),)
    orders.script.extend([may_be_accepted, Refusal(CODE.INVALID_ARGUMENT, details=not_accepted)])
    assert (await failure(caller.create())).outcome is Outcome.UNKNOWN
    assert len(orders.seen) == 2
    await caller.close()


async def test_the_same_token_again_is_not_sent_again(flavour, target, orders):
    caller = connected(flavour, target, token=lambda: "same")
    orders.script.append(REFUSED)
    assert isinstance(await failure(caller.create()), Unauthenticated)
    assert len(orders.seen) == 1
    await caller.close()


async def test_a_token_may_be_awaited_and_is_asked_for_by_one(target, orders):
    asked = 0

    async def token():
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return f"token-{asked}"

    async with OrdersClient(target, token=token) as client:
        await asyncio.gather(*(client.get_order(f"order-{number}") for number in range(5)))
    assert authorizations(orders) == ["Bearer token-1"] * 5


async def test_a_token_is_asked_for_by_one_thread(target, orders):
    asked = []

    def token():
        asked.append(threading.get_ident())
        return "token"

    def calls():
        with SyncOrdersClient(target, token=token) as client, ThreadPoolExecutor(5) as threads:
            list(threads.map(client.get_order, map(str, range(5))))

    await asyncio.to_thread(calls)
    assert len(asked) == 1
    assert authorizations(orders) == ["Bearer token"] * 5


async def test_a_token_that_cannot_be_had_is_the_callers_own_error(flavour, target, orders):
    def token():
        raise LookupError("no token")

    caller = connected(flavour, target, token=token)
    with pytest.raises(LookupError, match="no token"):
        await caller.create()
    assert orders.seen == []
    await caller.close()


@pytest.fixture
def span() -> Iterator[SpanContext]:
    context = SpanContext(0xA, 0xB, is_remote=False, trace_flags=TraceFlags(1), trace_state=TraceState([("k", "v")]))
    with trace.use_span(NonRecordingSpan(context)):
        yield context


async def test_the_current_trace_goes_along(flavour, target, orders, span):
    caller = connected(flavour, target)
    with trace.use_span(NonRecordingSpan(span)):
        await caller.get("order-1")
        await caller.get("order-1", metadata=[("traceparent", "mine")])
    await caller.close()
    assert orders.seen[0].metadata["traceparent"] == f"00-{0xA:032x}-{0xB:016x}-01"
    assert orders.seen[0].metadata["tracestate"] == "k=v"
    assert orders.seen[1].metadata["traceparent"] == "mine"


async def test_the_trace_goes_along_with_many_orders(flavour, target, orders, span):
    caller = connected(flavour, target)
    with trace.use_span(NonRecordingSpan(span)):
        await caller.all("create_orders", [ORDER] * 3, batch_size=1)
        await caller.all("watch_order", "order-1")
    await caller.close()
    assert [seen.metadata["traceparent"] for seen in orders.seen] == [f"00-{0xA:032x}-{0xB:016x}-01"] * 4


def test_opentelemetry_is_not_needed():
    code = (
        "import sys; sys.modules['opentelemetry'] = None; sys.path[:0] = sys.argv[1:];"
        "from orderflow_client._metadata import call_metadata; print(call_metadata([('a', 'b')], 't'))"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(root / "clients"), str(root / "generated")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "(('a', 'b'), ('authorization', 'Bearer t'))"


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def server_credentials(authority) -> grpc.ServerCredentials:
    return authority.server_credentials()


@pytest.mark.parametrize("form", ["paths", "texts", "bytes"])
async def test_mutual_tls(flavour, orders, authority, server_credentials, form):
    shape = {"paths": lambda path: path, "texts": str, "bytes": Path.read_bytes}[form]
    certificate, key = map(shape, authority.sign("client"))
    credentials = tls(root_certificates=shape(authority.certificate), certificate=certificate, private_key=key)
    async with serving(orders, credentials=server_credentials) as target:
        caller = connected(flavour, target, channel_credentials=credentials, token="secret")
        await caller.create()
        await caller.close()
    assert authorizations(orders) == ["Bearer secret"]


async def test_a_client_without_a_certificate_is_not_let_in(flavour, orders, authority, server_credentials):
    credentials = tls(root_certificates=authority.certificate)
    async with serving(orders, credentials=server_credentials) as target:
        caller = connected(flavour, target, channel_credentials=credentials)
        assert isinstance(await failure(caller.create()), Unavailable)
        await caller.close()


async def test_a_server_that_nobody_vouches_for_gets_no_order(flavour, orders, server_credentials):
    async with serving(orders, credentials=server_credentials) as target:
        caller = connected(flavour, target, channel_credentials=tls())
        assert isinstance(await failure(caller.create()), Unavailable)
        await caller.close()
    assert orders.seen == []


def test_a_certificate_needs_its_key():
    with pytest.raises(ValueError, match="go together"):
        tls(certificate=b"...")
