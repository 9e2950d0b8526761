"""Each Python example of the READMEs and of docs/client.md runs as it stands, but for the server's address."""

import asyncio
import os
import re
import subprocess
import sys

import pytest

from clients.tests.authority import Authority
from clients.tests.bare_environment import ROOT
from clients.tests.scripted_server import ScriptedOrders, serving
from orderflow.orders.v1.order_pb2 import Order

PAGES = ("README.md", "clients/README.md", "docs/client.md")
EXAMPLES = [
    pytest.param(example, id=f"{page}: {example.splitlines()[0]}")
    for page in PAGES
    for example in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
]


@pytest.fixture
def orders():
    return ScriptedOrders(stored=[Order(order_id=f"order-{number}", user_id="u-1") for number in range(3)])


@pytest.mark.parametrize("example", EXAMPLES)
async def test_it_runs(example, live_target, orders, tmp_path):
    if "orders.example.com" in example:
        authority = Authority(tmp_path)
        authority.certificate.rename(tmp_path / "ca.pem")
        authority.certificate = tmp_path / "ca.pem"
        authority.sign("client")
        async with serving(orders, "localhost:0", authority.server_credentials()) as target:
            await run(example.replace("orders.example.com:443", target), tmp_path)
    else:
        await run(example.replace("127.0.0.1:50051", live_target), tmp_path)


async def run(example, folder):
    (folder / "example.py").write_text(example)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "generated"), str(ROOT / "clients")])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "example.py"),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    printed, complained = (each.decode() for each in await process.communicate())
    assert (process.returncode, complained) == (0, "")
    assert printed
    assert "safe to repeat" not in printed  # the error that it may catch


def test_each_page_has_examples():
    assert [page for page in PAGES if not any(example.id.startswith(f"{page}:") for example in EXAMPLES)] == []
