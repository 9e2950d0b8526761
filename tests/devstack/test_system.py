"""The system as a whole: what its waits say when a part is missing."""

from pathlib import Path

import pytest

from devstack import DevstackError
from devstack.system import Ports, System


async def test_a_role_that_nobody_started_is_named(tmp_path: Path) -> None:
    system = System(tmp_path, Ports.chosen())
    with pytest.raises(DevstackError, match="projector was not started"):
        await system.wait_healthy(["projector"])


def test_each_of_three_brokers_has_ports_of_its_own() -> None:
    for ports in (Ports.usual(brokers=3), Ports.chosen(brokers=3)):
        assert len({port for pair in ports.brokers for port in pair}) == 6
    assert len(Ports.usual().brokers) == 1


async def test_three_brokers_are_not_started_on_the_data_of_one(tmp_path: Path) -> None:
    (tmp_path / "kafka").mkdir()
    system = System(tmp_path, Ports.chosen(brokers=3))
    with pytest.raises(DevstackError, match="that of one broker, not of 3 brokers: start with --brokers 1"):
        await system.launch_engines()
    (tmp_path / "kafka").rename(tmp_path / "kafka-3")
    system = System(tmp_path, Ports.chosen())
    with pytest.raises(DevstackError, match="that of 3 brokers, not of one broker: start with --brokers 3"):
        await system.launch_engines()
