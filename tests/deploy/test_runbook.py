"""The runbook has an entry for every alert and for every class of dead letter, and its links lead somewhere."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.alerts import ROOT, Rule, alerts
from tests.deploy.runbook import RUNBOOK, anchor, entries

PAGES = ("runbook", "deployment", "scaling", "upgrades")
CLASS = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+|UNDECODABLE")
PARTS = ("Means", "See", "Do", "Over")
# Where records are handled. The failures of calls and of set-up are told in docs/errors.md and by the commands.
HANDLERS = ("domain", "messaging", "storage", "workers")
PREFIXES = {"SMTP_", "SMS_"}
KEPT = re.compile(r"HANDLING_LIMIT|UNEXPECTED_ERROR|GATEWAY_[A-Z_]+")
FAILURES = {"Permanent", "Transient", "GatewayRefused", "ChargeUnknown", "KeyClosed", "_require", "__init__"}


def anchors(page: Path) -> set[str]:
    return {anchor(heading) for heading in re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert.name)
def test_every_alert_leads_to_an_entry_that_names_it(alert: Rule) -> None:
    page, _, target = alert.annotations["runbook_url"].partition("#")
    assert ROOT / page == RUNBOOK
    (text,) = [f"{heading}\n{text}" for heading, text in entries().items() if anchor(heading) == target]
    assert re.search(rf"\b{alert.name}\b", text)


def test_every_entry_says_what_it_means_what_to_see_what_to_do_and_when_it_is_over() -> None:
    for heading, text in entries().items():
        assert re.findall(r"^- \*\*(\w+):\*\*", text, re.MULTILINE) == list(PARTS), heading


def test_no_entry_is_left_of_an_alert_that_is_gone() -> None:
    told = {anchor(heading) for heading in entries() if heading.startswith("Orderflow")}
    assert told == {alert.annotations["runbook_url"].partition("#")[2] for alert in alerts()}


def _classes() -> Iterator[tuple[str, str]]:
    """Yields each class of failure that a handler may raise, and where; of one made of a code, what it begins with."""
    for folder in HANDLERS:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                    named = (
                        [part for argument in node.args for part in ast.walk(argument)] if called in FAILURES else []
                    )
                else:
                    # Constants that are handed on, and what the gateways say.
                    named = [node] if KEPT.fullmatch(str(getattr(node, "value", ""))) else []
                for part in named:
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield part.value, f"{path.relative_to(ROOT)}:{node.lineno}"


def test_every_class_of_dead_letter_has_an_entry() -> None:
    headings = [heading for heading in entries() if not heading.startswith("Orderflow")]
    told = {name.removesuffix("...") for heading in headings for name in heading.split(", ")}
    raised = {name: where for name, where in _classes() if CLASS.fullmatch(name) or name in PREFIXES}
    del raised["DEPENDENCY_DOWN"]  # of which no dead letter is written
    assert {*PREFIXES, "PAYMENT_UNKNOWN", "HANDLING_LIMIT", "GATEWAY_KEY_REUSED", "ORDER_UNKNOWN"} <= set(raised)
    assert {name: where for name, where in raised.items() if name not in told} == {}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_what_is_there(name: str) -> None:
    page = ROOT / f"docs/{name}.md"
    links = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text())
    assert links
    for file, target in links:
        if not file.startswith("http"):
            path = (page.parent / file).resolve() if file else page
            assert path.exists(), file
            assert not target or target in anchors(path), f"{file}#{target}"
