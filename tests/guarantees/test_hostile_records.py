"""Mutated and random records on every input topic: no worker stops, each invalid one is a dead letter, others pass."""

import asyncio
import collections
import pathlib
from collections.abc import Sequence

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer

from devstack.system import ROLES
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow_client import OrdersClient, OrderStatus, item
from tests.e2e import observer, orders
from tests.e2e.observed import PARTITIONS, READS, RETRY_TOPICS
from tests.guarantees import hostile, verdict
from tests.guarantees.fronted import FrontedSystem
from tests.guarantees.verdict import Place, Record

Letter = tuple[str, Place, bytes | None, bytes | None]
"""Group, where the record stood, key, value."""


@pytest.mark.timeout(240)
async def test_hostile_records_stop_nobody(
    healthy: FrontedSystem, client: OrdersClient, tmp_path: pathlib.Path
) -> None:
    await hostile_records_stop_nobody(healthy, client, tmp_path, records=400, good=20, within=60)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
async def test_10_000_hostile_records_stop_nobody(
    healthy: FrontedSystem, client: OrdersClient, tmp_path: pathlib.Path
) -> None:
    await hostile_records_stop_nobody(healthy, client, tmp_path, records=10_000, good=200, within=900)


async def hostile_records_stop_nobody(
    system: FrontedSystem, client: OrdersClient, folder: pathlib.Path, *, records: int, good: int, within: float
) -> None:
    pids = system.pids()
    assert set(pids) == set(ROLES)
    known = await real_orders(system, client)
    real = await written(system, known)
    await system.all_caught_up(within=30)
    dlq_before = (await system.ends("dlq")).popitem()[1]
    drawn = hostile.draw_records(real, sorted(PARTITIONS), records, seed=records)
    # The seed alone does not repeat them: they are drawn from records with ids and times of this run.
    (folder / "drawn.txt").write_text("\n".join(map(repr, drawn)))
    assert {record.kind for record in drawn} == hostile.KINDS

    # The good orders are placed while the hostile records stream in.
    placed: list[asyncio.Task[orders.CreateOrderResponse]] = []
    places: dict[Place, Record] = {}
    step = len(drawn) // good
    # Shuffled by hand, so that every topic gets its share all the time.
    mixed = [drawn[index] for start in range(step) for index in range(start, len(drawn), step)]
    for start in range(0, len(mixed), step):
        places |= await write(system, mixed[start : start + step])
        placed.append(asyncio.create_task(orders.place(client)))
    created = await asyncio.gather(*placed)
    settled = await asyncio.gather(*(orders.settled(client, each, within=within) for each in created))

    assert len(created) >= good
    assert {order.status for order in settled} == {OrderStatus.ORDER_STATUS_PAID}
    for each in created:
        assert len(system.charges(each.order.order_id)) == 1
    await system.all_caught_up(within=within)
    assert system.pids() == pids, "a process ended"
    await system.wait_healthy(ROLES)

    values = {record.value for record in real if record.value is not None}
    must: collections.Counter[Letter] = collections.Counter()
    may: collections.Counter[Letter] = collections.Counter()
    for at, record in places.items():
        origin = verdict.origin(record, at, list(RETRY_TOPICS))
        for group in readers(record.topic):
            judgement = verdict.judge(record, origin.topic, group, known, values)
            if judgement != "must not":
                (must if judgement == "must" else may)[group, origin, record.key, record.value] += 1
    assert must
    found, classes = await dead_letters(system, dlq_before, {at for at in places if at.topic == "dlq"})
    assert not shown(must - found), "a record that nobody can read is no dead letter"
    assert not shown(found - must - may), "a dead letter twice, or changed, or of a good record"
    assert "UNEXPECTED_ERROR" not in classes, "the product did not foresee this"
    await projector_recorded(system, places)
    print(f"{len(places)} records, {must.total()} had to be dead letters, {may.total()} might, {found.total()} are")


async def real_orders(system: FrontedSystem, client: OrdersClient) -> set[str]:
    """Places orders that end in different ways; returns their ids."""
    created = [
        await orders.place(
            client, phone="+491701234567", labels={"shop": "7"}, external_reference="R-1", language="de"
        ),
        await orders.place(client, payment_method="pm_card_chargeDeclined"),
        await orders.place(client, items=[item("SKU-SOLD-OUT", 1, 999, "EUR")]),
    ]
    for each in created:
        await orders.settled(client, each)
    return {each.order.order_id for each in created}


async def written(system: FrontedSystem, order_ids: set[str]) -> list[Record]:
    """Returns what the system wrote about the orders, when it has written all of it."""
    await system.all_caught_up(within=30)
    return [
        Record(topic, record.key, record.value, tuple(record.headers))
        for topic in ("orders", "payments", "notifications")
        for record in await observer.read_topic(system.bootstrap, topic)
        if record.key is not None and record.key.decode("ascii", "replace") in order_ids
    ]


async def write(system: FrontedSystem, records: Sequence[Record]) -> dict[Place, Record]:
    """Writes the records and returns where they stand."""
    producer = AIOKafkaProducer(bootstrap_servers=system.bootstrap, acks="all")
    await producer.start()
    try:
        sent = []
        for record in records:
            headers = list(record.headers)
            if record.key is None and record.value is None:  # send() takes one without either for a mistake
                batch = producer.create_batch()
                batch.append(key=None, value=None, timestamp=record.timestamp, headers=headers)
                sent.append(await producer.send_batch(batch, record.topic, partition=0))
            else:
                sent.append(
                    await producer.send(
                        record.topic, record.value, record.key, timestamp_ms=record.timestamp, headers=headers
                    )
                )
        async with asyncio.timeout(60):
            acknowledged = await asyncio.gather(*sent)
    finally:
        await producer.stop()
    return {
        Place(each.topic, each.partition, each.offset): record
        for each, record in zip(acknowledged, records, strict=True)
    }


def readers(topic: str) -> list[str]:
    """Returns the groups that read the topic and write dead letters."""
    return [RETRY_TOPICS[topic]] if topic in RETRY_TOPICS else [group for group in READS if topic in READS[group]]


async def dead_letters(
    system: FrontedSystem, since: int, hostile_ones: set[Place]
) -> tuple[collections.Counter[Letter], set[str]]:
    """Returns the dead letters that groups wrote since an offset, and their error classes."""
    found: collections.Counter[Letter] = collections.Counter()
    classes = set()
    for record in await observer.read_topic(system.bootstrap, "dlq", partitions=1):
        if record.offset < since or Place("dlq", 0, record.offset) in hostile_ones:
            continue
        headers = {name: value or b"" for name, value in record.headers}
        assert sum(name == "dlq_group" for name, _ in record.headers) == 1, "a forged header is still there"
        at = Place(
            headers["dlq_origin_topic"].decode(),
            int(headers["dlq_origin_partition"]),
            int(headers["dlq_origin_offset"]),
        )
        found[headers["dlq_group"].decode(), at, record.key, record.value] += 1
        classes.add(headers["dlq_error_class"].decode())
    return found, classes


async def projector_recorded(system: FrontedSystem, places: dict[Place, Record]) -> None:
    """Asserts that the projector recorded each record that it cannot read, once and unchanged, and lists all of dlq."""
    projected = {at: record for at, record in places.items() if at.topic in ("orders", "payments", "notifications")}
    expected = {
        at: (record.key, record.value) for at, record in projected.items() if verdict.unreadable(record, at.topic)
    }
    connection = await asyncpg.connect(system.postgres.dsn, timeout=5)
    try:
        rows = await connection.fetch("select topic, partition, record_offset, dead_letter from projection_failures")
        listed = await connection.fetch("select record_offset, dead_letter from dead_letters")
    finally:
        await connection.close()
    failures = {Place(row[0], row[1], row[2]): bytes_of(row[3]) for row in rows}
    assert {at: failures[at] for at in failures.keys() & projected.keys()} == expected
    on_dlq = await observer.read_topic(system.bootstrap, "dlq", partitions=1)
    assert {row[0]: bytes_of(row[1]) for row in listed} == {each.offset: (each.key, each.value) for each in on_dlq}


def shown(letters: collections.Counter[Letter]) -> "tuple[()] | tuple[int, list[Letter]]":
    """Returns how many there are and the first few, for a message that can be read; nothing for none."""
    return (letters.total(), sorted(letters, key=str)[:5]) if letters else ()


def bytes_of(stored: bytes) -> tuple[bytes | None, bytes | None]:
    letter = DeadLetter.FromString(stored)
    return letter.key if letter.HasField("key") else None, letter.value if letter.HasField("value") else None
