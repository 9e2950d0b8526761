"""What bounds the system: its records through aiokafka alone, its rows into PostgreSQL alone."""

import asyncio
import datetime
import time
import uuid
from typing import Final

from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndMetadata

from bench import orders
from bench.system import BenchSystem
from messaging import clients
from messaging.topics import ORDERS, PAYMENTS

_READY: Final = 20_000
"""Records that are made before the clock starts, and sent again and again."""
_BATCH: Final = 200
_TRANSACTION_MS: Final = 15_000


async def produced_per_second(system: BenchSystem, count: int, *, at_once: int) -> float:
    """Returns records a second that one producer of the ingress's kind has acknowledged, `at_once` at a time."""
    placed = orders.Placed()
    ready = [placed.record(number) for number in range(min(count, _READY))]
    producer = clients.idempotent_producer(system.kafka_settings, client_id="bench")
    await producer.start()
    try:
        await orders.send(producer, ready[:at_once])
        began, sent = time.perf_counter(), 0
        while sent < count:
            begin = sent % len(ready)
            records = ready[begin : begin + min(at_once, count - sent)]
            await orders.send(producer, records)
            sent += len(records)
        return count / (time.perf_counter() - began)
    finally:
        await producer.stop()


async def moved_per_second(system: BenchSystem, count: int) -> float:
    """Returns records a second that are read and written again in transactions with their offsets, and nothing else.

    One process does it, with a transactional producer for each partition, as a worker has them.
    """
    await orders.preload(system.kafka_settings, count)
    began = time.perf_counter()
    await asyncio.gather(*(_move(system, number) for number in range(ORDERS.partitions)))
    return count / (time.perf_counter() - began)


async def _move(system: BenchSystem, number: int) -> None:
    """Moves what stands on a partition of `orders` to `payments`."""
    group, partition = f"bench-{number}", TopicPartition(ORDERS.name, number)
    consumer = clients.consumer(system.kafka_settings, client_id="bench", group=group)
    producer = clients.transactional_producer(
        system.kafka_settings, client_id="bench", transactional_id=group, timeout_ms=_TRANSACTION_MS
    )
    await consumer.start()
    await producer.start()
    try:
        consumer.assign([partition])
        consumer.seek(partition, 0)
        end, position = (await consumer.end_offsets([partition]))[partition], 0
        while position < end:
            records = (await consumer.getmany(timeout_ms=100)).get(partition, [])
            if not records:
                continue
            position = records[-1].offset + 1
            async with producer.transaction():
                written = [
                    await producer.send(PAYMENTS.name, key=each.key, value=each.value, headers=[*each.headers])
                    for each in records
                ]
                await asyncio.gather(*written)
                await producer.send_offsets_to_transaction({partition: OffsetAndMetadata(position, "")}, group)
    finally:
        await producer.stop()
        await consumer.stop()


async def inserted_per_second(system: BenchSystem, count: int) -> float:
    """Returns orders a second whose rows one connection inserts in batches: the order, its payment, three outcomes.

    The tables are the system's own, with their indexes, and are emptied afterwards.
    """
    placed = orders.Placed()
    contents = [placed.order(number).SerializeToString() for number in range(_BATCH)]
    now = datetime.datetime.now(datetime.UTC)
    async with system.sql() as connection:
        began = time.perf_counter()
        for _ in range(0, count, _BATCH):
            ids = [uuid.uuid4() for _ in contents]
            async with connection.transaction():
                await connection.execute(_ORDERS, ids, contents, now)
                await connection.execute(_PAYMENTS, ids, now)
                for group in ("order-processor", "payment-processor", "notification-email"):
                    await connection.execute(_OUTCOMES, group, ids, contents)
        seconds = time.perf_counter() - began
        await connection.execute("truncate orders, payments, outcomes")
    return count / seconds


_ORDERS: Final = (
    "insert into orders (order_id, caller, content, status, payment_status, revision, expire_time, update_time)"
    " select order_id, 'local', content, 2, 2, 2, $3, $3 from unnest($1::uuid[], $2::bytea[]) as o (order_id, content)"
)
_PAYMENTS: Final = (
    "insert into payments (order_id, idempotency_key, state, amount_minor, currency_code, update_time)"
    " select order_id, order_id::text, 'captured', 4498, 'EUR', $2 from unnest($1::uuid[]) as o (order_id)"
)
_OUTCOMES: Final = (
    "insert into outcomes (group_name, event_id, topic, partition, record_offset, events, holds_contact)"
    " select $1, event_id, 'orders', 0, 0, array[content], false"
    " from unnest($2::uuid[], $3::bytea[]) as o (event_id, content)"
)
