"""A log line finds its trace, and names and levels hold."""

import asyncio
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from telemetry import logs, tracing
from tests.spans import CALLER, TRACE_ID, recorded


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    import logging

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with structlog.contextvars.bound_contextvars():
        logs.configure("test", form="json", level="INFO")
        yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def written(lines: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def test_a_line_inside_a_trace_names_it_and_one_outside_does_not(lines: io.StringIO) -> None:
    log = structlog.get_logger()
    log.info("outside")
    with tracing.continued([CALLER]):
        log.info("inside")
    with recorded(), tracing.continued([CALLER]):
        log.info("recorded")
    assert [line.get("trace_id") for line in written(lines)] == [None, f"{TRACE_ID:032x}", f"{TRACE_ID:032x}"]


def test_a_line_is_an_event_with_a_level_a_time_and_its_process(lines: io.StringIO) -> None:
    structlog.get_logger().warning("worker.record.dead_lettered", offset=7)
    [line] = written(lines)
    assert {"event", "level", "timestamp", "process", "offset"} == set(line)
    assert (line["level"], line["process"]) == ("warning", "test")


async def test_a_line_says_what_its_task_is_about(lines: io.StringIO) -> None:
    async def handle(order_id: str) -> None:
        logs.about(order_id=order_id, offset=1)
        await asyncio.sleep(0)
        structlog.get_logger().info("handled", offset=2)

    await asyncio.gather(asyncio.create_task(handle("a")), asyncio.create_task(handle("b")))
    structlog.get_logger().info("elsewhere")
    told = [(line["event"], line.get("order_id"), line.get("offset")) for line in written(lines)]
    assert told == [("handled", "a", 2), ("handled", "b", 2), ("elsewhere", None, None)]


def test_the_exporters_own_lines_come_once_in_a_while(lines: io.StringIO) -> None:
    import logging

    exporter = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    for _ in range(50):
        exporter.warning("Transient error %s encountered while exporting", "x")
    assert len(written(lines)) == 1


def test_operators_find_every_event_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    documented = dict(re.findall(r"^\| `([a-z_.]+)` \| (.*) \|$", page[page.index("## Logs") :], re.MULTILINE))
    assert {name: documented.get(name) for name in logs.CATALOGUE} == logs.CATALOGUE
