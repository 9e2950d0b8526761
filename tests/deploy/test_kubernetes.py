"""The manifests, rendered: valid for several versions of Kubernetes, and with every protection on every process."""

import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest
import yaml

import settings
from devstack.system import RECONCILER, ROLES
from tests.deploy.alerts import ROOT
from tools import fetch_tools

FOLDER = ROOT / "deploy/kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
WITH_STRIPE = "production, with Stripe"
VALIDATE = pathlib.Path(sys.executable).parent / "kubernetes-validate"
# From the oldest that has all fields to the newest whose schemas the validator brings.
VERSIONS = ("1.33", "1.35", "1.37")
SECRETS = {
    "ORDERFLOW_DATABASE_URL",
    "ORDERFLOW_KAFKA_SASL_USERNAME",
    "ORDERFLOW_KAFKA_SASL_PASSWORD",
    "ORDERFLOW_EMAIL_USERNAME",
    "ORDERFLOW_EMAIL_PASSWORD",
    "ORDERFLOW_SMS_TOKEN",
}
STRIPE_SECRETS = {"ORDERFLOW_STRIPE_KEY", "ORDERFLOW_STRIPE_WEBHOOK_SECRET"}

Object = dict[str, Any]


@pytest.fixture(scope="session")
def kustomize() -> str:
    path = fetch_tools.find("kustomize")
    if path is None:
        pytest.skip("kustomize is not on this machine; `make tools` builds it where there is Go")
    return path


def built(kustomize: str, folder: pathlib.Path) -> str:
    done = subprocess.run([kustomize, "build", folder], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session", params=[*OVERLAYS, WITH_STRIPE])
def manifests(request: pytest.FixtureRequest, kustomize: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == WITH_STRIPE:
        return with_stripe(kustomize, tmp_path_factory.mktemp("overlay"))
    overlay = FOLDER / "overlays" / request.param
    return f"{built(kustomize, overlay)}---\n{built(kustomize, overlay / 'set-up')}"


def with_stripe(kustomize: str, folder: pathlib.Path) -> str:
    """An overlay of somebody's own, as docs/deployment.md says: a copy of production, with the component."""
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    overlay = folder / "overlays/production"
    told = yaml.safe_load((overlay / "kustomization.yaml").read_text())
    told["components"] = ["../../components/stripe", *told["components"]]
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(told))
    return f"{built(kustomize, overlay)}---\n{built(kustomize, overlay / 'set-up')}"


@pytest.fixture(scope="session")
def stripe(manifests: str) -> bool:
    return "name: orderflow-webhook" in manifests


@pytest.fixture
def objects(manifests: str) -> list[Object]:
    return list(yaml.safe_load_all(manifests))


def of(objects: list[Object], *kinds: str) -> dict[str, Object]:
    return {each["metadata"]["name"]: each for each in objects if each["kind"] in kinds}


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def validated(path: pathlib.Path, version: str) -> "subprocess.CompletedProcess[str]":
    command = [VALIDATE, "--strict", "--quiet", "-k", version, path]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_would_take_them(manifests: str, version: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "manifests.yaml"
    path.write_text(manifests)
    done = validated(path, version)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_validator_sees_a_misspelt_field(manifests: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "manifests.yaml"
    path.write_text(manifests.replace("readinessProbe:", "readynessProbe:"))
    assert validated(path, VERSIONS[-1]).returncode != 0


def test_every_role_runs(objects: list[Object], stripe: bool) -> None:
    commands = {
        name: each["spec"]["template"]["spec"]["containers"][0]["args"]
        for name, each in of(objects, "Deployment").items()
    }
    assert commands == {
        f"orderflow-{role}": ["run", role] for role in (*ROLES, RECONCILER, *(["webhook"] if stripe else []))
    }


def test_all_have_the_namespace_the_image_and_the_settings_of_the_overlay(objects: list[Object]) -> None:
    assert {each["metadata"].get("namespace") for each in objects if each["kind"] != "Namespace"} == {"orderflow"}
    for name, each in of(objects, "Deployment", "Job").items():
        for container in containers(each["spec"]["template"]["spec"]):
            assert container["image"] == "registry.example/orderflow:0.1.0", name
            (source,) = container["envFrom"]
            assert source["configMapRef"]["name"] in of(objects, "ConfigMap"), name


def test_whoever_asks_the_gateway_asks_stripe(objects: list[Object], stripe: bool) -> None:
    asked = {
        name
        for name, each in of(objects, "Deployment").items()
        for variable in each["spec"]["template"]["spec"]["containers"][0]["env"]
        if variable == {"name": "ORDERFLOW_GATEWAY_KIND", "value": "stripe"}
    }
    expected = {"orderflow-payment-processor", "orderflow-reconciler"}
    assert asked == (expected if stripe else set())


def test_a_stop_has_time_to_drain(objects: list[Object]) -> None:
    told = next(iter(of(objects, "ConfigMap").values()))["data"]
    delay = float(told["ORDERFLOW_SERVER_SHUTDOWN_DELAY_SECONDS"])
    assert delay > 0, "callers are told before the server goes"
    server, worker = settings.ServerSettings(), settings.WorkerSettings()
    for name, each in of(objects, "Deployment").items():
        needed = delay + server.drain_seconds + 5 if name == "orderflow-server" else worker.drain_seconds
        assert each["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= needed + 5, name
        assert each["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}, name


def test_probes_are_grpc_and_liveness_is_blind_to_what_is_away(objects: list[Object]) -> None:
    for name, each in of(objects, "Deployment").items():
        (container,) = each["spec"]["template"]["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        probes = {kind: container[f"{kind}Probe"]["grpc"] for kind in ("startup", "readiness", "liveness")}
        assert {probe["port"] for probe in probes.values()} == {ports["health"]}, name
        assert probes["liveness"]["service"] == probes["startup"]["service"] == "live", name
        assert probes["readiness"].get("service", "") != "live", name
        listened = {
            variable["value"].rpartition(":")[2] for variable in container["env"] if "LISTEN" in variable["name"]
        }
        assert listened == {str(port) for port in ports.values()}, name


def test_nothing_runs_as_root_or_may_write_or_talks_to_the_cluster(objects: list[Object]) -> None:
    for name, each in of(objects, "Deployment", "Job").items():
        pod = each["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        # A service named orderflow would become variables ORDERFLOW_..., which no process knows.
        assert pod["enableServiceLinks"] is False, name
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert "memory" in container["resources"]["limits"], name


def test_secrets_are_references(objects: list[Object], stripe: bool) -> None:
    secrets = SECRETS | STRIPE_SECRETS if stripe else SECRETS
    assert of(objects, "Secret") == {}
    referred = set()
    for each in of(objects, "Deployment", "Job").values():
        for container in containers(each["spec"]["template"]["spec"]):
            for variable in container["env"]:
                if variable["name"] in secrets:
                    assert "value" not in variable
                    assert variable["valueFrom"]["secretKeyRef"]["name"].startswith("orderflow-")
                    referred.add(variable["name"])
    assert referred == secrets
    for each in of(objects, "ConfigMap").values():
        assert not secrets & set(each["data"])
        assert not [name for name in each["data"] if "PASSWORD" in name or name.endswith("_TOKEN") or "SECRET" in name]


def test_what_is_set_are_settings(objects: list[Object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded as a process would: one that is wrong or unknown would keep it from starting."""
    maps = of(objects, "ConfigMap")
    for each in of(objects, "Deployment", "Job").values():
        for container in containers(each["spec"]["template"]["spec"]):
            with monkeypatch.context() as process:
                (told,) = (maps[source["configMapRef"]["name"]]["data"] for source in container["envFrom"])
                for variable, value in told.items():
                    process.setenv(variable, value)
                for variable in container["env"]:
                    secret = "postgresql://u:p@db.example/x" if variable["name"].endswith("_URL") else "secret"
                    process.setenv(variable["name"], variable.get("value", secret))
                process.setenv("ORDERFLOW_SMS_TOKEN", "secret")  # only the one that sends them has it, and needs it
                loaded = settings.load()
            assert loaded.kafka.replication_factor == 3
            assert loaded.kafka.min_insync_replicas == 2


def test_every_deployment_has_a_budget_and_at_most_one_pod_is_taken(objects: list[Object]) -> None:
    budgets = list(of(objects, "PodDisruptionBudget").values())
    for name, each in of(objects, "Deployment").items():
        labels = each["spec"]["template"]["metadata"]["labels"].items()
        own = [budget for budget in budgets if budget["spec"]["selector"]["matchLabels"].items() <= labels]
        assert len(own) == 1, name
        assert own[0]["spec"]["maxUnavailable"] == 1
        assert own[0]["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        assert each["spec"]["selector"]["matchLabels"].items() <= labels


def test_nothing_is_let_in_or_out_that_is_not_named(objects: list[Object]) -> None:
    policies = of(objects, "NetworkPolicy")
    everything = policies["orderflow"]["spec"]
    assert everything["policyTypes"] == ["Ingress", "Egress"]
    for each in of(objects, "Deployment", "Job").values():
        labels = each["spec"]["template"]["metadata"]["labels"].items()
        assert everything["podSelector"]["matchLabels"].items() <= labels
    for policy in policies.values():
        rules = [(rule, "from") for rule in policy["spec"].get("ingress", [])]
        rules += [(rule, "to") for rule in policy["spec"].get("egress", [])]
        assert rules
        for rule, peers in rules:
            assert rule[peers], "an empty list of peers is everybody"
            assert rule["ports"], "an empty list of ports is every port"
    if (webhook := policies.get("orderflow-webhook")) is not None:
        assert webhook["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "webhook"
    calls = [port for rule in policies["orderflow-callers"]["spec"]["ingress"] for port in rule["ports"]]
    assert calls == [{"port": 50051}]


def test_reports_reach_the_webhook(objects: list[Object], stripe: bool) -> None:
    if not stripe:
        assert "orderflow-webhook" not in of(objects, "Service")
        return
    service = of(objects, "Service")["orderflow-webhook"]["spec"]
    (pod,) = [
        each["spec"]["template"]
        for each in of(objects, "Deployment").values()
        if service["selector"].items() <= each["spec"]["template"]["metadata"]["labels"].items()
    ]
    ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
    assert ports[service["ports"][0]["targetPort"]] == 8480
