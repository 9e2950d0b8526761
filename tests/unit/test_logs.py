"""A log line finds its trace, and names and levels hold."""

import asyncio
import errno
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


class Full(io.StringIO):
    """A standard error with no room left."""

    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")


def test_a_line_that_cannot_be_written_fails_nothing(lines: io.StringIO) -> None:
    import logging

    logging.getLogger().handlers[0].stream = Full()  # type: ignore[attr-defined]
    structlog.get_logger().info("lost")
    logging.getLogger().handlers[0].stream = lines  # type: ignore[attr-defined]
    structlog.get_logger().info("written")
    assert [line["event"] for line in written(lines)] == ["written"]


def test_what_others_worded_is_redacted_whatever_the_level(lines: io.StringIO) -> None:
    """Warnings may quote an error, and a traceback is one, also of a line that would else hold ids only."""
    logs.get().warning("process.unretrieved", message="Bounced: ada@example.com")
    try:
        raise ValueError("no such user: ada@example.com")
    except ValueError:
        logs.get().info("process.unretrieved", exc_info=True)
    warned, told = written(lines)
    assert warned["message"] == "Bounced: [redacted]"
    assert "exc_info" not in told
    assert "no such user: [redacted]" in str(told["exception"])
    assert "ada@example.com" not in lines.getvalue()


def test_what_is_below_the_level_is_not_written(lines: io.StringIO) -> None:
    structlog.get_logger().debug("too small")
    assert written(lines) == []


def test_lines_of_libraries_and_our_own_say_the_same_beside_what_happened(lines: io.StringIO) -> None:
    import logging

    with tracing.continued([CALLER]):
        structlog.get_logger().warning("ours")
        logging.getLogger("some.library").warning("theirs")
    ours, theirs = written(lines)
    assert set(theirs) == {*ours, "logger"}
    assert all(ours[each] == theirs[each] for each in ("process", "level", "trace_id"))


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
