"""What `orderflow check` looks at. Each check reads once, changes nothing, and raises when it cannot read.

What callers see goes through the server, with the operator's own credentials; what the server stands on is looked at
directly, so that it can be seen while the server is away.
"""

import asyncio
import contextlib
import datetime
import ipaddress
import pathlib
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from cli.plugin import Measure, Result, State, Threshold, judged, span, worst

if TYPE_CHECKING:
    import grpc

    from cli.connection import Connection
    from messaging.backlog import Backlog
    from settings import Settings
    from storage.database import Database
    from storage.standing import Standing

_T = TypeVar("_T")

_ALL_SERVICES: Final = ""


class Unreadable(Exception):
    """A check could not look. The text says at what, and why."""


# -- through the server ------------------------------------------------------------------------------------------------


async def server(connection: "Connection", threshold: Threshold, *, timeout: float) -> Result:
    """Asks the server whether it serves, as a health probe does.

    Raises:
        Unreadable: it does not answer.
    """
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    def ask(channel: "grpc.Channel") -> tuple[health_pb2.HealthCheckResponse, float]:
        request = health_pb2.HealthCheckRequest(service=_ALL_SERVICES)
        began = time.monotonic()  # here, so that what this process itself loads first is not held against the server
        return health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout), time.monotonic() - began

    answer, took = await _called(connection, ask)
    time_ = Measure("time", took, "s", threshold)
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        summary = f"{connection.target} is {status}: it does not reach Kafka, or is stopping"
        return Result("server", State.CRITICAL, summary, measures=[time_])
    return judged("server", [time_], f"{connection.target} is SERVING, answered in {span(time_.value)}")


async def dlq(connection: "Connection", threshold: Threshold, *, oldest: float, timeout: float) -> Result:
    """Counts dead letters that wait for somebody. One that has waited for longer than `oldest` seconds is a warning.

    Raises:
        Unreadable: the server does not answer, or refuses.
    """
    from orderflow.operations.v1 import dead_letter_service_pb2 as pb
    from orderflow.operations.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub

    def ask(channel: "grpc.Channel") -> pb.SummarizeDeadLettersResponse:
        return DeadLetterServiceStub(channel).SummarizeDeadLetters(pb.SummarizeDeadLettersRequest(), timeout=timeout)

    summaries = (await _called(connection, ask)).summaries
    now = time.time()
    count = sum(each.count for each in summaries)
    age = max((now - each.first_time.ToDatetime(datetime.UTC).timestamp() for each in summaries), default=0.0)
    measures = [
        Measure("unresolved", count, threshold=threshold),
        Measure("oldest", max(age, 0.0), "s", Threshold(warn=oldest)),
    ]
    details = [
        f"{each.group} {each.error_class}: {each.count} of {each.order_count} orders, the first "
        f"{span(now - each.first_time.ToDatetime(datetime.UTC).timestamp())} ago"
        for each in sorted(summaries, key=lambda each: each.count, reverse=True)
    ]
    if not count:
        return judged("dlq", measures, "no dead letter waits for anybody")
    return judged("dlq", measures, f"{count} dead letters wait for somebody, the oldest for {span(age)}", details)


async def _called(connection: "Connection", ask: "Callable[[grpc.Channel], _T]") -> _T:
    import grpc

    def call() -> _T:
        with connection.channel() as channel:
            try:
                return ask(channel)
            except grpc.RpcError as error:
                status = error.code()
                raise Unreadable(f"the server at {connection.target}: {status.name}: {error.details()}") from error

    return await asyncio.to_thread(call)


# -- its certificate ---------------------------------------------------------------------------------------------------


async def cert(connection: "Connection", threshold: Threshold) -> Result:
    """Looks at the certificate that the server shows, as a caller does, and at the caller's own if there is one.

    Raises:
        Unreadable: nobody answers there, or the flags do not say to use TLS.
    """
    if not connection.uses_tls:
        raise Unreadable("without --tls or --tls-ca the connection has no certificate")
    host, port = _address(connection.target)
    now = time.time()
    measures, details = [], []
    if connection.tls_certificate is not None:
        ends = _first_end(connection.tls_certificate)
        measures.append(Measure("own", ends - now, "s", threshold))
        details.append(f"{connection.tls_certificate} (your own) {_ends(ends, now)}")
    try:
        ends = await _shown_end(connection, host, port)
    except ssl.SSLCertVerificationError as error:
        summary = f"callers refuse the certificate of {connection.target}: {error.verify_message}"
        return Result("cert", State.CRITICAL, summary, details, measures)
    except OSError as error:  # an ssl.SSLError is one
        raise Unreadable(f"{connection.target}: {error}") from error
    measures.insert(0, Measure("server", ends - now, "s", threshold))
    details.insert(0, f"{connection.target} {_ends(ends, now)}")
    state = worst(measure.state for measure in measures)
    told = next(detail for detail, measure in zip(details, measures, strict=True) if measure.state is state)
    return judged("cert", measures, told, details)


def _ends(ends: float, now: float) -> str:
    day = datetime.datetime.fromtimestamp(ends, datetime.UTC).date().isoformat()
    return f"ends on {day}, in {span(ends - now)}" if ends > now else f"ended on {day}"


async def _shown_end(connection: "Connection", host: str, port: int) -> float:
    context = ssl.create_default_context(cafile=connection.tls_ca)
    context.set_alpn_protocols(["h2"])
    if connection.tls_certificate is not None:
        context.load_cert_chain(connection.tls_certificate, connection.tls_key)
    _, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        shown = writer.get_extra_info("peercert")
        return float(ssl.cert_time_to_seconds(shown["notAfter"]))
    finally:
        writer.transport.abort()


def _first_end(path: pathlib.Path) -> float:
    from cryptography import x509

    try:
        chain = x509.load_pem_x509_certificates(path.read_bytes())
    except ValueError as error:
        raise Unreadable(f"{path}: {error}") from error
    return min(each.not_valid_after_utc.timestamp() for each in chain)


def _address(target: str) -> tuple[str, int]:
    name = target.rpartition("/")[2] if target.startswith("dns:") else target.removeprefix("ipv4:")
    host, _, port = name.removeprefix("dns:").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or "," in name:
        raise Unreadable(f"--target {target}: name one server as host:port to look at its certificate")
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host)), int(port)
    return host, int(port)


# -- what it stands on -------------------------------------------------------------------------------------------------


async def kafka(settings: "Settings") -> Result:
    """Looks whether every broker answers and every partition can be written to.

    Raises:
        KafkaError: no broker answers.
    """
    from messaging import brokers
    from messaging.topics import all_topics

    seen = await brokers.look(
        settings.kafka, all_topics(settings.kafka.retry_delay_seconds), client_id="orderflow-check"
    )
    silent = sorted(seen.known - seen.answering)
    details = [
        *(f"topic {name} is missing: orderflow topics apply" for name in seen.missing),
        *(f"{each.topic}-{each.partition} takes no records: too few replicas answer" for each in seen.refusing),
        *(f"broker {node} does not answer" for node in silent),
        *(f"{each.topic}-{each.partition} has replicas that are not in sync" for each in seen.short),
    ]
    if not seen.answering or seen.missing or seen.refusing:
        state = State.CRITICAL
    else:
        state = State.WARNING if silent or seen.short else State.OK
    answer = f"{len(seen.answering)} of {len(seen.known)} brokers answer"
    summary = f"{answer}, every partition takes records" if state is State.OK else f"{answer}; {details[0]}"
    if len(details) > 1:
        summary += f" (and {len(details) - 1} more)"
    measures = [
        Measure("brokers", len(seen.answering)),
        Measure("refusing_partitions", len(seen.refusing)),
        Measure("short_partitions", len(seen.short)),
    ]
    return Result("kafka", state, summary, details, measures)


async def db(settings: "Settings", threshold: Threshold) -> Result:
    """Looks whether PostgreSQL answers in time and takes writes, and whether it is migrated.

    Raises:
        DependencyDown: it is away, or lets nobody in.
        MigrationError: what was applied does not go with this version.
    """
    from storage import inspection, migrate

    seen = await inspection.inspect(settings.database)
    measures = [
        Measure("time", seen.seconds, "s", threshold),
        Measure("connections", seen.connections),
        Measure("connections_limit", seen.most_connections),
    ]
    answered = f"PostgreSQL {seen.version} answered in {span(seen.seconds)}"
    if not seen.takes_writes:
        summary = f"{answered} and takes no writes: it is a standby, or read only"
        return Result("db", State.CRITICAL, summary, measures=measures)
    result = judged("db", measures, f"{answered}, {seen.connections} of {seen.most_connections} connections")
    pending = await migrate.pending(settings.database)
    if pending and result.state is State.OK:
        summary = f"{answered}; {len(pending)} migrations are pending, no worker starts: orderflow db migrate"
        return Result("db", State.WARNING, summary, [migration.name for migration in pending], measures)
    return result


# -- how far the work has come -----------------------------------------------------------------------------------------


async def lag(settings: "Settings", threshold: Threshold, groups: Sequence[str]) -> Result:
    """Looks since when the oldest record waits that a group has to handle. What is unknown of one is not 0.

    Raises:
        KafkaError: Kafka is away.
    """
    parts = await asyncio.gather(*(_lag_of(settings, group) for group in groups))
    return lag_of(dict(zip(groups, parts, strict=True)), threshold, now=time.time())


def lag_of(found: "Mapping[str, Sequence[Backlog] | str]", threshold: Threshold, *, now: float) -> Result:
    """Returns what the groups' backlogs come to; a text says why that of a group could not be read."""
    states, details, measures = [], [], []
    for group, backlogs in found.items():
        if isinstance(backlogs, str):
            states.append(State.UNKNOWN)
            details.append((State.UNKNOWN, f"{group}: unknown, {backlogs}"))
            measures.append(Measure(f"{group}_age", float("nan"), "s", threshold))
            continue
        behind = [each for each in backlogs if each.since is not None]
        oldest = min(behind, key=lambda each: each.since or 0.0, default=None)
        age = max(now - oldest.since, 0.0) if oldest is not None and oldest.since is not None else 0.0
        records = sum(each.records for each in backlogs)
        lost = [each.partition for each in backlogs if each.is_lost]
        unknown = [each.partition for each in backlogs if not each.is_known]
        if lost:
            state = State.CRITICAL
            text = f"its place on {_named(lost)} is lost: records were deleted that it had not handled"
        elif threshold.judge(age) is State.OK and unknown:
            state, text = State.UNKNOWN, f"has no place on {_named(unknown)}: it never started, or lost it"
        else:
            state = threshold.judge(age)
            at = f" on {_named([oldest.partition])}" if oldest is not None else ""
            text = f"oldest {span(age)}{at}, {records} records" if oldest is not None else "nothing waits"
        states.append(state)
        details.append((state, f"{group}: {text}"))
        is_known = not lost and not unknown
        measures.append(Measure(f"{group}_age", age if is_known or age else float("nan"), "s", threshold))
        measures.append(Measure(f"{group}_records", records if is_known else float("nan")))
    state = worst(states)
    wrong = [text for each, text in details if each is state]
    others = sum(each not in (state, State.OK) for each in states)
    summary = (
        "no group is behind" if state is State.OK else "; ".join(wrong) + (f" (and {others} more)" if others else "")
    )
    return Result("lag", state, summary, [text for _, text in details], measures)


def _named(partitions: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{topic}-{number}" for topic, number in partitions)


def groups() -> dict[str, str]:
    """Returns the names that `lag` takes, and where each keeps its positions."""
    from messaging.topics import GROUPS
    from workers import projector

    return {**dict.fromkeys(GROUPS, "Kafka"), projector.GROUP: "PostgreSQL"}


async def _lag_of(settings: "Settings", group: str) -> "Sequence[Backlog] | str":
    from aiokafka import TopicPartition

    from domain.failures import DependencyDown
    from messaging import backlog
    from messaging.topics import retry_topics
    from storage.projection import Projection
    from workers import notification_service, order_processor, payment_processor, projector

    kafka = settings.kafka
    if group == projector.GROUP:
        try:
            async with _opened(settings) as database:
                positions = await Projection(database).positions()
        except DependencyDown as down:
            return f"PostgreSQL, which has its positions, cannot be read ({down})"
        places = {TopicPartition(*at): (position, "") for at, position in positions.items()}
        return await backlog.backlogs(kafka, projector.READS, places)
    specs = (
        order_processor.SPEC,
        payment_processor.SPEC,
        notification_service.EMAIL_SPEC,
        notification_service.SMS_SPEC,
    )
    reads = next(spec.reads for spec in specs if spec.group == group)
    topics = (*reads, *retry_topics(group, kafka.retry_delay_seconds))
    return await backlog.backlogs(kafka, topics, await backlog.committed(kafka, group, topics))


async def orders(settings: "Settings", threshold: Threshold, *, unknown: float) -> Result:
    """Counts orders that stay where they are for longer than they may.

    A charge of which nobody knows for longer than `unknown` seconds what it came to is critical.

    Raises:
        DependencyDown: PostgreSQL is away, or too busy.
    """
    from storage.standing import StandingRecords
    from workers import app

    now = datetime.datetime.now(datetime.UTC)
    async with _opened(settings) as database:
        standing = await StandingRecords(database, patience=app.patience(settings)).read(now)
    return orders_of(standing, threshold, unknown=unknown, now=now)


def orders_of(standing: "Standing", threshold: Threshold, *, unknown: float, now: datetime.datetime) -> Result:
    """Returns what a reading of the orders comes to."""
    since = standing.unknown_since
    age = max((now - since).total_seconds(), 0.0) if since is not None else 0.0
    overdue, opened = sum(standing.overdue.values()), sum(standing.open.values())
    measures = [
        Measure("overdue", overdue, threshold=threshold),
        Measure("payment_unknown", age, "s", Threshold(crit=unknown)),
        *(Measure(f"open_{state}", count) for state, count in standing.open.items()),
    ]
    details = [
        f"{state}: {standing.overdue[state]} of {count} overdue" for state, count in standing.open.items() if count
    ]
    told = f"{overdue} of {opened} open orders are overdue" if overdue else f"{opened} open orders, none overdue"
    if since is not None:
        told += f"; for {span(age)} nobody knows what a charge came to"
    return judged("orders", measures, told, details)


async def ledger(settings: "Settings", threshold: Threshold, *, stale: float) -> Result:
    """Counts what the gateway, the payments and the orders did not agree on when the reconciler last compared them.

    Where nothing was compared for longer than `stale` seconds, that there is no difference is not known.

    Raises:
        DependencyDown: PostgreSQL is away.
    """
    from storage.reconciliation_cases import ReconciliationCases

    async with _opened(settings) as database:
        cases = ReconciliationCases(database)
        counts, until = await cases.counts(), await cases.reconciled_until()
    age = time.time() - until.timestamp() if until is not None else None
    return ledger_of({kind.name: count for kind, count in counts.items()}, age, threshold, stale=stale)


def ledger_of(counts: Mapping[str, int], age: float | None, threshold: Threshold, *, stale: float) -> Result:
    """Returns what a reading of the reconciliation comes to; `age` is of what was compared last, None: nothing was."""
    total = sum(counts.values())
    differences = Measure("differences", total, threshold=threshold)
    compared = Measure("compared", age if age is not None else float("nan"), "s")
    details = [f"{kind}: {count}" for kind, count in counts.items() if count]
    if age is None:
        told = "nothing was ever compared: is the reconciler running?"
    elif age > stale:
        told = f"nothing was compared for {span(age)}: is the reconciler running?"
    else:
        told = f"compared up to {span(age)} ago"
    if differences.state is not State.OK:
        summary = f"{total} differences: orderflow reconcile lists them; {told}"
        return Result("ledger", differences.state, summary, details, [differences, compared])
    if age is None or age > stale:
        unknown = [Measure("differences", float("nan"), threshold=threshold), compared]
        return Result("ledger", State.UNKNOWN, told, details, unknown)
    return Result("ledger", State.OK, f"{total} differences, {told}", details, [differences, compared])


@contextlib.asynccontextmanager
async def _opened(settings: "Settings") -> "AsyncIterator[Database]":
    from storage.database import Database

    database = Database(settings.database, application="check")
    await database.open()
    try:
        yield database
    finally:
        await database.close()
