"""Kafka clients with every setting that the guarantees rest on spelled out. aiokafka's defaults are the unsafe ones."""

import asyncio
import ssl
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError
from aiokafka.helpers import create_ssl_context

from messaging import aiokafka_internals, header_names
from messaging.partitioner import partition_of
from messaging.topics import DEAD_LETTERS
from settings import KafkaSettings
from telemetry import logs, process

log = logs.get()

REBALANCE_TIMEOUT_MS = 30_000  # above every drain limit, below the request time-out: JoinGroup waits with that one
TOO_LARGE: Final = (MessageSizeTooLargeError, RecordListTooLargeError)
"""What a record that Kafka will never take is refused with, by the client or by the broker."""
_REQUEST_TIMEOUT_MS = 40_000
_RETRY_SECONDS: Final = 1.0


def _connection(settings: KafkaSettings, client_id: str) -> dict[str, Any]:
    aiokafka_internals.tell_closed_connections()
    connection: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap,
        "client_id": client_id,
        "security_protocol": settings.security_protocol,
    }
    if settings.security_protocol in ("SSL", "SASL_SSL"):
        connection["ssl_context"] = _ssl_context(settings)
    if settings.security_protocol.startswith("SASL"):
        connection["sasl_mechanism"] = settings.sasl_mechanism
        connection["sasl_plain_username"] = settings.sasl_username
        connection["sasl_plain_password"] = (
            settings.sasl_password.get_secret_value() if settings.sasl_password else None
        )
    return connection


def _ssl_context(settings: KafkaSettings) -> ssl.SSLContext:
    context: ssl.SSLContext = create_ssl_context(
        cafile=settings.ssl_ca_file, certfile=settings.ssl_certificate_file, keyfile=settings.ssl_key_file
    )
    return context


def idempotent_producer(settings: KafkaSettings, *, client_id: str) -> AIOKafkaProducer:
    """Returns the producer of the ingress, not started."""
    return AIOKafkaProducer(
        **_connection(settings, client_id),
        acks="all",
        enable_idempotence=True,
        partitioner=partition_of,
        max_batch_size=256 * 1024,
        max_request_size=DEAD_LETTERS.max_message_bytes,
        request_timeout_ms=10_000,
        retry_backoff_ms=50,
    )


def transactional_producer(
    settings: KafkaSettings, *, client_id: str, transactional_id: str, timeout_ms: int
) -> AIOKafkaProducer:
    """Returns the producer of one input partition, not started."""
    return AIOKafkaProducer(
        **_connection(settings, client_id),
        acks="all",
        enable_idempotence=True,
        transactional_id=transactional_id,
        transaction_timeout_ms=timeout_ms,
        partitioner=partition_of,
        max_batch_size=256 * 1024,
        max_request_size=DEAD_LETTERS.max_message_bytes,
        request_timeout_ms=10_000,
        retry_backoff_ms=10,  # at the default an offsets-only transaction takes 113 ms
    )


def consumer(settings: KafkaSettings, *, client_id: str, group: str | None) -> AIOKafkaConsumer:
    """Returns a consumer, not started. It never commits, never resets and hands out committed records only."""
    header_names.read_any_header_name()
    return AIOKafkaConsumer(
        **_connection(settings, client_id),
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        partition_assignment_strategy=(RoundRobinPartitionAssignor,),
        session_timeout_ms=int(settings.session_timeout * 1000),
        heartbeat_interval_ms=1_000,
        rebalance_timeout_ms=REBALANCE_TIMEOUT_MS,
        request_timeout_ms=_REQUEST_TIMEOUT_MS,
        fetch_max_wait_ms=50,
        max_partition_fetch_bytes=DEAD_LETTERS.max_message_bytes,
        metadata_max_age_ms=60_000,
    )


async def started_consumer(
    settings: KafkaSettings, *, client_id: str, group: str, stop: asyncio.Event
) -> AIOKafkaConsumer | None:
    """Returns a worker's consumer once Kafka has let it start; None if told to stop before."""
    while not stop.is_set():
        started = consumer(settings, client_id=client_id, group=group)
        try:
            await started.start()
            return started
        except KafkaError as error:
            log.warning("worker.waiting", worker=group, waits_for="kafka", error=repr(error))
            await aiokafka_internals.discard_consumer(started, seconds=2)
            await process.pause(stop, _RETRY_SECONDS)
    return None


def admin(settings: KafkaSettings, *, client_id: str) -> AIOKafkaAdminClient:
    """Returns an admin client, not started."""
    return AIOKafkaAdminClient(**_connection(settings, client_id), request_timeout_ms=10_000)


def bare(settings: KafkaSettings, *, client_id: str, request_timeout: float) -> AIOKafkaClient:
    """Returns a client that asks each broker by itself, not started. `request_timeout` is in seconds."""
    return AIOKafkaClient(**_connection(settings, client_id), request_timeout_ms=int(request_timeout * 1000))
