"""Dashboards and alerts name no metric, and no label, that the processes do not expose."""

from tests.deploy.exposed import PROMETHEUS, asked_for, declared, recorded
from tests.deploy.promql import Selector, selectors


def test_every_metric_is_exposed_with_the_labels_that_are_asked_for() -> None:
    known = PROMETHEUS | declared() | recorded()
    missing: dict[str, set[str]] = {}
    for where, selector in asked_for():
        if selector.metric not in known:
            missing.setdefault(selector.metric, set()).add(where)
        elif labels := selector.labels - known[selector.metric]:
            missing.setdefault(f"{selector.metric}{sorted(labels)}", set()).add(where)
    assert missing == {}


def test_expressions_are_looked_through() -> None:
    expression = 'sum by (a, le) (rate(x_bucket{b="c"}[5m])) unless on (d) (time() - y > 1 or max by (d) (z offset 1m))'
    assert selectors(expression) == [
        Selector("x_bucket", frozenset("ab") | {"le"}),
        Selector("y", frozenset("d")),
        Selector("z", frozenset("d")),
    ]
    assert len(list(asked_for())) > 60
