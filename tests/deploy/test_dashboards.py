"""The dashboards: what is committed is what the code makes, and Grafana and Prometheus can read it."""

import json
from typing import Any

import pytest

from deploy.observability import dashboards
from deploy.observability.dashboards import ALL, Dashboard

EACH = pytest.mark.parametrize("dashboard", ALL, ids=lambda dashboard: dashboard.uid)


def test_what_is_committed_is_what_the_code_makes() -> None:
    made = {f"{dashboard.uid}.json": dashboards.as_json(dashboard) for dashboard in ALL}
    committed = {path.name: path.read_text() for path in dashboards.FOLDER.iterdir()}
    assert committed == made, "run `python -m deploy.observability.dashboards`"


@EACH
def test_no_two_panels_lie_on_each_other(dashboard: Dashboard) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(dashboards.as_json(dashboard))["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


@EACH
def test_panels_have_a_name_of_their_own_and_show_something(dashboard: Dashboard) -> None:
    document: dict[str, Any] = json.loads(dashboards.as_json(dashboard))
    panels = [panel for panel in document["panels"] if panel["type"] not in ("row", "alertlist")]
    assert len({panel["title"] for panel in panels}) == len(panels)
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])
    for panel in panels:
        assert panel["targets"], panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
