"""Structured logs: one event name a line, ids as fields, never personal data."""

import contextvars
import datetime
import json
import logging
import sys
import time
from typing import Any, Final, Literal, cast

import structlog

from telemetry import log_hygiene, tracing

CATALOGUE: dict[str, str] = {
    "process.started": "The process serves; the fields say where.",
    "process.stopping": "A signal asked the process to end.",
    "process.stopped": "The process ended in order.",
    "process.failed": "The process ends because of an error.",
    "process.unretrieved": "An error that nobody waited for any more.",
    "kafka.reachable": "Kafka answers again, with as many replicas as an acknowledgement takes.",
    "kafka.unreachable": "Kafka does not answer, or too few replicas do; the fields say which.",
    "server.call.failed": "A call met an error that no rule foresaw; its caller saw INTERNAL.",
    "server.order.accepted": "An order is durable on Kafka and was answered OK.",
    "server.batch.accepted": "Orders of a batch are durable on Kafka; the fields say how many of those handed over.",
    "server.command.decided": "A command was decided; the fields say whose it was, and why it was refused if it was.",
    "server.request_lookup.skipped": "The look-up of a request_id had no answer in time; CreateOrder went on.",
    "notices.listening": "The server hears which orders change; every watch looks again.",
    "notices.lost": "The connection that notices come by is lost; watches look when it is back.",
    "server.certificate.renewed": "New connections see the certificate that was renewed on disk.",
    "server.certificate.refused": "A certificate that was renewed on disk cannot be used; the last one stays.",
    "server.token_keys.read": "The keys that tokens are signed with were read, or have changed.",
    "server.token_keys.unreadable": "The keys that tokens are signed with cannot be read; the last ones stay.",
    "publisher.waiting": "No producer could be opened yet; the server is NOT_SERVING and goes on trying.",
    "publisher.replaced": "The producer met an error after which it cannot be trusted, and was replaced.",
    "worker.group.registered": "A consumer group started for the first time; its first offsets are committed.",
    "worker.consumer.replaced": "A partition did not open in time; the worker joined its group anew.",
    "worker.waiting": "The worker cannot start yet; the fields say what it waits for.",
    "worker.partition.opened": "A partition's producer has fenced the last owner's, its position is known.",
    "worker.partition.closed": "A partition was drained and given up.",
    "worker.partition.reopened": "A transaction failed; the partition starts over from its committed offset.",
    "worker.partition.fenced": "Another process has taken over the partition.",
    "worker.transaction.suspect": "A transactional request was sent again; the producer is replaced.",
    "worker.record.retried": "A record failed for now and is tried again.",
    "worker.record.dead_lettered": "A record was given up on; it stands on dlq.",
    "worker.record.output_refused": "Kafka refused an output of a record for good; the record becomes a dead letter.",
    "worker.dependency.down": "A dependency is away; the worker's partitions are paused.",
    "worker.dependency.unprobed": "No record is left to ask the dependency with; the next one will.",
    "worker.dependency.up": "The dependency answers again; the worker goes on.",
    "worker.poll.failed": "Kafka answered a fetch with an error that passes.",
    "projector.record.recorded": "A record could not be read; it stands in projection_failures.",
    "projector.position.moved": "Another process moved the projection's position; this one re-reads it.",
    "worker.record.parked": "A record still fails for now and waits on a retry topic.",
    "worker.replay.claimed_elsewhere": "A second copy of a replayed dead letter; nothing is done.",
    "dead_letter.replayed": "An operator handed a dead letter to its group again.",
    "dead_letter.discarded": "An operator closed a dead letter without another try.",
    "replay_plan.created": "An operator froze a list of dead letters to replay.",
    "replay_plan.applied": "An operator began or went on to replay a plan.",
    "replay_plan.aborted": "An operator ended a plan.",
    "stock.changed": "An operator changed units or a price of a SKU.",
    "order.replayed": "A record came again; its stored outcome is emitted again.",
    "order.duplicate_skipped": "A copy of a record that was handled already; nothing is emitted.",
    "sweep.asked": "A sweep asked for expiries and refunds that are due.",
    "sweep.skipped": "A sweep could not look; the next one will.",
    "sweep.unsettled.skipped": "A sweep could not look for called-off orders with unsettled money; a later one will.",
    "standing.unreadable": "The figures of how things stand cannot be read; the last ones stay.",
    "standing.readable": "The figures of how things stand are read again.",
    "reconciler.reconciled": "Everything up to a time was compared; the fields say how many differences there are.",
    "reconciler.difference_found": "The gateway, the payments and an order do not say the same; an operator must look.",
    "reconciler.order_agrees": "An order that had differences has none any more.",
    "reconciler.skipped": "A reconciliation could not look everywhere; the next one will.",
    "gateway.breaker": "The circuit breaker of the gateway changed its state.",
    "payment.unknown": "A charge's outcome is not known; the record becomes a dead letter and an operator must look.",
    "webhook.reported": "A report of the payment gateway is durable on Kafka.",
    "webhook.refused": "A report was not signed by the gateway, or too long ago; nothing was done.",
    "webhook.not_durable": "A report could not be put on Kafka; the gateway will deliver it again.",
    "webhook.refund_failed": "The gateway could not pay out a refund that it had taken; somebody must look.",
}
"""Every event name that is logged, and what it means. A test holds the code against it."""

# Without local variables: they hold requests and passwords.
_TRACEBACKS = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=20)
)

_NOISY = ("aiohttp", "aiokafka", "grpc", "httpx", "httpcore", "asyncio", "stripe")
_LIBRARIES = (
    "aiokafka.producer.sender", "aiokafka.consumer.group_coordinator", "aiokafka.client", "aiokafka.conn",
    "aiokafka.cluster", "aiokafka.consumer.fetcher",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.sdk._shared_internal", "opentelemetry.sdk.trace", "opentelemetry.sdk.trace.export",
)  # fmt: skip
"""Loggers of libraries that repeat themselves: a filter holds for one logger alone, not for those below it."""


class _RateLimit(logging.Filter):
    """Lets a library say the same thing once in ten seconds: in an outage they repeat themselves by the thousand."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key = (record.name, str(record.msg))
        now = time.monotonic()
        if now - self._last.get(key, -10.0) < 10.0:
            return False
        if len(self._last) > 1000:
            self._last.clear()
        self._last[key] = now
        return True


_ABOUT: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("about", default=None)


def about(**fields: Any) -> None:
    """Has every line of this task, and of those that it starts, say what it is about.

    One variable for all fields, unlike structlog's, which has one for each: it is set for every record.
    """
    _ABOUT.set(fields)


def _told_by(process: str) -> structlog.typing.Processor:
    """Returns what completes every line: who says it, about what, in which trace, how grave it is, and when."""

    def told(
        _: structlog.typing.WrappedLogger, level: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        if fields := _ABOUT.get():
            event = {**fields, **event}  # what the line itself says holds
        if "trace_id" not in event and (trace_id := tracing.trace_id()) != tracing.NO_TRACE:
            event["trace_id"] = trace_id  # so that a line and its spans find each other
        event["process"] = process
        event["level"] = level
        event["timestamp"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")[:26] + "Z"
        return event

    return told


class _Lines:
    """Writes our own lines where the libraries' go, between them, and without a record of `logging` for each.

    A line that cannot be written is lost, as it is with `logging`: a full disk must not fail an order.
    """

    def __init__(self, handler: "logging.StreamHandler[Any]") -> None:
        self._handler = handler

    def msg(self, line: str) -> None:
        self._handler.acquire()
        try:
            self._handler.stream.write(f"{line}\n")  # standard error flushes each line by itself
        except (OSError, ValueError):
            pass
        finally:
            self._handler.release()

    debug = info = warning = error = critical = msg


def configure(process: str, *, form: Literal["auto", "json", "console"], level: str) -> None:
    """Sets logging up for this process: everything goes to standard error, the libraries' lines included."""
    told = _told_by(process)
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    tracebacks = structlog.processors.format_exc_info if console else _TRACEBACKS
    written: list[structlog.typing.Processor] = [
        *((log_hygiene.on_one_line,) if console else ()),  # JSON escapes by itself
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if console else _as_json,
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[told, structlog.stdlib.add_logger_name],
            processors=[
                tracebacks,
                log_hygiene.redacted,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *written,
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name in _NOISY:
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        logger.addFilter(_RateLimit())
    for name in _LIBRARIES:
        logging.getLogger(name).addFilter(_RateLimit())
    structlog.configure(
        processors=[told, tracebacks, log_hygiene.redacted_unless_ours, *written] if console else [_json_line(told)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Lines(handler),
        cache_logger_on_first_use=True,
    )


def _json_line(told: structlog.typing.Processor) -> structlog.typing.Processor:
    """Returns the one processor of our own lines: each more would cost every order its call."""

    def line(logger: structlog.typing.WrappedLogger, level: str, event: structlog.typing.EventDict) -> str:
        event = cast(structlog.typing.EventDict, told(logger, level, event))
        if level not in log_hygiene.OURS or "exc_info" in event:
            event = log_hygiene.redacted_unless_ours(logger, level, _TRACEBACKS(logger, level, event))
        return _JSON.encode(event)

    return line


_JSON: Final = json.JSONEncoder(default=repr)


def _as_json(_: structlog.typing.WrappedLogger, __: str, event: structlog.typing.EventDict) -> str:
    return _JSON.encode(event)


def get() -> structlog.typing.FilteringBoundLogger:
    """Returns the logger."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger
