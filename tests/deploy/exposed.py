"""The metrics that dashboards and alerts name, and those that the processes declare."""

import json
from collections.abc import Iterator

from prometheus_client.metrics import MetricWrapperBase

from deploy.observability import dashboards
from telemetry import metrics
from tests.deploy import promql
from tests.deploy.alerts import rules
from tests.deploy.promql import Selector

# What Prometheus itself adds: labels of the scrape, and whether it worked.
TARGET_LABELS = frozenset({"job", "instance", "component"})
PROMETHEUS = {"up": TARGET_LABELS}


def asked_for() -> Iterator[tuple[str, Selector]]:
    """Yields where a metric is named, and how."""
    for rule in rules():
        for selector in promql.selectors(rule.expression):
            yield rule.name or rule.records, selector
    for dashboard in dashboards.ALL:
        for panel in json.loads(dashboards.as_json(dashboard))["panels"]:
            for target in panel.get("targets", ()):
                expression = target["expr"].replace("$__rate_interval", "5m")
                for selector in promql.selectors(expression):
                    yield f"{dashboard.uid}: {panel['title']}", selector


def declared() -> dict[str, frozenset[str]]:
    """Returns the labels of each series that the processes may expose."""
    series: dict[str, frozenset[str]] = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            labels = frozenset(metric._labelnames) | TARGET_LABELS
            match family.type:
                case "counter":
                    series[f"{family.name}_total"] = labels
                case "histogram":
                    series[f"{family.name}_bucket"] = labels | {"le"}
                    series[f"{family.name}_count"] = series[f"{family.name}_sum"] = labels
                case _:
                    series[family.name] = labels
    return series


def recorded() -> dict[str, frozenset[str]]:
    """Returns the series that rules record. They have no labels but those of the scrape."""
    return {rule.records: frozenset() for rule in rules() if rule.records}
