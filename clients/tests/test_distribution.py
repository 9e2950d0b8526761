"""What a caller gets: the wheels, installed alone."""

import asyncio
import zipfile

import pytest

from clients.tests.bare_environment import build


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return build(tmp_path_factory.mktemp("bare"))


@pytest.mark.timeout(300)
def test_the_client_stands_alone(bare):
    assert bare.can_import("orderflow_client")
    for module in ("aiokafka", "asyncpg", "domain", "messaging", "server", "settings", "workers"):
        assert not bare.can_import(module), module


@pytest.mark.timeout(300)
def test_it_brings_few_distributions(bare):
    code = "from importlib.metadata import distributions; print(*sorted(d.name for d in distributions()))"
    assert bare.run(code).split() == [
        "googleapis-common-protos",
        "grpcio",
        "grpcio-status",
        "orderflow-client",
        "orderflow-protos",
        "protobuf",
        "typing_extensions",
    ]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("wheel", "package"), [("orderflow_client", "orderflow_client"), ("orderflow_protos", "orderflow")]
)
def test_a_wheel_ships_one_typed_package(bare, wheel, package):
    [path] = [path for path in bare.wheels if path.name.startswith(f"{wheel}-")]
    names = zipfile.ZipFile(path).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {package}
    assert f"{package}/py.typed" in names


@pytest.mark.timeout(300)
async def test_it_places_an_order(bare, live_target):
    assert await asyncio.to_thread(bare.place_order, live_target)
