"""The runbook, read."""

import re

from tests.deploy.alerts import ROOT

RUNBOOK = ROOT / "docs/runbook.md"


def anchor(heading: str) -> str:
    """Returns a heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def entries() -> dict[str, str]:
    """Returns the text of each entry by its heading."""
    parts = re.split(r"^### (.+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    return {heading: text.partition("\n## ")[0] for heading, text in zip(parts[1::2], parts[2::2], strict=True)}


def beginning() -> str:
    """Returns what stands before the first entry: where to look first."""
    return RUNBOOK.read_text().partition("\n### ")[0]
