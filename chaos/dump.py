"""Writes down where a run ended: topics, offsets, tables, the gateway's journal, mail and logs."""

import asyncio
import base64
import datetime
import json
import pathlib
import shutil
import uuid
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord

from chaos import probes
from chaos.oracle import rules
from chaos.system import ChaosSystem

_READ_SECONDS: Final = 180.0


async def dump(system: ChaosSystem, observer: probes.Observer, folder: pathlib.Path) -> dict[str, Any]:
    """Writes everything but run.json, and returns what it says of the end."""
    stable = await observer.ends()
    high = await observer.ends("read_uncommitted")
    committed = {group: await observer.committed(group) for group in rules.READS}
    await _topics(observer, "read_committed", folder / "topics.jsonl")
    await _topics(observer, "read_uncommitted", folder / "topics-uncommitted.jsonl")
    await _tables(observer, folder / "database")
    await asyncio.to_thread(_files, system, folder)
    return {
        "committed": committed,
        "ends": {
            topic: {
                partition: {"stable": offset, "high": high[topic][partition]} for partition, offset in offsets.items()
            }
            for topic, offsets in stable.items()
        },
    }


async def _topics(observer: probes.Observer, isolation_level: str, path: pathlib.Path) -> None:
    consumer = observer.consumer(isolation_level)
    await consumer.start()
    found: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(_READ_SECONDS):
            await _read(observer, consumer, found)
    finally:
        await consumer.stop()
    _write(path, found)


async def _read(observer: probes.Observer, consumer: AIOKafkaConsumer, found: list[dict[str, Any]]) -> None:
    # Not seek_to_beginning(): it races with the client's own first look-up, and a partition reads as empty.
    partitions = await observer.partitions()
    consumer.assign(partitions)
    ends = await consumer.end_offsets(partitions)
    while any([await consumer.position(each) < ends[each] for each in partitions]):
        for records in (await consumer.getmany(timeout_ms=200)).values():
            found += [_line(record) for record in records]


def _line(record: ConsumerRecord) -> dict[str, Any]:
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "key": _plain(record.key),
        "value": _plain(record.value),
        "headers": [[name, _plain(value)] for name, value in record.headers],
    }


async def _tables(observer: probes.Observer, folder: pathlib.Path) -> None:
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    names = await observer.rows("select table_name from information_schema.tables where table_schema = 'public'")
    for name in [row["table_name"] for row in names]:
        rows = await observer.rows(f'select * from "{name}"')  # noqa: S608 - the name is the catalogue's own
        _write(folder / f"{name}.jsonl", [{key: _plain(value) for key, value in row.items()} for row in rows])


def _files(system: ChaosSystem, folder: pathlib.Path) -> None:
    if system.gateway_journal.exists():
        shutil.copy(system.gateway_journal, folder / "gateway.jsonl")
    shutil.copytree(system.mail_folder, folder / "mail", dirs_exist_ok=True)
    shutil.copytree(
        system.directory / "logs", folder / "logs", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.pid")
    )
    for path in (system.postgres.log_file, *(broker.log_file for broker in system.brokers)):
        if path.exists():
            shutil.copy(path, folder / "logs")


def _plain(value: Any) -> Any:
    """Returns a value as JSON has it."""
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case datetime.datetime():
            return value.isoformat()
        case uuid.UUID():
            return str(value)
        case list() | tuple():
            return [_plain(each) for each in value]
        case _:
            return value


def _write(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in rows)
