"""A log line is one event whatever is in it, and has no personal data and no secret."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from devstack import free_ports
from devstack.process import ManagedProcess
from orderflow.orders.v1.order_service_pb2 import GetOrderRequest
from settings import TokenSettings
from telemetry import log_hygiene
from tests.builders import a_request, an_id
from tests.security import ingress
from tests.security.issuer import Issuer, bearer
from tests.security.methods import call, named

ROOT = Path(__file__).parents[2]
HOSTILE = [
    'a\r\n{"event":"forged","level":"error"}',
    "a\n2026-01-01T00:00:00Z [error    ] forged",
    "\x1b[2J\x1b[31mforged",
    "a\u2028forged",
    "a\u2029forged",
    "a\x85forged",
    "a\x0bforged\x0cforged",
    'x","level":"forged',
    "{0} {x} %s %n %(x)s",
    "\x00",
    "\u202eforged",
    "\ud800",
]
EVENTS = 5  # of logging_program, for each text


def logged(form: str, texts: list[str]) -> str:
    command = [sys.executable, str(Path(__file__).with_name("logging_program.py")), form]
    path = os.pathsep.join([str(ROOT), str(ROOT / "generated"), str(ROOT / "clients")])
    done = subprocess.run(
        command,
        input=json.dumps(texts).encode(),
        env=os.environ | {"PYTHONPATH": path, "PYTHONIOENCODING": "utf-8:backslashreplace"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stderr.decode()


def test_json_lines_stay_one_for_each_event() -> None:
    lines = logged("json", HOSTILE).splitlines()  # splits at U+2028 and its like too
    assert len(lines) == EVENTS * len(HOSTILE)
    events = [json.loads(line) for line in lines]
    assert {event["level"] for event in events} == {"info", "warning", "error"}
    assert not [event for event in events if event["event"] == "forged"]


def test_console_lines_that_begin_at_the_margin_are_events() -> None:
    lines = [line for line in logged("console", HOSTILE).splitlines() if line and not line.startswith("    ")]
    assert len(lines) == EVENTS * len(HOSTILE)
    assert all(line[:4].isdigit() and "Z [" in line for line in lines)
    assert not [line for line in lines if set(line) & set("\x00\x1b\u202e\x85")]


PERSONAL = [
    "carla.canary@example.com",
    "+491701234567",
    "4111 1111 1111 1111",
    "4111111111111111",
    "5500-0000-0000-0004",
    "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJzaG9wIn0.c2lnbmF0dXJl",
]


@pytest.mark.parametrize("form", ["json", "console"])
def test_texts_of_errors_and_libraries_lose_what_is_personal(form: str) -> None:
    texts = [f"invalid input for query argument $1: {each} (it is no number)" for each in PERSONAL]
    told = [line for line in logged(form, texts).splitlines() if "server.order.accepted" not in line]
    assert sum("invalid input for query argument" in line for line in told) >= 3 * len(PERSONAL)
    assert not [each for each in PERSONAL if each in "\n".join(told)]


@pytest.mark.parametrize("text", ["offset 1700000000123", "partition 3 of 12", "8c5cb6dc-2f4d-4e0c-9d6a-3f0b1e3b4a55",
                                  "took 0.1234567890123 s", "2026-01-01T00:00:00.000000Z"])  # fmt: skip
def test_what_is_not_personal_stays(text: str) -> None:
    event: dict[str, Any] = {"event": text, "level": "warning"}
    assert log_hygiene.redacted(None, "", event) == event


def test_no_text_makes_it_slow() -> None:
    for text in ("a" * 200_000, "1" * 200_000, "+1" * 100_000, "eyJ" * 70_000, "a@" * 100_000, "1 " * 100_000):
        started = os.times().user
        log_hygiene.redacted(None, "", {"event": text, "level": "error"})
        assert os.times().user - started < 2


async def test_nothing_personal_and_no_secret_is_in_the_log_of_a_process(
    tmp_path: Path, tokens: TokenSettings, issuer: Issuer
) -> None:
    """At DEBUG, with Kafka and PostgreSQL away and a key source that works: the process is told canaries."""
    kafka, database, listen, metrics = free_ports(4)
    password = "canary-password"
    environment = {
        "ORDERFLOW_LOG_LEVEL": "DEBUG",
        "ORDERFLOW_LOG_FORMAT": "json",
        "ORDERFLOW_KAFKA_BOOTSTRAP": f"127.0.0.1:{kafka}",
        "ORDERFLOW_DATABASE_URL": f"postgresql://orderflow:{password}@127.0.0.1:{database}/orderflow",
        "ORDERFLOW_SERVER_LISTEN": f"127.0.0.1:{listen}",
        "ORDERFLOW_SERVER_METRICS_LISTEN": f"127.0.0.1:{metrics}",
        "ORDERFLOW_SERVER_TOKEN_ISSUER": tokens.issuer or "",
        "ORDERFLOW_SERVER_TOKEN_AUDIENCE": tokens.audience or "",
        "ORDERFLOW_SERVER_TOKEN_JWKS_FILE": tokens.jwks_file or "",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "generated"), str(ROOT / "clients")]),
    }
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("ORDERFLOW_")}
    log = tmp_path / "server.log"
    process = ManagedProcess(
        "server", [sys.executable, "-m", "cli", "run", "server"], log, inherited | environment,
        pid_file=tmp_path / "server.pid",
    )  # fmt: skip
    process.start()
    token = issuer.token(scope="orders:admin")
    order = a_request(
        email="carla.canary@example.com",
        phone="+491701234567",
        payment_method="4111111111111111",
        user_id="canary-user",
    )
    try:
        async with asyncio.timeout(40):
            while b"process.started" not in (log.read_bytes() if log.exists() else b""):
                assert process.running, log.read_text()
                await asyncio.sleep(0.05)
        arguments = " ".join(psutil.Process(json.loads((tmp_path / "server.pid").read_text())["pid"]).cmdline())
        async with ingress.plain(f"127.0.0.1:{listen}") as channel:
            create, get = named("CreateOrder"), named("GetOrder")
            for metadata in (bearer(token), bearer(token[:-4] + "AAAA"), (("authorization", "Basic Y2FuYXJ5"),)):
                placed = await call(channel, create, order, metadata)
                assert placed.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED)
                await call(channel, get, GetOrderRequest(order_id=an_id()), metadata)
    finally:
        await process.stop(20)
    told = log.read_text()
    assert all(json.loads(line) for line in told.splitlines())
    for secret in ("canary", "4111111111111111", "491701234567", token, token.split(".")[2], "Y2FuYXJ5", password):
        assert secret not in told, secret
        assert secret not in arguments, secret
