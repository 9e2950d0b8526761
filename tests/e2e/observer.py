"""Looks at the running system from outside: topics, gateway journal, metrics. Shares no code with the workers."""

import asyncio
import contextlib
import os
import pathlib
import time
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from google.protobuf.message import DecodeError

from chaos.oracle import folder
from orderflow.events.v1.order_event_pb2 import OrderEvent

T = TypeVar("T")


async def eventually(condition: Callable[[], Awaitable[T]], *, within: float, what: str) -> T:
    """Returns the first true result of the condition.

    Raises:
        AssertionError: there was none within so many seconds.
    """
    deadline = time.monotonic() + within
    while True:
        began = time.monotonic()
        result = await condition()
        if result:
            return result
        now = time.monotonic()
        assert now < deadline, f"not within {within} s: {what}"
        await asyncio.sleep(max(0.05, now - began))  # looking takes half of the time at most


async def read_topic(bootstrap: str, topic: str, partitions: int = 3) -> list[ConsumerRecord]:
    """Returns every committed record of a topic."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=None,
        isolation_level="read_committed",
        # Not seek_to_beginning(): it races with the client's own first look-up, and a partition reads as empty.
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        assigned = [TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(assigned)
        ends = await consumer.end_offsets(assigned)
        records: list[ConsumerRecord] = []
        async with asyncio.timeout(30):
            while any([await consumer.position(each) < ends[each] for each in assigned]):
                for batch in (await consumer.getmany(timeout_ms=200)).values():
                    records += batch
        return records
    finally:
        await consumer.stop()


async def read_events(bootstrap: str, *topics: str) -> list[OrderEvent]:
    """Returns every committed event of the topics; what is not an event is left out."""
    found = []
    for topic in topics:
        for record in await read_topic(bootstrap, topic):
            if record.value is not None and any(name == "ce_id" for name, _ in record.headers):
                with contextlib.suppress(DecodeError):
                    found.append(OrderEvent.FromString(record.value))
    return found


async def write(bootstrap: str, topic: str, records: list[tuple[bytes | None, bytes | None]]) -> list[tuple[int, int]]:
    """Writes raw records and returns their partitions and offsets."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
    await producer.start()
    try:
        written = [await producer.send_and_wait(topic, key=key, value=value) for key, value in records]
        return [(each.partition, each.offset) for each in written]
    finally:
        await producer.stop()


def journal(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the gateway's executions, without a last line that is still being written."""
    return folder.lines(path)


def metric(address: str, name: str, **labels: str) -> float:
    """Returns a metric's value as a scrape sees it, summed over the series that have the labels; 0 if there is none."""
    total = 0.0
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        for line in answer.read().decode().splitlines():
            series, _, value = line.rpartition(" ")
            if series.split("{")[0] == name and all(f'{key}="{wanted}"' in series for key, wanted in labels.items()):
                total += float(value)
    return total


def resident_mib(pid: int | None) -> int:
    """Returns a process's resident memory, MiB."""
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def cpu_seconds(pid: int | None) -> float:
    """Returns the CPU time that a process has used, in seconds."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
