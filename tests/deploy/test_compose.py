"""The compose file and what it mounts. Containers are not started."""

import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

import settings
from devstack.system import ROLES
from tests.deploy.alerts import ROOT
from tools import fetch_tools

FOLDER = ROOT / "deploy/compose"
COMPOSE = FOLDER / "compose.yaml"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return services


def checked(path: pathlib.Path) -> int:
    program = pathlib.Path(sys.executable).parent / "check-jsonschema"
    command = [program, "--builtin-schema", "vendor.compose-spec", path]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).returncode


def test_it_is_a_compose_file(tmp_path: pathlib.Path) -> None:
    assert checked(COMPOSE) == 0
    (tmp_path / "compose.yaml").write_text(COMPOSE.read_text().replace("restart:", "restarts:"))
    assert checked(tmp_path / "compose.yaml") != 0, "a misspelt field would be seen"


def test_images_of_others_are_pinned_by_digest(services: dict[str, Any]) -> None:
    for name, service in services.items():
        if "build" not in service:
            assert re.fullmatch(r"[a-z/]+:v?[0-9.]+@sha256:[0-9a-f]{64}", service["image"]), name


def test_kafka_is_three_brokers_that_vote_and_keep_what_they_acknowledged(services: dict[str, Any]) -> None:
    brokers = [service["environment"] for name, service in services.items() if name.startswith("kafka-")]
    assert [broker["KAFKA_NODE_ID"] for broker in brokers] == [1, 2, 3]
    voters = ",".join(f"{number}@kafka-{number}:9093" for number in (1, 2, 3))
    for number, broker in enumerate(brokers, 1):
        assert broker["KAFKA_CONTROLLER_QUORUM_VOTERS"] == voters
        assert broker["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://kafka-{number}:9092"
        assert broker["KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR"] == 3
        assert broker["KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR"] == 3
        assert broker["KAFKA_TRANSACTION_STATE_LOG_MIN_ISR"] == broker["KAFKA_MIN_INSYNC_REPLICAS"] == 2
        assert broker["KAFKA_OFFSETS_RETENTION_MINUTES"] >= 30 * 24 * 60
        assert broker["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == broker["KAFKA_UNCLEAN_LEADER_ELECTION_ENABLE"] == "false"


def test_every_role_runs_with_settings_that_hold(services: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert {name for name, service in services.items() if service.get("command", [""])[0] == "run"} == set(ROLES)
    for role in ROLES:
        service = services[role]
        assert service["command"] == ["run", role]
        with monkeypatch.context() as process:
            for name, value in service["environment"].items():
                process.setenv(name, re.sub(r"\$\{\w+:-(.*)\}", r"\1", str(value)))
            loaded = settings.load()
        assert loaded.kafka.min_insync_replicas == 2


def test_ports_are_open_to_this_machine_only(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) >= 4
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_what_is_mounted_is_there(services: dict[str, Any]) -> None:
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])]
    files = [path for path in mounted if path.startswith(".")]
    assert len(files) >= 4
    assert [path for path in files if not (FOLDER / path).exists()] == []
    assert set(mounted) - set(files) == set(yaml.safe_load(COMPOSE.read_text())["volumes"])


def test_prometheus_asks_every_role(services: dict[str, Any]) -> None:
    (job,) = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"]
    assert job["job_name"] == "orderflow"
    asked = {config["labels"]["component"]: config["targets"] for config in job["static_configs"]}
    assert asked == {role: [f"{role}:9464"] for role in ROLES}


def test_prometheus_takes_its_configuration(tmp_path: pathlib.Path) -> None:
    promtool = fetch_tools.find("promtool")
    if promtool is None:
        pytest.skip("promtool is not on this machine; `make tools` fetches it on Debian")
    (tmp_path / "prometheus.yaml").write_text((FOLDER / "prometheus.yaml").read_text())
    (tmp_path / "rules").symlink_to(ROOT / "deploy/observability/rules")
    done = subprocess.run(
        [promtool, "check", "config", tmp_path / "prometheus.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
