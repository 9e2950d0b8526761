"""The programs that people debug with, run as they run them."""

import asyncio
import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import sys
from typing import Any

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SPEC = importlib.util.spec_from_file_location("fetch_tools", _ROOT / "tools" / "fetch_tools.py")
assert _SPEC is not None
assert _SPEC.loader is not None
_FETCH_TOOLS = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_FETCH_TOOLS)

UNHEALTHY = 4
"""What the health probe ends with when the service answers, and not SERVING."""


def program(name: str) -> str:
    """Returns the path of a program, or skips the test where it cannot be had."""
    path: str | None = _FETCH_TOOLS.find(name)
    if path is None:
        pytest.skip(f"{name} is not on this machine, and `make tools` cannot fetch it here")
    return path


async def run(
    *command: str, stdin: bytes | None = None, deadline: float = 60, environment: dict[str, str] | None = None
) -> tuple[int, bytes, str]:
    """Runs a command and returns its exit code, standard output and standard error.

    Raises:
        TimeoutError: it did not end within so many seconds; it is ended, with what it started.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(deadline):
            out, err = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out, err.decode()


async def grpcurl(address: str, method: str, request: dict[str, Any], *options: str) -> dict[str, Any]:
    """Calls a method of the OrderService with grpcurl, by reflection, and returns its JSON answer."""
    code, out, err = await run(
        program("grpcurl"), "-plaintext", *options, "-d", json.dumps(request), address,
        f"orderflow.orders.v1.OrderService/{method}",
    )  # fmt: skip
    assert code == 0, err
    answer: dict[str, Any] = json.loads(out)
    return answer


async def probe(address: str) -> int:
    """Runs the gRPC health probe and returns its exit code."""
    code, _, _ = await run(
        program("grpc-health-probe"), "-addr", address, "-connect-timeout", "2s", "-rpc-timeout", "2s"
    )
    return code


async def protoc_decode(message: str, data: bytes) -> str:
    """Decodes a serialized message with protoc, from the .proto files alone."""
    command = (sys.executable, "-m", "grpc_tools.protoc", "-I", str(_ROOT / "proto"), "--decode", message)
    code, out, err = await run(*command, "orderflow/events/v1/order_event.proto", stdin=data)
    assert code == 0, err
    return out.decode()
