"""`orderflow doctor`: what each thing that it sees comes to, and its exit code."""

import asyncio
import json
import sys

import pytest

from cli import diagnosis, locked, main
from cli.connection import Connection
from cli.diagnosis import Finding, Role, Verdict
from devstack import jars, postgres
from messaging.broker_facts import Facts, allowed, release
from messaging.topic_admin import Drift
from messaging.topics import GROUPS, ORDERS, PAYMENTS
from storage.inspection import Inspection, tables
from storage.migrate import Comparison, Migration

OK, WARNING, WRONG, UNKNOWN = Verdict
EVERYTHING = frozenset(("Read", "Write", "Describe"))


def verdicts(findings: list[Finding]) -> dict[str, Verdict]:
    return {each.subject: each.verdict for each in findings}


# -- libraries ---------------------------------------------------------------------------------------------------------


def test_the_locked_versions_are_found_and_those_of_other_platforms_left_out() -> None:
    text = 'a.b==1.2 \\\n    --hash=x\nc[d]==3 \\\ne==4 ; sys_platform == "win32" \\\n# f==5\n    # via g==6\n'
    assert locked.read(text) == {"a.b": "1.2", "c": "3"}
    assert locked.locked()["aiokafka"] == "0.14.0"


def test_a_library_of_another_version_is_a_warning_and_a_missing_one_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locked, "locked", lambda: {"aiokafka": "0.14.0", "asyncpg": "0.0.1", "no-such-library": "1"})
    found = diagnosis.libraries()
    assert verdicts(found) == {"library asyncpg": WARNING, "library no-such-library": WRONG}
    assert "missing, locked is 1" in found[1].found
    monkeypatch.setattr(locked, "locked", lambda: {"aiokafka": "0.14.0"})
    assert verdicts(diagnosis.libraries()) == {"libraries": OK}
    monkeypatch.setattr(locked, "locked", dict)
    assert verdicts(diagnosis.libraries()) == {"libraries": UNKNOWN}


# -- Kafka -------------------------------------------------------------------------------------------------------------


def facts(*releases: str, topics: dict[str, frozenset[str]] | None = None, groups: object = None) -> Facts:
    return Facts(dict(enumerate(releases, 1)), topics or {}, groups or {})  # type: ignore[arg-type]


def test_what_it_was_tested_with_is_what_development_runs_on() -> None:
    assert jars.KAFKA_VERSION.rpartition(".")[0] == diagnosis.TESTED_KAFKA
    assert postgres.POSTGRES_VERSION.partition(".")[0] == diagnosis.TESTED_POSTGRESQL


@pytest.mark.parametrize(
    ("releases", "verdict"),
    [(["4.4", "4.4"], OK), (["4.4", "4.3"], WARNING), (["4.4?"], WARNING), (["before 3.9"], WARNING)],
)
def test_releases_of_brokers(releases: list[str], verdict: Verdict) -> None:
    assert verdicts(diagnosis.kafka_versions(facts(*releases))) == {"kafka version": verdict}


@pytest.mark.parametrize(
    ("level", "name"), [(33, "4.4"), (30, "4.3"), (34, "4.4?"), (26, "4.0?"), (7, "before 3.9"), (0, "before 3.9")]
)
def test_a_release_is_known_by_what_it_knows(level: int, name: str) -> None:
    assert release(level) == name


def test_rights_are_bits() -> None:
    assert allowed(0) == frozenset()
    assert allowed(1 << 3 | 1 << 8) == {"Read", "Describe"}
    assert allowed(-1) == EVERYTHING


def test_what_a_process_may_not_do_is_named_with_the_command_that_allows_it() -> None:
    reader = Role(reads=(ORDERS, PAYMENTS), group="payment-processor")
    writer = Role(writes=(ORDERS, PAYMENTS))
    may = {"orders": EVERYTHING, "payments": frozenset(("Read", "Describe"))}
    found = diagnosis.kafka_rights(facts(topics=may), [reader, writer], "shop")
    assert found == [
        Finding(
            "kafka rights: topic payments", WRONG, "shop may not write",
            "kafka-acls.sh --add --allow-principal User:shop --operation Write --topic payments",
        )
    ]  # fmt: skip
    assert verdicts(diagnosis.kafka_rights(facts(topics=may), [reader], "shop")) == {"kafka rights": OK}
    refused = facts(topics=may, groups={"payment-processor": frozenset()})
    assert verdicts(diagnosis.kafka_rights(refused, [reader], "shop")) == {
        "kafka rights: group payment-processor": WRONG
    }
    # A topic that is missing is told as that, and not as one that may not be read.
    assert verdicts(diagnosis.kafka_rights(facts(), [reader, writer], "shop")) == {"kafka rights": OK}


def test_every_process_has_its_needs() -> None:
    needs = diagnosis.roles((10, 300))
    assert set(needs) == {"server", *GROUPS, "projector", "reconciler", "webhook"}
    payment = needs["payment-processor"]
    assert {topic.name for topic in payment.reads} == {
        "orders", "payment-processor.retry.10s", "payment-processor.retry.300s"
    }  # fmt: skip
    assert {topic.name for topic in payment.writes} >= {"payments", "dlq", "payment-processor.retry.300s"}
    assert {topic.name for topic in needs["server"].writes} >= {f"{group}.retry.10s" for group in GROUPS}


def test_topics_that_differ() -> None:
    assert verdicts(diagnosis.topics_drift([])) == {"topics": OK}
    found = diagnosis.topics_drift(
        [
            Drift("orders", "topic", "missing", "3 partitions", can_be_applied=True),
            Drift("payments", "partitions", "4", "3", can_be_applied=False),
            Drift("dlq", "retention.ms", "1", "2", can_be_applied=True),
        ]
    )
    assert verdicts(found) == {"topic orders": WRONG, "topic payments": WRONG, "topic dlq": WARNING}
    assert [each.remedy == "orderflow topics apply" for each in found] == [True, False, True]


# -- PostgreSQL --------------------------------------------------------------------------------------------------------


def inspection(**changes: object) -> Inspection:
    as_it_should_be: dict[str, object] = {
        "seconds": 0.01,
        "version": "18.4",
        "takes_writes": True,
        "synchronous_commit": "on",
        "connections": 10,
        "most_connections": 100,
        "clock_seconds": 0.0,
        "role": "shop",
        "missing": (),
        "refused": {},
    }
    return Inspection(**as_it_should_be | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"takes_writes": False}, {"postgresql": WRONG}),
        ({"version": "16.2"}, {"postgresql version": WARNING}),
        ({"synchronous_commit": "remote_apply"}, {}),
        ({"synchronous_commit": "off"}, {"postgresql settings": WRONG}),
        ({"synchronous_commit": "local"}, {"postgresql settings": WRONG}),
        ({"connections": 81}, {"postgresql settings": WARNING}),
        ({"clock_seconds": -1.5}, {"clock": WARNING}),
        ({"clock_seconds": 31.0}, {"clock": WRONG}),
        ({"clock_seconds": 1.5, "seconds": 0.6}, {}),  # the question took that long
    ],
)
def test_a_database(changes: dict[str, object], expected: dict[str, Verdict]) -> None:
    found = diagnosis.database(inspection(**changes))
    well = {"postgresql": OK, "postgresql version": OK, "clock": OK}
    assert verdicts(found) == well | expected
    assert all(each.remedy for each in found if each.verdict is not OK)


def test_rights_on_tables() -> None:
    assert verdicts(diagnosis.database_rights(inspection())) == {"postgresql rights": OK}
    refused = inspection(refused={"orders": ("INSERT", "UPDATE")}, missing=("stock",))
    missing, lacking = diagnosis.database_rights(refused)
    assert (missing.verdict, lacking.verdict) == (WRONG, WRONG)
    assert lacking.remedy == "grant insert, update on orders to shop"
    assert "stock" in missing.found


def test_the_tables_are_those_of_the_migrations() -> None:
    assert {"orders", "reconciliation_cases", "user_hash_keys"} <= tables()
    assert "if" not in tables()


FILE = Migration("0099_more.sql", "")


@pytest.mark.parametrize(
    ("compared", "verdict", "text"),
    [
        (Comparison([], [], [], []), OK, "all are applied"),
        (Comparison([FILE], [], [], []), WRONG, "the database is behind: 0099_more.sql"),
        (Comparison([], ["0100"], [], []), WARNING, "the database is ahead by what only expands: 0100"),
        (Comparison([], ["0100", "0101"], ["0101"], []), WRONG, "does not work with: 0101"),
        (Comparison([], [], [], ["0001"]), WRONG, "changed since: 0001"),
    ],
)
def test_migrations(compared: Comparison, verdict: Verdict, text: str) -> None:
    (found,) = diagnosis.migrations(compared)
    assert found.verdict is verdict
    assert text in found.found


# -- settings, exit codes ----------------------------------------------------------------------------------------------


def test_wrong_settings_are_told_each_and_nothing_is_reached_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERFLOW_KAFKA_BOOTSTRP", "x")
    monkeypatch.setenv("ORDERFLOW_DATABASE_POOL_SIZE", "0")
    found = asyncio.run(diagnosis.examine(Connection(), list(diagnosis.roles(()))))
    told = [each.found for each in found if each.subject == "settings"]
    assert [text.partition(":")[0] for text in told] == ["ORDERFLOW_DATABASE_POOL_SIZE", "ORDERFLOW_KAFKA_BOOTSTRP"]
    assert found[-1].verdict is UNKNOWN


@pytest.mark.parametrize(
    ("name", "value", "role"),
    [
        ("ORDERFLOW_SERVER_LISTEN", "0.0.0.0:50051", "server"),
        ("ORDERFLOW_EMAIL_SENDER", "nobody", "notification-email"),
        ("ORDERFLOW_RETENTION_OUTCOMES_DAYS", "1", "projector"),
    ],
)
def test_what_a_process_would_find_out_when_it_starts(
    name: str, value: str, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    wrong = [each.found for each in diagnosis._settings(diagnosis.all_settings.load(), [role]) if each.verdict is WRONG]
    assert len(wrong) == 1
    assert wrong[0].startswith(name)


@pytest.mark.parametrize(("verdict", "code"), [(OK, 0), (WARNING, 0), (UNKNOWN, 0), (WRONG, 1)])
def test_only_what_is_wrong_fails(
    verdict: Verdict, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []

    async def examine(_: Connection, chosen: list[str]) -> list[Finding]:
        asked.append(chosen)
        return [Finding("kafka", OK, "answers"), Finding("clock", verdict, "so it is", "mend it")]

    monkeypatch.setattr(diagnosis, "examine", examine)
    monkeypatch.setattr(sys, "argv", ["orderflow", "doctor", "-o", "json", "--role", "projector"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert (end.value.code or 0) == code
    assert json.loads(capsys.readouterr().out)[1] == {
        "subject": "clock", "verdict": verdict.value, "found": "so it is", "what_to_do": "mend it"
    }  # fmt: skip
    assert asked == [["projector"]]


def test_a_process_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["orderflow", "doctor", "--role", "nobody"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 2
