"""What `orderflow doctor` examines: settings, what they lead to, and whether that goes with this version."""

import asyncio
import dataclasses
import enum
import functools
import platform
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import settings as all_settings
from cli import checks, locked
from cli.output import told
from cli.plugin import Threshold

if TYPE_CHECKING:
    from cli.connection import Connection
    from messaging.broker_facts import Facts
    from messaging.topic_admin import Drift
    from messaging.topics import Topic
    from settings import EmailSettings, Settings
    from storage.inspection import Inspection
    from storage.migrate import Comparison

TESTED_KAFKA: Final = "4.4"
TESTED_POSTGRESQL: Final = "18"

_CLOCK_WARNING_SECONDS: Final = 1.0
_CLOCK_WRONG_SECONDS: Final = 30.0
_ANSWER_SECONDS: Final = 10.0
_PYTHON: Final = (3, 11)


class Verdict(enum.StrEnum):
    """What a finding comes to."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"
    UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was examined.

    Attributes:
        subject: What.
        verdict: What it comes to. UNKNOWN: it could not be examined.
        found: What was seen.
        remedy: What to do, where there is something.
    """

    subject: str
    verdict: Verdict
    found: str
    remedy: str = ""


@dataclasses.dataclass(frozen=True)
class Role:
    """What a process needs of Kafka. A group is its own."""

    reads: "tuple[Topic, ...]" = ()
    writes: "tuple[Topic, ...]" = ()
    group: str = ""


def roles(delays: Sequence[int]) -> dict[str, Role]:
    """Returns the processes by their names, as `orderflow run` has them."""
    from messaging.topics import ALL, DEAD_LETTERS, GROUPS, NOTIFICATIONS, ORDERS, PAYMENTS, retry_topics
    from workers import notification_service, order_processor, payment_processor, projector

    every_retry = tuple(topic for group in GROUPS for topic in retry_topics(group, delays))
    needs = {"server": Role(writes=(ORDERS, *every_retry))}
    for spec, outputs in (
        (order_processor.SPEC, (ORDERS,)),
        (payment_processor.SPEC, (PAYMENTS,)),
        (notification_service.EMAIL_SPEC, (NOTIFICATIONS,)),
        (notification_service.SMS_SPEC, (NOTIFICATIONS,)),
    ):
        own = retry_topics(spec.group, delays)
        needs[spec.group] = Role((*spec.reads, *own), (*outputs, *own, DEAD_LETTERS), spec.group)
    needs[projector.GROUP] = Role(reads=ALL, group=projector.GROUP)
    needs["reconciler"] = Role()
    needs["webhook"] = Role(writes=(ORDERS,))
    return needs


_NO_DATABASE: Final = ("webhook",)
_NO_KAFKA: Final = ("reconciler",)


async def examine(connection: "Connection", chosen: Sequence[str]) -> list[Finding]:
    """Examines what the processes need that were chosen. What hangs on something that is away is not examined."""
    found = [python(), *libraries()]
    try:
        settings = all_settings.load()
    except all_settings.SettingsError as error:
        rest = Finding("everything else", Verdict.UNKNOWN, "not examined while settings are wrong", "mend them first")
        return [*_wrong_settings(error), *found, rest]
    parts: list[Awaitable[list[Finding]]] = []
    if any(role not in _NO_KAFKA for role in chosen):
        parts.append(_part("kafka", lambda: _kafka(settings, chosen), _KAFKA_AWAY))
    if any(role not in _NO_DATABASE for role in chosen):
        parts.append(_part("postgresql", lambda: _database(settings), _DATABASE_AWAY))
    if "server" in chosen:
        parts.append(_part("server", lambda: _server(connection), _SERVER_AWAY))
    if {"payment-processor", "reconciler"} & set(chosen):
        parts.append(_part("gateway", lambda: _gateway(settings), _GATEWAY_AWAY))
    if "notification-email" in chosen:
        parts.append(_part("smtp", lambda: _smtp(settings.email), _SMTP_AWAY))
    if "notification-sms" in chosen and settings.sms.kind == "http":
        parts.append(_part("sms", lambda: _sms(settings), _SMS_AWAY))
    examined = await asyncio.gather(*parts)
    return [*_settings(settings, chosen), *found, *(finding for part in examined for finding in part)]


_KAFKA_AWAY: Final = "start Kafka, or set ORDERFLOW_KAFKA_BOOTSTRAP and the settings beside it"
_DATABASE_AWAY: Final = "start PostgreSQL, or set ORDERFLOW_DATABASE_URL"
_SERVER_AWAY: Final = "orderflow run server; or name another with --target and the TLS flags"
_GATEWAY_AWAY: Final = "look at the gateway and the network before it; ORDERFLOW_GATEWAY_URL, ORDERFLOW_STRIPE_URL"
_SMTP_AWAY: Final = "look at the mail server; ORDERFLOW_EMAIL_HOST and the settings beside it"
_SMS_AWAY: Final = "look at the provider of text messages; ORDERFLOW_SMS_URL"


async def _part(subject: str, look: Callable[[], Awaitable[list[Finding]]], remedy: str) -> list[Finding]:
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            return await look()
    except TimeoutError:
        return [Finding(subject, Verdict.WRONG, f"no answer within {_ANSWER_SECONDS:.0f} s", remedy)]
    except checks.Unreadable as error:
        return [Finding(subject, Verdict.WRONG, str(error), remedy)]
    except Exception as error:
        return [Finding(subject, Verdict.WRONG, told(error) or f"{type(error).__name__}: {error}", remedy)]


# -- this process ------------------------------------------------------------------------------------------------------


def python() -> Finding:
    """Examines the interpreter."""
    version = platform.python_version()
    if tuple(int(part) for part in platform.python_version_tuple()[:2]) < _PYTHON:
        return Finding("python", Verdict.WRONG, version, f"use Python {_PYTHON[0]}.{_PYTHON[1]} or newer")
    return Finding("python", Verdict.OK, version)


def libraries() -> list[Finding]:
    """Compares the libraries with what is locked."""
    wanted = locked.locked()
    if not wanted:
        return [Finding("libraries", Verdict.UNKNOWN, "the list of locked versions is not installed")]
    differing = locked.differences(wanted)
    if not differing:
        return [Finding("libraries", Verdict.OK, f"{len(wanted)} as locked")]
    return [
        Finding(
            f"library {each.name}",
            Verdict.WARNING if each.installed else Verdict.WRONG,
            f"{each.installed or 'missing'}, locked is {each.locked}",
            "pip install --require-hashes -r requirements/runtime.txt",
        )
        for each in differing
    ]


def _wrong_settings(error: Exception) -> list[Finding]:
    heading, *problems = str(error).splitlines()
    return [
        Finding("settings", Verdict.WRONG, problem.strip(), "docs/settings.md has them all")
        for problem in problems or [heading]
    ]


def _settings(settings: "Settings", chosen: Sequence[str]) -> list[Finding]:
    """Examines what a process finds out of its settings when it starts: each has more to say than that it parses."""
    from cli.retention import refuse_short
    from server import listener
    from workers.channels import choice

    starts: dict[str, Callable[[], object]] = {
        "server": lambda: listener.check(settings),
        "notification-email": lambda: choice.email_channel(settings.email),
        "notification-sms": lambda: choice.sms_channel(settings.sms),
    }
    found: list[Finding] = []
    starting = [starts[role] for role in chosen if role in starts]
    starting.append(functools.partial(refuse_short, settings))
    for start in starting:
        try:
            start()
        except all_settings.SettingsError as error:
            found += _wrong_settings(error)
    if settings.kafka.replication_factor < 3:
        text = f"ORDERFLOW_KAFKA_REPLICATION_FACTOR is {settings.kafka.replication_factor}"
        remedy = "3 on a real cluster, with ORDERFLOW_KAFKA_MIN_INSYNC_REPLICAS=2: one disk must not lose an order"
        found.append(Finding("settings", Verdict.WARNING, text, remedy))
    if settings.gateway.kind == "simulated":
        text = "ORDERFLOW_GATEWAY_KIND is simulated: nobody is charged"
        found.append(Finding("settings", Verdict.WARNING, text, "docs/payments.md"))
    return found or [Finding("settings", Verdict.OK, "all are understood")]


# -- Kafka -------------------------------------------------------------------------------------------------------------


async def _kafka(settings: "Settings", chosen: Sequence[str]) -> list[Finding]:
    from messaging import broker_facts, brokers
    from messaging.topics import all_topics

    kafka, topics = settings.kafka, all_topics(settings.kafka.retry_delay_seconds)
    seen = await brokers.look(kafka, topics, client_id="orderflow-doctor")
    silent = sorted(seen.known - seen.answering)
    found = [
        Finding(
            "kafka", Verdict.WRONG, f"broker {silent} does not answer", "start it; look at its address and firewall"
        )
        if silent
        else Finding("kafka", Verdict.OK, f"{len(seen.answering)} brokers answer at {kafka.bootstrap}")
    ]
    needs = {role: need for role, need in roles(kafka.retry_delay_seconds).items() if role in chosen}
    groups = sorted({need.group for need in needs.values() if need.group})
    facts = await broker_facts.ask(
        kafka, topics=[topic.name for topic in topics], groups=groups, client_id="orderflow-doctor"
    )
    found += kafka_versions(facts)
    found += await _part("topics", lambda: _topics(settings), "see the brokers' logs; doctor needs DescribeConfigs")
    user = kafka.sasl_username or "ANONYMOUS"
    return [*found, *kafka_rights(facts, needs.values(), user)]


async def _topics(settings: "Settings") -> list[Finding]:
    from messaging import topic_admin

    return topics_drift(await topic_admin.plan(settings.kafka))


def topics_drift(drift: "Sequence[Drift]") -> list[Finding]:
    """Returns where topics are not as the catalogue has them."""
    if not drift:
        return [Finding("topics", Verdict.OK, "all are as they should be")]
    return [
        Finding(
            f"topic {each.topic}",
            Verdict.WRONG if each.what in ("topic", "partitions") else Verdict.WARNING,
            f"{each.what} is {each.found}, should be {each.wanted}",
            "orderflow topics apply"
            if each.can_be_applied
            else "docs/upgrades.md says how: it is not changed by itself",
        )
        for each in drift
    ]


def kafka_versions(facts: "Facts") -> list[Finding]:
    """Compares the brokers' releases with the tested one."""
    listed = ", ".join(f"broker {node}: {release}" for node, release in sorted(facts.releases.items()))
    releases = set(facts.releases.values())
    if releases != {TESTED_KAFKA}:
        return [Finding("kafka version", Verdict.WARNING, listed, f"tested with {TESTED_KAFKA} on every broker")]
    return [Finding("kafka version", Verdict.OK, listed)]


def kafka_rights(facts: "Facts", needs: Iterable[Role], user: str) -> list[Finding]:
    """Returns which topics and groups the user may not use as its processes do."""
    from messaging.broker_facts import READ, WRITE

    lacking: dict[tuple[str, str, str], None] = {}
    for need in needs:
        for operation, topics in ((READ, need.reads), (WRITE, need.writes)):
            for topic in topics:
                if topic.name in facts.topics and operation not in facts.topics[topic.name]:
                    lacking["topic", topic.name, operation] = None
        if need.group and READ not in facts.groups.get(need.group, frozenset((READ,))):
            lacking["group", need.group, READ] = None
    if not lacking:
        return [Finding("kafka rights", Verdict.OK, f"{user} may read and write what it needs")]
    return [
        Finding(
            f"kafka rights: {kind} {name}",
            Verdict.WRONG,
            f"{user} may not {operation.lower()}",
            f"kafka-acls.sh --add --allow-principal User:{user} --operation {operation} --{kind} {name}",
        )
        for kind, name, operation in lacking
    ]


# -- PostgreSQL --------------------------------------------------------------------------------------------------------


async def _database(settings: "Settings") -> list[Finding]:
    from storage import inspection

    seen = await inspection.inspect(settings.database)
    found = database(seen)
    applied = await _part("migrations", lambda: _migrations(settings), "grant select on schema_migrations")
    # What is missing is missing because it is not migrated.
    is_migrated = all(each.verdict is not Verdict.WRONG for each in applied)
    return [*found, *applied, *(database_rights(seen) if is_migrated else [])]


async def _migrations(settings: "Settings") -> list[Finding]:
    from storage import migrate

    return migrations(await migrate.compare(settings.database))


def database(seen: "Inspection") -> list[Finding]:
    """Returns what a look at PostgreSQL comes to: whether it goes with this version, and its clock with ours."""
    found = [Finding("postgresql", Verdict.OK, f"answers, and takes writes of {seen.role}")]
    if not seen.takes_writes:
        remedy = "name the primary in ORDERFLOW_DATABASE_URL (target_session_attrs=read-write finds it)"
        found = [Finding("postgresql", Verdict.WRONG, "takes no writes: a standby, or read only", remedy)]
    if seen.version.split(".")[0] == TESTED_POSTGRESQL:
        found.append(Finding("postgresql version", Verdict.OK, seen.version))
    else:
        found.append(Finding("postgresql version", Verdict.WARNING, seen.version, f"tested with {TESTED_POSTGRESQL}"))
    if seen.synchronous_commit not in ("on", "remote_apply"):
        remedy = f"alter role {seen.role} set synchronous_commit = on: a commit that is forgotten is a charge forgotten"
        found.append(
            Finding("postgresql settings", Verdict.WRONG, f"synchronous_commit={seen.synchronous_commit}", remedy)
        )
    used = seen.connections / seen.most_connections
    if used > 0.8:
        text = f"{seen.connections} of {seen.most_connections} connections are open"
        remedy = "max_connections, or ORDERFLOW_DATABASE_POOL_SIZE: docs/scaling.md"
        found.append(Finding("postgresql settings", Verdict.WARNING, text, remedy))
    return [*found, clock(seen.clock_seconds, seen.seconds)]


def clock(ahead: float, within: float) -> Finding:
    """Compares PostgreSQL's clock with ours. Less than what the question took is no difference."""
    off = max(abs(ahead) - within, 0.0)
    text = f"PostgreSQL's is {abs(ahead):.3f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    remedy = "synchronise both with NTP: payments go by this machine's clock, orders are listed by it"
    if off > _CLOCK_WRONG_SECONDS:
        return Finding("clock", Verdict.WRONG, text, remedy)
    if off > _CLOCK_WARNING_SECONDS:
        return Finding("clock", Verdict.WARNING, text, remedy)
    return Finding("clock", Verdict.OK, text)


def migrations(compared: "Comparison") -> list[Finding]:
    """Returns whether the database is behind, ahead, or another one."""
    found = []
    if compared.changed:
        remedy = "this is another version's database, or a file was edited: add a new file instead"
        found.append(Finding("migrations", Verdict.WRONG, f"changed since: {', '.join(compared.changed)}", remedy))
    if compared.in_the_way:
        text = f"the database is ahead by what this version does not work with: {', '.join(compared.in_the_way)}"
        found.append(Finding("migrations", Verdict.WRONG, text, "run the newer version; docs/upgrades.md"))
    elif compared.ahead:
        text = f"the database is ahead by what only expands: {', '.join(compared.ahead)}"
        remedy = "nothing: this version works with it; purge and erase with the newer one"
        found.append(Finding("migrations", Verdict.WARNING, text, remedy))
    if compared.pending:
        text = f"the database is behind: {', '.join(each.name for each in compared.pending)}"
        found.append(Finding("migrations", Verdict.WRONG, text, "orderflow db plan, then orderflow db migrate"))
    return found or [Finding("migrations", Verdict.OK, "all are applied")]


def database_rights(seen: "Inspection") -> list[Finding]:
    """Returns which tables the role may not use as the processes do."""
    found = [
        Finding("postgresql rights", Verdict.WRONG, f"there is no table {name} on {seen.role}'s search_path",
                "set search_path to the schema that was migrated; else restore: docs/upgrades.md")
        for name in seen.missing
    ]  # fmt: skip
    found += [
        Finding(
            f"postgresql rights: {name}",
            Verdict.WRONG,
            f"{seen.role} may not {', '.join(refused).lower()}",
            f"grant {', '.join(refused).lower()} on {name} to {seen.role}",
        )
        for name, refused in sorted(seen.refused.items())
    ]
    return found or [Finding("postgresql rights", Verdict.OK, f"{seen.role} may use every table")]


# -- around it ---------------------------------------------------------------------------------------------------------


async def _server(connection: "Connection") -> list[Finding]:
    from cli.plugin import State

    result = await checks.server(connection, Threshold(), timeout=_ANSWER_SECONDS)
    if result.state is not State.OK:
        return [Finding("server", Verdict.WRONG, result.summary, "see what is wrong with Kafka, and its log")]
    return [Finding("server", Verdict.OK, result.summary)]


async def _gateway(settings: "Settings") -> list[Finding]:
    if settings.gateway.kind == "simulated":
        return [Finding("gateway", Verdict.OK, "simulated, inside the payment processor")]
    url = settings.stripe.url if settings.gateway.kind == "stripe" else settings.gateway.url
    return [Finding("gateway", Verdict.OK, f"{url} answers ({await _http(url)})")]


async def _sms(settings: "Settings") -> list[Finding]:
    assert settings.sms.url is not None
    answer = await _http(settings.sms.url, ca_file=settings.sms.ca_file)
    return [Finding("sms", Verdict.OK, f"{settings.sms.url} answers ({answer})")]


async def _http(url: str, *, ca_file: str | None = None) -> str:
    """Returns the status of whatever answers, without credentials: any answer shows that there is somebody."""
    import ssl

    import httpx

    context = ssl.create_default_context(cafile=ca_file)
    try:
        async with httpx.AsyncClient(verify=context, trust_env=False, timeout=_ANSWER_SECONDS / 2) as client:
            return f"HTTP {(await client.head(url)).status_code}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise checks.Unreadable(f"{url}: {type(error).__name__}: {error}") from error


async def _smtp(email: "EmailSettings") -> list[Finding]:
    from domain.failures import DependencyDown
    from workers.channels import choice

    channel = choice.email_channel(email)
    try:
        await channel.greet()
    except DependencyDown as down:
        raise checks.Unreadable(f"{email.host}:{email.port}: {down.message}") from down
    finally:
        await channel.aclose()
    logged_in = f", and lets {email.username} in" if email.username else ""
    return [Finding("smtp", Verdict.OK, f"{email.host}:{email.port} answers{logged_in}")]
