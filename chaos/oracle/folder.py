"""What a run leaves behind, and how it is read back.

    run.json                  what was asked for, and how it ended (see `Info`)
    clients.jsonl             the clients' own log, on disk before an OK counts
    topics.jsonl              every topic, read_committed
    topics-uncommitted.jsonl  the same, read_uncommitted: with what was aborted
    gateway.jsonl             the gateway's own journal: one line per execution
    mail/                     one file per accepted message: .eml or, for text messages, .txt
    database/<table>.jsonl    the tables, one row a line
    faults.jsonl              what was done to the system, and when
    logs/                     what the processes said

Bytes are base64 everywhere, times are seconds since 1970 or ISO 8601.
"""

import base64
import dataclasses
import datetime
import email.parser
import json
import pathlib
from collections.abc import Iterator
from typing import Any, Final

from orderflow.orders.v1.order_pb2 import Order
from orderflow.orders.v1.order_service_pb2 import (
    CancelOrderRequest,
    CompleteOrderRequest,
    CreateOrderRequest,
    RefundOrderRequest,
    ShipOrderRequest,
)

At = tuple[str, int, int]
"""Topic, partition, offset."""

Row = dict[str, Any]

CommandRequest = CancelOrderRequest | ShipOrderRequest | CompleteOrderRequest | RefundOrderRequest

_COMMANDS: Final[dict[str, type[CommandRequest]]] = {
    "CancelOrder": CancelOrderRequest,
    "ShipOrder": ShipOrderRequest,
    "CompleteOrder": CompleteOrderRequest,
    "RefundOrder": RefundOrderRequest,
}


@dataclasses.dataclass(frozen=True)
class Record:
    """A record as it stands on a topic. `timestamp` is in milliseconds."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]

    @property
    def at(self) -> At:
        """Where it stands."""
        return (self.topic, self.partition, self.offset)

    def header(self, name: str) -> str | None:
        """Returns a header as text, None if it is missing; the last one counts."""
        values = [value for key, value in self.headers if key == name]
        return None if not values or values[-1] is None else values[-1].decode("utf-8", "replace")


@dataclasses.dataclass
class Call:
    """One CreateOrder of one client. `outcome` is ok, refused, or unknown: the client never heard."""

    number: int
    caller: str
    request: CreateOrderRequest
    outcome: str = "unknown"
    order: Order | None = None
    reason: str = ""

    @property
    def content(self) -> bytes:
        """The request without its request_id: what makes two requests the same."""
        content = CreateOrderRequest()
        content.CopyFrom(self.request)
        content.ClearField("request_id")
        return content.SerializeToString(deterministic=True)


@dataclasses.dataclass
class Asked:
    """One CancelOrder, ShipOrder, CompleteOrder or RefundOrder of one client. `outcome` as in `Call`."""

    number: int
    caller: str
    method: str
    request: CommandRequest
    outcome: str = "unknown"
    order: Order | None = None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Watched:
    """A WatchOrder from the revision `after` on: the revisions that it showed, in their order."""

    order_id: str
    client: str
    after: int
    revisions: list[int]


@dataclasses.dataclass(frozen=True)
class Seen:
    """A GetOrder that was answered. `least` is the revision that its token asked for; `number` orders the polls."""

    order_id: str
    client: str
    number: int
    revision: int
    least: int


@dataclasses.dataclass(frozen=True)
class Mail:
    """A message that was accepted. `received` is in seconds, 0 where the channel keeps no time."""

    file: str
    message_id: str
    recipient: str
    received: float


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something done to the system between `start` and `end`, in seconds."""

    kind: str
    target: str
    start: float
    end: float
    details: dict[str, Any]


@dataclasses.dataclass
class Run:
    """A whole run in memory."""

    folder: pathlib.Path
    info: dict[str, Any]
    calls: list[Call]
    asked: list[Asked]
    seen: list[Seen]
    watched: list[Watched]
    committed: list[Record]
    uncommitted: list[Record]
    journal: list[dict[str, Any]]
    mail: list[Mail]
    tables: dict[str, list[Row]]
    faults: list[Fault]

    def table(self, name: str) -> list[Row]:
        """Returns a table's rows, none if it was not there."""
        return self.tables.get(name, [])

    def log_files(self) -> list[pathlib.Path]:
        """Returns what the processes said."""
        return sorted(path for path in (self.folder / "logs").rglob("*") if path.is_file())

    def log_lines(self) -> Iterator[tuple[str, str]]:
        """Returns every line of every log, with the file's name."""
        for path in self.log_files():
            with path.open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    yield path.name, line


def load(folder: pathlib.Path) -> Run:
    """Reads a run. A file that is missing reads as empty, except run.json."""
    calls, asked, seen, watched = _clients(folder / "clients.jsonl")
    return Run(
        folder=folder,
        info=json.loads((folder / "run.json").read_text()),
        calls=calls,
        asked=asked,
        seen=seen,
        watched=watched,
        committed=[_record(line) for line in lines(folder / "topics.jsonl")],
        uncommitted=[_record(line) for line in lines(folder / "topics-uncommitted.jsonl")],
        journal=lines(folder / "gateway.jsonl"),
        mail=[_mail(path) for path in sorted((folder / "mail").glob("*")) if path.suffix in (".eml", ".txt")],
        tables={path.stem: lines(path) for path in sorted((folder / "database").glob("*.jsonl"))},
        faults=[_fault(line) for line in lines(folder / "faults.jsonl")],
    )


def lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the JSON lines of a file, none if there is no file. A torn last line is left out: nobody relied on it."""
    if not path.exists():
        return []
    content = path.read_bytes()
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines() if line.strip()]


def octets(text: str | None) -> bytes | None:
    """Returns what base64 text stands for."""
    return None if text is None else base64.b64decode(text)


def seconds(value: Any) -> float:
    """Returns a time in seconds since 1970, from a number or ISO 8601."""
    return float(value) if isinstance(value, (int, float)) else datetime.datetime.fromisoformat(value).timestamp()


def _record(line: dict[str, Any]) -> Record:
    return Record(
        line["topic"],
        line["partition"],
        line["offset"],
        line["timestamp"],
        octets(line["key"]),
        octets(line["value"]),
        tuple((name, octets(value)) for name, value in line["headers"]),
    )


def _clients(path: pathlib.Path) -> tuple[list[Call], list[Asked], list[Seen], list[Watched]]:
    calls: dict[int, Call] = {}
    asked: dict[int, Asked] = {}
    seen: list[Seen] = []
    watched: list[Watched] = []
    for line in lines(path):
        match line["kind"]:
            case "seen":
                seen.append(Seen(line["order_id"], line["client"], len(seen), line["revision"], line["least"]))
            case "watched":
                watched.append(Watched(line["order_id"], line["client"], line["after"], line["revisions"]))
            case "call":
                request = CreateOrderRequest.FromString(octets(line["request"]) or b"")
                calls[line["call"]] = Call(line["call"], line["caller"], request)
            case "command":
                command = _COMMANDS[line["method"]].FromString(octets(line["request"]) or b"")
                asked[line["call"]] = Asked(line["call"], line["caller"], line["method"], command)
            case outcome:
                call = calls.get(line["call"]) or asked[line["call"]]
                call.outcome = outcome
                call.reason = line.get("reason", "")
                if outcome == "ok":
                    call.order = Order.FromString(octets(line["order"]) or b"")
    return list(calls.values()), list(asked.values()), seen, watched


def _mail(path: pathlib.Path) -> Mail:
    with path.open("rb") as file:
        headers = email.parser.BytesHeaderParser().parse(file)
    received = headers["X-Envelope-Received"]
    return Mail(
        path.name,
        str(headers["Message-ID"] or "").strip(),
        str(headers["X-Envelope-To"] or headers["To"] or "").strip(),
        seconds(received) if received else 0.0,
    )


def _fault(line: dict[str, Any]) -> Fault:
    known = {"kind", "target", "start", "end"}
    details = {name: value for name, value in line.items() if name not in known}
    return Fault(line["kind"], line["target"], line["start"], line.get("end", line["start"]), details)
