"""What the chaos test sees of a running worker."""

import asyncio
import pathlib

from aiokafka import TopicPartition

from chaos import probes

OPENED = '{"worker": "w", "topic": "orders", "partition": %d, "event": "worker.partition.opened"}\n'
CLOSED = '{"worker": "w", "topic": "orders", "partition": 1, "event": "worker.partition.closed"}\n'


def test_partitions_count_as_taken_over_from_the_given_moment_on(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text(OPENED % 0)
    since = log.stat().st_size
    assert probes.opened(log, since) == set()
    with log.open("a") as file:
        file.write(CLOSED + "Traceback: worker.partition.opened\n" + OPENED % 2 + OPENED % 1)
    assert probes.opened(log, since) == {TopicPartition("orders", 1), TopicPartition("orders", 2)}


def test_a_line_that_is_being_written_waits_for_the_next_look(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "worker.log"
    whole = OPENED % 2
    log.write_text(whole[:-2])
    assert probes.opened(log, 0) == set()
    log.write_text(whole)
    assert probes.opened(log, 0) == {TopicPartition("orders", 2)}


async def test_a_process_that_dies_amid_a_scrape_has_no_metric() -> None:
    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\norderflow_x 1\n")
        writer.close()

    async with await asyncio.start_server(die, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        assert await probes.metric(f"{host}:{port}", "orderflow_x") is None
