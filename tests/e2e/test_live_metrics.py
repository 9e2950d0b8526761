"""What dashboards and alerts ask for is what the running processes expose."""

import re

import httpx

from devstack.system import ROLES
from tests.deploy.exposed import PROMETHEUS, asked_for, recorded
from tests.e2e.observed import ObservedSystem

FAMILY = re.compile(r"^# TYPE (\S+) (\S+)$", re.MULTILINE)


def series(page: str) -> set[str]:
    """Returns the names of the series of a /metrics page, those without a value yet included."""
    names = set()
    for family, kind in FAMILY.findall(page):
        match kind:
            case "histogram":
                names |= {f"{family}{suffix}" for suffix in ("_bucket", "_count", "_sum")}
            case "counter":
                names.add(f"{family.removesuffix('_total')}_total")
            case _:
                names.add(family)
    return names


async def test_no_metric_is_asked_for_that_no_process_exposes(healthy: ObservedSystem) -> None:
    exposed: set[str] = set()
    async with httpx.AsyncClient(trust_env=False) as client:
        for role in ROLES:
            answer = await client.get(f"http://{healthy.metrics_address(role)}/metrics", timeout=30)
            assert answer.status_code == 200
            exposed |= series(answer.text)
    assert "orderflow_kafka_reachable" in exposed
    asked = {selector.metric for _, selector in asked_for()}
    assert asked - exposed - set(PROMETHEUS) - set(recorded()) == set()
