"""Ports: chosen ones differ, a taken one is named."""

import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from devstack import DevstackError, free_ports, ports, require_free

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(params=["plain", "reuseport"])
def taken(request: pytest.FixtureRequest) -> Iterator[int]:
    with socket.socket() as listener:
        if request.param == "reuseport":
            # What a gRPC server does: a second one would start without a word.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_free_ports_differ_and_are_free() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        require_free(port, "test", "PORT")


def test_a_chosen_port_is_nobody_elses_while_its_process_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    chooses = "from devstack import free_ports; print(*free_ports(1), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", chooses], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        monkeypatch.setattr(ports, "_CHOICE", range(port, port + 1))
        require_free(port, "test", "PORT")
        with pytest.raises(DevstackError, match="no 1 free ports"):
            free_ports(1)
        other.communicate("\n", timeout=30)
    assert free_ports(1) == [port]


def test_a_port_in_use_says_who_wanted_it_and_what_to_set(taken: int) -> None:
    with pytest.raises(
        DevstackError, match=rf"port {taken} \(gRPC\) is in use .*ORDERFLOW_PORT.*stop the other process"
    ):
        require_free(taken, "gRPC", "ORDERFLOW_PORT")


def test_a_port_is_free_again_right_after_its_server_closed() -> None:
    (port,) = free_ports(1)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        with socket.create_connection(("127.0.0.1", port)):
            listener.accept()[0].close()  # the server closes first: its end stays in TIME_WAIT
    require_free(port, "test", "PORT")
