"""The alert rules: valid, each seen to fire and to be quiet, and scaled in time as a whole."""

import fractions
import pathlib
import re
import subprocess

import pytest
import yaml

from deploy.observability import render
from tests.deploy.alerts import CASES, Rule, alerts, rules
from tools import fetch_tools

SCALE = fractions.Fraction(1, 60)
RANGE = re.compile(r"\[(.+?)\]|offset (\w+)")


@pytest.fixture(scope="session")
def promtool() -> str:
    path = fetch_tools.find("promtool")
    if path is None:
        pytest.skip("promtool is not on this machine; `make tools` fetches it on Debian")
    return path


def run(*command: str | pathlib.Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("scale", [fractions.Fraction(1), SCALE], ids=str)
def test_prometheus_takes_the_rules(promtool: str, tmp_path: pathlib.Path, scale: fractions.Fraction) -> None:
    (tmp_path / "rules.yaml").write_text(render.rendered(time_scale=scale))
    run(promtool, "check", "rules", tmp_path / "rules.yaml")


@pytest.mark.parametrize("name", sorted(path.name for path in CASES.glob("*.yaml")))
def test_the_right_alert_fires(promtool: str, name: str) -> None:
    run(promtool, "test", "rules", CASES / name)


def test_every_alert_is_seen_to_fire_and_to_be_quiet_before() -> None:
    shown = set()
    for path in CASES.glob("*.yaml"):
        for case in yaml.safe_load(path.read_text())["tests"]:
            firing = [str(check["exp_samples"]) for check in case["promql_expr_test"]]
            for alert in alerts():
                in_it = [f'alertname="{alert.name}"' in samples for samples in firing]
                if True in in_it[1:] and not all(in_it):
                    shown.add(alert.name)
    assert {alert.name for alert in alerts()} - shown == set()


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert.name)
def test_an_alert_says_how_urgent_it_is_and_what_to_do(alert: Rule) -> None:
    assert alert.labels["severity"] in ("page", "ticket")
    assert alert.annotations["summary"]
    assert alert.annotations["runbook_url"].startswith(f"{render.RUNBOOK}#")


def test_no_two_alerts_share_a_name() -> None:
    names = [alert.name for alert in alerts()]
    assert len(names) == len(set(names)) > 20


def test_all_time_is_scaled_alike() -> None:
    whole, scaled = rules(), rules(render.rendered(time_scale=SCALE))
    assert len(whole) == len(scaled)
    for before, after in zip(whole, scaled, strict=True):
        if before.duration:
            assert render.milliseconds(after.duration) == render.milliseconds(before.duration) * SCALE
        ranges = [
            [render.milliseconds("".join(pair)) for pair in RANGE.findall(rule.expression) if "retry" not in pair[0]]
            for rule in (before, after)
        ]
        assert ranges[1] == [length * SCALE for length in ranges[0]], before.name


def test_numbers_of_seconds_are_marked_and_scaled() -> None:
    """What is compared with an age, or with a time, scales; how long a call may take does not."""
    source = "".join(path.read_text() for path in render.RULES.glob("*.yaml"))
    ages = [
        line
        for line in source.splitlines()
        if re.search(r"_(age|timestamp|lag)_seconds", line) and re.search("[<>]", line)
    ]
    assert len(ages) >= 5
    for line in ages:
        assert re.search(r"[<>] \d+  # \w+$", line), line
    scaled = render.rendered(time_scale=SCALE)
    assert "(orderflow_worker_oldest_record_age_seconds) > 1  # 1000ms\n" in scaled
    assert ")) > 0.25" in scaled


def test_a_number_that_is_not_its_duration_is_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rules.yaml").write_text("groups:\n  - expr: x > 60  # 2m\n")
    monkeypatch.setattr(render, "RULES", tmp_path)
    with pytest.raises(render.RuleError, match="60 seconds are not 2m"):
        render.rendered()


def test_the_operators_object_has_the_same_rules() -> None:
    told = yaml.safe_load(render.as_prometheus_rule(render.rendered(), "shop"))
    assert told["metadata"]["namespace"] == "shop"
    assert told["spec"] == yaml.safe_load(render.rendered())


def test_links_lead_to_where_the_runbook_is() -> None:
    linked = rules(render.rendered(runbook="https://docs.example/runbook"))
    assert {rule.annotations["runbook_url"].split("#")[0] for rule in linked if rule.name} == {
        "https://docs.example/runbook"
    }
