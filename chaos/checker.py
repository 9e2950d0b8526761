"""Checks a saved run: `python -m chaos.checker FOLDER`. Exit code 1 when an invariant does not hold.

It reads files only, so a run can be checked again, elsewhere and later.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import sys
from typing import Any, Final

from chaos.oracle import (
    commands,
    dangers,
    ending,
    handover,
    letters,
    messages,
    money,
    orders,
    projection,
    stock,
)
from chaos.oracle.facts import Facts
from chaos.oracle.folder import load
from chaos.oracle.violations import Check, Violation

CHECKS: Final[dict[str, tuple[str, Check]]] = {
    "I1": ("every acknowledged order is durable", orders.durable),
    "I2": ("no order that nobody asked for", orders.nothing_invented),
    "I3": ("every order ends, the same everywhere", orders.terminates),
    "I4": ("one outcome of payment per order", money.one_outcome),
    "I5": ("charged once, given back what is due", money.money_per_order),
    "I6": ("the sums of money agree", money.money_in_total),
    "I7": ("one key per charge, nothing left open", money.keys),
    "I8": ("stock adds up", stock.stock),
    "I9": ("one message per event and channel", messages.told),
    "I10": ("each record leads to one thing, once", handover.atomic),
    "I11": ("parked records lose nothing", handover.retries),
    "I12": ("dead letters are what is invalid, unchanged", letters.dead_letters),
    "I13": ("revisions in sequence, states allowed", orders.in_sequence),
    "I14": ("the read model is the topics' fold", projection.folded),
    "I15": ("one request, one order", orders.one_per_request),
    "I16": ("caught up, nothing hangs, all healthy", ending.live),
    "I17": ("nothing private in logs and headers", ending.private),
    "I18": ("each command does one thing, or is refused", commands.answered),
    "sometimes": ("the run met its dangers", dangers.sometimes),
}
_SHOWN: Final = 10


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a check of a run says."""

    violations: list[Violation]
    counts: dict[str, int]
    dangers: dict[str, int]

    @property
    def passed(self) -> bool:
        """Whether everything holds."""
        return not self.violations

    def broken(self) -> set[str]:
        """Returns the invariants that do not hold."""
        return {violation.invariant for violation in self.violations}

    def report(self) -> dict[str, Any]:
        """Returns it for machines."""
        per = collections.Counter(violation.invariant for violation in self.violations)
        return {
            "passed": self.passed,
            "checked": self.counts,
            "dangers": self.dangers,
            "invariants": {name: {"what": what, "violations": per[name]} for name, (what, _) in CHECKS.items()},
            "violations": [dataclasses.asdict(violation) for violation in self.violations],
        }

    def text(self) -> str:
        """Returns it for people."""
        per: dict[str, list[Violation]] = collections.defaultdict(list)
        for violation in self.violations:
            per[violation.invariant].append(violation)
        lines = ["checked: " + ", ".join(f"{count} {what}" for what, count in self.counts.items())]
        lines += ["dangers: " + (", ".join(f"{name} {count}" for name, count in self.dangers.items()) or "none")]
        for name, (what, _) in CHECKS.items():
            lines.append(f"  {'FAIL' if per[name] else 'ok  '} {name:9} {what}")
            lines += [f"         {violation}" for violation in per[name][:_SHOWN]]
            if len(per[name]) > _SHOWN:
                lines.append(f"         ... {len(per[name])} in all")
        return "\n".join(lines)


def check(folder: pathlib.Path) -> Verdict:
    """Checks a run's folder."""
    facts = Facts(load(folder))
    violations = [violation for _, run in CHECKS.values() for violation in run(facts)]
    outcomes = collections.Counter(call.outcome for call in facts.run.calls)
    counts = {
        "calls": len(facts.run.calls),
        **{f"answered {outcome}": count for outcome, count in sorted(outcomes.items())},
        "commands": len(facts.run.asked),
        "orders": len(facts.lives),
        "records": len(facts.run.committed),
        "aborted records": len(facts.run.uncommitted) - len(facts.run.committed),
        "gateway executions": len(facts.run.journal),
        "messages": len(facts.run.mail),
        "dead letters": len(facts.letters),
        "parked records": len(facts.parked),
        "charges unknown": len(facts.unknown_payments),
        "refunds open": len(facts.open_refunds),
    }
    return Verdict(violations, counts, dangers.met(facts))


def main(arguments: list[str] | None = None) -> int:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(prog="python -m chaos.checker", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--json", action="store_true", help="print the report for machines")
    options = parser.parse_args(arguments)
    verdict = check(options.folder)
    print(json.dumps(verdict.report(), indent=2, default=str) if options.json else verdict.text())  # noqa: T201
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    sys.exit(main())
