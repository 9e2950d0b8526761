"""One transaction on Kafka: outputs, and the offset that says that their inputs are done. Both count or neither."""

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.structs import OffsetAndMetadata

import fault_points
from messaging import aiokafka_internals, clients
from messaging.envelope import OutgoingRecord


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """A record that is done, with what it leads to."""

    offset: int
    outputs: list[OutgoingRecord]
    outcome: Literal["handled", "parked", "dead_lettered"] = "handled"
    """`handled`: the outputs are events. Else they are the record itself, parked or dead."""


class OutputRefusedError(Exception):
    """The broker refused an output for good. `done` is the record that led to it."""

    def __init__(self, done: Done, error: BaseException) -> None:
        super().__init__(f"offset {done.offset}: {error!r}")
        self.done = done
        self.error = error


async def commit(
    producer: AIOKafkaProducer,
    done: Sequence[Done],
    *,
    group: str,
    partition: TopicPartition,
    position: OffsetAndMetadata,
) -> None:
    """Writes the outputs of records, and where the group stands after them, in one transaction.

    Every output has been acknowledged before it is committed: aiokafka's commit does not look.

    Raises:
        OutputRefusedError: Kafka will never take an output.
        KafkaError: the transaction was not committed, or nobody knows.
    """
    await producer.begin_transaction()
    sent: dict[asyncio.Future[object], Done] = {}
    for each in done:
        for record in each.outputs:
            try:
                acknowledgement = await _send(producer, record)
            except clients.TOO_LARGE as refusal:
                raise OutputRefusedError(each, refusal) from refusal
            sent.setdefault(acknowledgement, each)
    # Side by side, which saves a round trip: only the commit makes either of them count.
    results = await asyncio.gather(
        _acknowledged(sent),
        producer.send_offsets_to_transaction({partition: position}, group),
        return_exceptions=True,
    )
    for error in results:
        if isinstance(error, BaseException):
            raise error
    if any(each.outcome != "handled" for each in done):
        fault_points.reached("W13")
    await producer.commit_transaction()


async def _send(producer: AIOKafkaProducer, record: OutgoingRecord) -> "asyncio.Future[object]":
    """Hands a record over. Returns the future of its acknowledgement, or of that of the batch which it is in."""
    if record.key is None and record.value is None:
        # send() asserts that one of them is set, but a dead letter may have neither. Its topics have one partition.
        batch = producer.create_batch()
        batch.append(key=None, value=None, timestamp=None, headers=record.headers)
        empty: asyncio.Future[object] = await producer.send_batch(batch, record.topic.name, partition=0)
        return empty
    if record.key is not None and record.value is not None:
        added = aiokafka_internals.add(
            producer, record.topic.name, key=record.key, value=record.value, headers=record.headers
        )
        if added is not None:
            return added
    sent: asyncio.Future[object] = await producer.send(
        record.topic.name, key=record.key, value=record.value, headers=record.headers
    )
    return sent


async def _acknowledged(sent: "Mapping[asyncio.Future[object], Done]") -> None:
    """Waits until Kafka has acknowledged the outputs. A batch has one future, and stands for its first record.

    That is the one to blame where it is refused: only a record that is alone in its batch is ever too large.

    Raises:
        OutputRefusedError: it refused one for good.
        KafkaError: it did not acknowledge one.
    """
    if sent:
        await asyncio.wait(sent)
    failed = [(each, error) for future, each in sent.items() if (error := future.exception()) is not None]
    for each, error in failed:
        if isinstance(error, clients.TOO_LARGE):
            raise OutputRefusedError(each, error) from error
    if failed:
        raise failed[0][1]
    fault_points.reached("W3")
