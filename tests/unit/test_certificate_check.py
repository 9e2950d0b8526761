"""`orderflow check cert` and `server` against a server with TLS."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cli import checks
from cli.connection import Connection
from cli.plugin import State, Threshold
from devstack import free_ports
from tests.security.certificates import Authority, Certificate

DAY = 86_400
ENDS_IN_A_DAY = Threshold(DAY / 2, DAY / 4, below=True)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@contextlib.asynccontextmanager
async def serving(
    certificate: Certificate,
    *,
    client_ca: bytes | None = None,
    status: "health_pb2.HealthCheckResponse.ServingStatus" = 1,
) -> AsyncIterator[str]:
    """A gRPC server with TLS that has nothing but health. Yields where it listens."""
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    await servicer.set("", status)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    credentials = grpc.ssl_server_credentials(
        [(certificate.key, certificate.pem)], client_ca, require_client_auth=client_ca is not None
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"localhost:{port}"
    finally:
        await server.stop(0)


def connection(target: str, authority: Authority, folder: Path, own: Certificate | None = None) -> Connection:
    ca = folder / "ca.pem"
    ca.write_bytes(authority.pem)
    if own is None:
        return Connection(target, tls_ca=ca)
    certificate, key = folder / "own.pem", folder / "own.key"
    certificate.write_bytes(own.pem)
    key.write_bytes(own.key)
    return Connection(target, tls_ca=ca, tls_certificate=certificate, tls_key=key)


@pytest.mark.parametrize(
    ("threshold", "state"),
    [
        (ENDS_IN_A_DAY, State.OK),
        (Threshold(2 * DAY, DAY / 2, below=True), State.WARNING),
        (Threshold(3 * DAY, 2 * DAY, below=True), State.CRITICAL),
    ],
)
async def test_when_the_servers_certificate_ends(
    authority: Authority, tmp_path: Path, threshold: Threshold, state: State
) -> None:
    async with serving(authority.server()) as target:
        result = await checks.cert(connection(target, authority, tmp_path), threshold)
    assert result.state is state
    (measure,) = result.measures
    assert measure.value == pytest.approx(DAY, abs=60)
    assert "ends on" in result.summary


async def test_one_that_has_ended_is_critical(authority: Authority, tmp_path: Path) -> None:
    async with serving(authority.server(expired=True)) as target:
        result = await checks.cert(connection(target, authority, tmp_path), ENDS_IN_A_DAY)
    assert result.state is State.CRITICAL
    assert "certificate has expired" in result.summary
    assert result.measures == []


async def test_one_that_callers_refuse_is_critical(authority: Authority, tmp_path: Path) -> None:
    async with serving(Authority("another").server()) as target:
        result = await checks.cert(connection(target, authority, tmp_path), ENDS_IN_A_DAY)
    assert result.state is State.CRITICAL
    assert "callers refuse" in result.summary
    async with serving(authority.server("elsewhere.example")) as target:
        result = await checks.cert(connection(target, authority, tmp_path), ENDS_IN_A_DAY)
    assert result.state is State.CRITICAL
    assert "localhost" in result.summary


async def test_your_own_ends_too(authority: Authority, tmp_path: Path) -> None:
    async with serving(authority.server(), client_ca=authority.pem) as target:
        well = connection(target, authority, tmp_path, authority.client())
        assert (await checks.cert(well, ENDS_IN_A_DAY)).state is State.OK
        ended = connection(target, authority, tmp_path, authority.client(expired=True))
        result = await checks.cert(ended, ENDS_IN_A_DAY)
    assert result.state is State.CRITICAL
    assert "own.pem (your own) ended on" in result.summary


async def test_nobody_there_is_unknown(authority: Authority, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with pytest.raises(checks.Unreadable, match=f"localhost:{port}: "):
        await checks.cert(connection(f"localhost:{port}", authority, tmp_path), ENDS_IN_A_DAY)
    with pytest.raises(checks.Unreadable, match="without --tls"):
        await checks.cert(Connection("localhost:1"), ENDS_IN_A_DAY)


@pytest.mark.parametrize(
    ("status", "slow", "state"),
    [
        (health_pb2.HealthCheckResponse.SERVING, 60, State.OK),
        (health_pb2.HealthCheckResponse.SERVING, 0, State.WARNING),
        (health_pb2.HealthCheckResponse.NOT_SERVING, 60, State.CRITICAL),
    ],
)
async def test_a_server_that_serves_late_or_not(
    authority: Authority,
    tmp_path: Path,
    status: "health_pb2.HealthCheckResponse.ServingStatus",
    slow: float,
    state: State,
) -> None:
    async with serving(authority.server(), status=status) as target:
        reached = connection(target, authority, tmp_path)
        result = await checks.server(reached, Threshold(slow, 60), timeout=30)
    assert result.state is state
    assert ("is SERVING" in result.summary) is (state is not State.CRITICAL)


async def test_a_server_whose_certificate_is_not_ours_does_not_answer(authority: Authority, tmp_path: Path) -> None:
    async with serving(Authority("another").server()) as target:
        with pytest.raises(checks.Unreadable, match="UNAVAILABLE"):
            await checks.server(connection(target, authority, tmp_path), Threshold(1, 5), timeout=30)
