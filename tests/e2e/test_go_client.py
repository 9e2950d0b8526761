"""The Go example, generated and built from the .proto files as a team with Go would."""

import pathlib
import shutil
import sys

import grpc
import pytest

from clients.tests.scripted_server import Refusal, ScriptedOrders, bad_request, error_info, proceed, serving
from devstack.system import System
from orderflow_client import OrdersClient, OrderStatus
from tests.e2e.programs import run

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_EXAMPLE = _ROOT / "clients" / "examples" / "go"

pytestmark = pytest.mark.timeout(400)  # the first of them has the modules fetched and everything built


@pytest.fixture(scope="session")
async def go_client(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns the path of the built example, or skips the test where it cannot be built."""
    if shutil.which("go") is None:
        pytest.skip("go is not on this machine")
    binary = tmp_path_factory.mktemp("go") / "client"
    environment = f"PYTHON={sys.executable}"
    await fetch("env", environment, "sh", str(_ROOT / "tools" / "generate_go.sh"))
    await fetch("go", "-C", str(_EXAMPLE), "mod", "download")
    code, _, err = await run("go", "-C", str(_EXAMPLE), "build", "-o", str(binary), ".", deadline=110)
    assert code == 0, err
    return str(binary)


async def fetch(*command: str) -> None:
    """Runs a step that needs Go's module proxy; skips the test where that cannot be reached, or does not answer."""
    try:
        code, _, err = await run(*command, deadline=90)
    except TimeoutError:
        code, err = 1, "no end within 90 s"
    if code:
        pytest.skip(f"Go's modules cannot be fetched here: {err[-300:]}")


async def test_it_places_and_watches_an_order(go_client: str, healthy: System, client: OrdersClient) -> None:
    code, out, err = await run(go_client, "-target", healthy.server_address, deadline=60)
    assert code == 0, err
    first, *states = out.decode().splitlines()
    order_id = first.removeprefix("placed ")
    assert [line.split()[0] for line in states] == [str(revision) for revision in _revisions(states)]
    assert states[-1].split()[1] == "ORDER_STATUS_PAID"
    assert (await client.get_order(order_id)).order.status == OrderStatus.ORDER_STATUS_PAID


def _revisions(states: list[str]) -> range:
    first, last = int(states[0].split()[0]), int(states[-1].split()[0])
    return range(first, last + 1)


async def test_it_goes_on_after_a_break(go_client: str) -> None:
    orders = ScriptedOrders()
    orders.stream_script.extend([proceed, Refusal(grpc.StatusCode.UNAVAILABLE), proceed, proceed])
    async with serving(orders) as target:
        code, out, err = await run(go_client, "-target", target, "-request-id", "mine")
    assert code == 0, err
    assert out.decode().split("\n")[:-1] == [
        "placed order-of-mine",
        "2 ORDER_STATUS_PROCESSING ",
        "3 ORDER_STATUS_PAID ",
    ]


async def test_it_names_what_is_wrong(go_client: str) -> None:
    orders = ScriptedOrders()
    details = (error_info("INVALID_FIELDS", outcome="NOT_ACCEPTED"), bad_request(email="must be an address"))
    orders.script.append(Refusal(grpc.StatusCode.INVALID_ARGUMENT, "1 field is wrong", details))
    async with serving(orders) as target:
        code, _, err = await run(go_client, "-target", target)
    assert code == 1
    assert "INVALID_FIELDS map[outcome:NOT_ACCEPTED]\nemail: must be an address" in err
