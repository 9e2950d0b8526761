"""Ports: chosen ones differ, a taken one is named."""

import socket
from collections.abc import Iterator

import pytest

from devstack import DevstackError, free_ports, require_free


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
