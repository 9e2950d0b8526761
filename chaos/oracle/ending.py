"""How a run ends: everything caught up, nothing hangs, nothing private was told (I16, I17)."""

from collections.abc import Iterator

from chaos.oracle import rules
from chaos.oracle.facts import Facts, retry_topic
from chaos.oracle.violations import Violation


def live(facts: Facts) -> Iterator[Violation]:
    """I16: lag is 0, no transaction hangs, every process is healthy, and that soon after the last fault."""
    info = facts.run.info
    if not info["settled"]:
        yield Violation("I16", f"not settled within {info['settle_limit']:.0f} s", {"waits_for": info["waits_for"]})
    for process in info["unhealthy"]:
        yield Violation("I16", "a process is not healthy at the end", {"process": process})
    for topic in rules.PROJECTED:
        if not info["ends"].get(topic):
            yield Violation("I16", "nobody looked where a topic ends", {"topic": topic})
    for topic, partitions in info["ends"].items():
        place = retry_topic(topic)
        groups = [place[0]] if place else [group for group, topics in rules.READS.items() if topic in topics]
        for partition, ends in partitions.items():
            ids = {"topic": topic, "partition": partition}
            if ends["stable"] != ends["high"]:
                yield Violation("I16", f"a transaction hangs: {ends['high'] - ends['stable']} records unread", ids)
            for group in groups:
                stands = info["committed"].get(group, {}).get(topic, {}).get(partition)
                if stands != ends["stable"]:
                    yield Violation("I16", f"{group} stands at {stands}, the end is {ends['stable']}", ids)


def private(facts: Facts) -> Iterator[Violation]:
    """I17: what marks the customers' data is in no log and in no header that says why a record failed."""
    canaries: list[str] = facts.run.info["canaries"]
    for file, line in facts.run.log_lines():
        for canary in canaries:
            if canary in line:
                yield Violation("I17", f"{canary} is in a log", {"file": file, "line": line.strip()[:200]})
    for record in facts.run.committed:
        for name, value in record.headers:
            if name.startswith(("dlq_", "retry_")) and value:
                for canary in canaries:
                    if canary.encode() in value:
                        yield Violation("I17", f"{canary} is in the header {name}", {"at": record.at})
