"""Everything that touches private attributes of aiokafka, whose version is pinned for it. Each has a test."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    KafkaConnectionError,
    KafkaError,
    NotCoordinatorForGroupError,
    for_code,
)
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    TxnOffsetCommitRequest,
)

import fault_points
from messaging.partitioner import partition_of

_TRANSACTIONAL: Final = (AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, EndTxnRequest, TxnOffsetCommitRequest)


def _telling(send: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(send)
    def telling(connection: AIOKafkaConnection, *arguments: Any, **options: Any) -> Any:
        try:
            return send(connection, *arguments, **options)
        except KafkaError:
            raise  # a RuntimeError too
        except RuntimeError as error:
            connection.close(reason=CloseReason.CONNECTION_BROKEN)
            raise KafkaConnectionError(f"{connection!r} broken: {error}") from error

    return telling


_SEND: Final = _telling(AIOKafkaConnection.send)
_SEND_SASL_TOKEN: Final = _telling(AIOKafkaConnection._send_sasl_token)


def tell_closed_connections() -> None:
    """Makes a request on a connection that has just closed fail as aiokafka expects, for every client of the process.

    It expects OSError, and uvloop raises RuntimeError. That ended a client's metadata task, after which every request
    that needs metadata waits for ever, or the whole consumer.
    """
    AIOKafkaConnection.send = _SEND
    AIOKafkaConnection._send_sasl_token = _SEND_SASL_TOKEN


async def read_committed(consumer: AIOKafkaConsumer, partition: TopicPartition) -> tuple[int, str] | None:
    """Returns the group's committed offset and metadata; None only if nothing is committed, never because of an error.

    aiokafka's own `committed()` returns None for a coordinator that is loading (so a week would be read again), and
    hides the metadata. Waits until the coordinator answers.

    Raises:
        KafkaError: one that does not pass by itself, such as a missing authorisation.
    """
    coordinator = consumer._coordinator
    while True:
        await coordinator.ensure_coordinator_known()
        try:
            response = await coordinator._send_req(
                OffsetFetchRequest(coordinator.group_id, [(partition.topic, [partition.partition])])
            )
            if response.API_VERSION >= 2 and response.error_code:
                raise for_code(response.error_code)()
            ((_, ((_, offset, metadata, code),)),) = response.topics
            if code:
                raise for_code(code)()
            return None if offset < 0 else (offset, metadata or "")
        except KafkaError as error:
            if not error.retriable:
                raise
            if isinstance(error, (NotCoordinatorForGroupError, GroupCoordinatorNotAvailableError)):
                coordinator.coordinator_dead()
            await asyncio.sleep(0.05)


def watch_transactional_requests(producer: AIOKafkaProducer, on_resend: Callable[[], None]) -> None:
    """Calls `on_resend` when a transactional request got no answer, since aiokafka then sends it again without a word.

    At the protocol version that it speaks, nothing orders the late first copy against the next transaction: the
    producer must be opened anew (which raises its epoch) before the next one begins.
    """
    send: Callable[..., Awaitable[Any]] = producer.client.send

    async def watched(node_id: int, request: Any, **arguments: Any) -> Any:
        try:
            answer = await send(node_id, request, **arguments)
            if isinstance(request, EndTxnRequest):
                fault_points.reached("W4")  # the broker has ended the transaction, and nobody here knows yet
            return answer
        except KafkaError:
            if isinstance(request, _TRANSACTIONAL):
                on_resend()
            raise

    producer.client.send = watched


def add(
    producer: AIOKafkaProducer, topic: str, *, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes | None]]
) -> "asyncio.Future[object] | None":
    """Adds a record to the batch that is to be sent next to its partition, and returns the future of that batch.

    Does what `send` does in a third of the time, since Kafka takes or refuses a batch as one: `send` makes a future for
    each record. None, and nothing is added, where `send` would wait or refuse: it is to be called.
    """
    accumulator = producer._message_accumulator
    partitions = producer.client.cluster.partitions_for_topic(topic)
    if not partitions or accumulator._closed or accumulator._exception is not None:
        return None
    if 2 * len(value) > producer._max_request_size:
        return None
    partition = TopicPartition(topic, partition_of(key, list(partitions), ()))
    waiting = accumulator._batches.get(partition)
    batch = waiting[-1] if waiting else accumulator._append_batch(accumulator.create_builder(), partition)
    if batch._builder.append(timestamp=None, key=key, value=value, headers=headers) is None:
        return None
    acknowledged: asyncio.Future[object] = batch.future
    return acknowledged


async def discard_producer(producer: AIOKafkaProducer, *, flush_seconds: float = 0.0) -> None:
    """Ends a producer within `flush_seconds` and a little, whatever state it is in. Never fails.

    `stop()` first delivers what is pending and never gives up while the broker is away, so it is bounded, and what it
    leaves is ended by hand. An open transaction is left to the next owner of the id, or to its time-out.
    """
    if flush_seconds and await _ends_well(producer.stop(), flush_seconds):
        return
    producer._closed = True
    sender = producer._sender
    task = sender.sender_task if sender is not None else None
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=1.0)
    await _ends_well(producer.client.close(), 1.0)


async def discard_consumer(consumer: AIOKafkaConsumer, *, seconds: float) -> None:
    """Ends a consumer within `seconds`: leaves the group if the broker answers, and leaves no socket open."""
    if not await _ends_well(consumer.stop(), seconds):
        await _ends_well(consumer._client.close(), 1.0)


async def close_client(client: AIOKafkaClient) -> None:
    """Closes a bare client within a second. Never fails."""
    await _ends_well(client.close(), 1.0)


async def _ends_well(closing: Awaitable[None], seconds: float) -> bool:
    """Waits for something to close, and tells whether it did. How it failed is of no interest: it is being dropped.

    While the broker is away closing raises almost anything: KafkaError, AssertionError, uvloop's RuntimeError for a
    transport that is closed already, and CancelledError although nobody cancelled.
    """
    try:
        async with asyncio.timeout(seconds):
            await closing
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise
        return False
    except Exception:
        return False
    return True
