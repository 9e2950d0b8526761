"""Puts the rules of `rules/` together into one file, on standard output.

    python -m deploy.observability.render > orderflow.rules.yaml
    python -m deploy.observability.render --prometheus-rule orderflow | kubectl apply -f -
    python -m deploy.observability.render --time-scale 1/60      # minutes become seconds: to see alerts fire in a trial

Only the standard library, so that it runs wherever Python does.
"""

import argparse
import fractions
import pathlib
import re
import sys
from typing import Final

RULES: Final = pathlib.Path(__file__).parent / "rules"
RUNBOOK: Final = "docs/runbook.md"

_UNITS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION: Final = r"(?:\d+(?:ms|s|m|h|d))+"
_PART: Final = re.compile(r"(\d+)(ms|s|m|h|d)")
# Ranges, `offset`, `for:` are durations; a number of seconds says so by the duration behind it.
_SCALED: Final = re.compile(rf"(?<=\[)({_DURATION})(?=\])|(?<=offset )({_DURATION})|(?<=for: )({_DURATION})")
_SECONDS: Final = re.compile(rf"(\d+)  # ({_DURATION})$", re.MULTILINE)


class RuleError(Exception):
    """A rule says two things about one duration."""


def milliseconds(duration: str) -> int:
    """Returns the length of a Prometheus duration, such as `1h30m`."""
    return sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(duration))


def rendered(*, time_scale: fractions.Fraction = fractions.Fraction(1), runbook: str = RUNBOOK) -> str:
    """Returns all rules as one file for Prometheus.

    Args:
        time_scale: what durations are multiplied with. Counts, rates and latencies of calls are not.
        runbook: address of the runbook's page.

    Raises:
        RuleError: a number of seconds is not the duration behind it.
        ValueError: a duration would be shorter than a millisecond.
    """
    parts = [path.read_text().partition("groups:\n") for path in sorted(RULES.glob("*.yaml"))]
    text = "groups:\n" + "".join(comment + groups for comment, _, groups in parts)
    text = text.replace(f"runbook_url: {RUNBOOK}#", f"runbook_url: {runbook}#")

    def seconds(match: re.Match[str]) -> str:
        number, duration = match.groups()
        if int(number) * 1_000 != milliseconds(duration):
            raise RuleError(f"{number} seconds are not {duration}")
        length = _scaled(duration, time_scale)
        return match[0] if time_scale == 1 else f"{length / 1_000:g}  # {length}ms"

    if time_scale != 1:
        text = _SCALED.sub(lambda match: f"{_scaled(match[0], time_scale)}ms", text)
    return _SECONDS.sub(seconds, text)


def as_prometheus_rule(rules: str, namespace: str) -> str:
    """Returns the rules as an object for the Prometheus Operator."""
    head = (
        "apiVersion: monitoring.coreos.com/v1\n"
        "kind: PrometheusRule\n"
        f"metadata: {{name: orderflow, namespace: {namespace}}}\n"
        "spec:\n"
    )
    return head + "".join(f"  {line}" if line.strip() else line for line in rules.splitlines(keepends=True))


def _scaled(duration: str, scale: fractions.Fraction) -> int:
    length = round(milliseconds(duration) * scale)
    if length < 1:
        raise ValueError(f"{duration} is too short for that time scale")
    return length


def main() -> None:
    """Prints the rules."""
    parser = argparse.ArgumentParser(description="Print the alert rules.")
    parser.add_argument("--time-scale", type=fractions.Fraction, default=fractions.Fraction(1), help="such as 1/60")
    parser.add_argument("--runbook", default=RUNBOOK, help="address of the runbook's page, for the links")
    parser.add_argument("--prometheus-rule", metavar="NAMESPACE", help="print an object for the Prometheus Operator")
    asked = parser.parse_args()
    rules = rendered(time_scale=asked.time_scale, runbook=asked.runbook)
    sys.stdout.write(as_prometheus_rule(rules, asked.prometheus_rule) if asked.prometheus_rule else rules)


if __name__ == "__main__":
    main()
