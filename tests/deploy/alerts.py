"""The alert rules, read."""

import dataclasses
import pathlib
from typing import Any

import yaml

from deploy.observability.render import RULES, rendered

ROOT = pathlib.Path(__file__).parents[2]
CASES = RULES.parent / "rules_tests"


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule that alerts, or records if it has no name."""

    name: str
    expression: str
    duration: str
    labels: dict[str, str]
    annotations: dict[str, str]
    records: str


def rules(text: str | None = None) -> list[Rule]:
    """Returns the rules of the text, or all there are."""
    document: dict[str, Any] = yaml.safe_load(rendered() if text is None else text)
    return [
        Rule(
            name=rule.get("alert", ""),
            expression=rule["expr"],
            duration=rule.get("for", ""),
            labels=rule.get("labels", {}),
            annotations=rule.get("annotations", {}),
            records=rule.get("record", ""),
        )
        for group in document["groups"]
        for rule in group["rules"]
    ]


def alerts() -> list[Rule]:
    """Returns the rules that alert."""
    return [rule for rule in rules() if rule.name]
