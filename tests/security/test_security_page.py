"""docs/security.md: every item of the checklist, every test that it names, and its examples."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from orderflow.orders.v1.order_service_pb2 import GetOrderRequest
from settings import DatabaseSettings, TlsSettings, TokenSettings, variables
from tests.builders import an_id
from tests.security import ingress
from tests.security.issuer import bearer
from tests.security.methods import call, named

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
ITEMS = """no credentials, wrong tenant, JWT, mTLS, TLS downgrade, huge message, gzip bomb, header bomb, slowloris,
stream flood, cancelled calls, SQL injection, un-storable text, log and mail injection, error hygiene, path traversal,
admin by a caller, Kafka is a border, database rights, hostile gateway, fairness, supply chain"""
BESIDE = {"forged reports"}
"""What the list, which is about the API, does not ask for."""
WITH_COMMAS = {"nesting, unknown fields", "rapid reset, ping flood", "PII, secrets", "reflection, channelz, ports"}


def rows() -> dict[str, tuple[str, str]]:
    """Returns the checklist: item -> (tests, reason)."""
    table = PAGE.partition("## Checklist")[2]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {item: (tests, reason) for item, tests, reason in cells[2:]}


def test_every_item_is_there() -> None:
    assert set(rows()) == {item.strip() for item in ITEMS.replace("\n", " ").split(",")} | WITH_COMMAS | BESIDE


def test_every_item_has_a_test_or_a_reason() -> None:
    assert [item for item, (tests, reason) in rows().items() if not tests and not reason] == []


def test_every_test_that_is_named_is_there() -> None:
    named_tests = [found for tests, _ in rows().values() for found in re.findall(r"`([^`]+)`", tests)]
    assert len(named_tests) > 40
    for each in named_tests:
        file, _, function = each.partition("::")
        path = ROOT / file if file.startswith("tests/") else ROOT / "tests" / "security" / file
        assert path.exists(), each
        functions = {node.name for node in ast.walk(ast.parse(path.read_text()))
                     if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}  # fmt: skip
        assert not function or function in functions, each


def test_every_setting_that_is_named_is_there() -> None:
    known = set(variables())
    names = set(re.findall(r"ORDERFLOW_[A-Z_]+[A-Z]", PAGE))
    assert {name for name in names if name not in known} <= {"ORDERFLOW_SERVER_TOKEN"}


@pytest.fixture
def examples(tmp_path: Path) -> dict[str, str]:
    """What the page makes with its commands, and its settings with the paths of what was made."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    blocks = dict(re.findall(r"```(sh|python|ini)\n(.*?)```", PAGE, re.DOTALL))
    subprocess.run(["sh", "-e", "-c", blocks["sh"]], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run([sys.executable, "-c", blocks["python"]], cwd=tmp_path, check=True, capture_output=True)
    given = dict(line.split("=", 1) for line in blocks["ini"].splitlines())
    prefix = "ORDERFLOW_SERVER_"
    files = {name: str(tmp_path / value) for name, value in given.items() if name.endswith("_FILE")}
    return {name.removeprefix(prefix).lower(): value for name, value in (given | files).items()}


async def test_the_examples_run(database_settings: DatabaseSettings, tmp_path: Path, examples: dict[str, str]) -> None:
    tls = TlsSettings(**{name[4:]: value for name, value in examples.items() if name.startswith("tls_")})
    tokens = TokenSettings(**{name[6:]: value for name, value in examples.items() if name.startswith("token_")})
    authority = (tmp_path / "ca.pem").read_bytes()
    token = (tmp_path / "token").read_text()
    request = GetOrderRequest(order_id=an_id())
    async with (
        ingress.serving(database_settings, tls=tls, tokens=tokens) as address,
        ingress.over_tls(address, authority) as channel,
    ):
        assert (await call(channel, named("GetOrder"), request)).code is grpc.StatusCode.UNAUTHENTICATED
        answer = await call(channel, named("GetOrder"), request, bearer(token))
        assert answer.code is grpc.StatusCode.NOT_FOUND
    mutual = tls.model_copy(update={"client_ca_file": str(tmp_path / "ca.pem")})
    client = ((tmp_path / "client.key").read_bytes(), (tmp_path / "client.pem").read_bytes())
    async with (
        ingress.serving(database_settings, tls=mutual) as address,
        ingress.over_tls(address, authority, *client) as channel,
    ):
        assert (await call(channel, named("GetOrder"), request)).code is grpc.StatusCode.NOT_FOUND
