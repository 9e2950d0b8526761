"""How commands answer: data on standard output, all else on standard error, exit codes that scripts can use."""

import contextlib
import datetime
import enum
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import typer

if TYPE_CHECKING:
    from google.protobuf.message import Message

_Message = TypeVar("_Message", bound="Message")
_FURTHEST: Final = datetime.timedelta(days=3_650)


class Format(enum.StrEnum):
    """Shapes of output."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


@contextlib.contextmanager
def fail_on_error() -> Iterator[None]:
    """Turns an error that a user can act on into one line and exit code 1."""
    try:
        yield
    except Exception as error:
        text = told(error)
        if text is None:
            raise
        print(f"orderflow: {text}", file=sys.stderr)
        sys.exit(1)


def told(error: Exception) -> str | None:
    """Returns what a user is told of an error that he can act on; None of any other."""
    # Imported late: most commands end well, and these take half a second.
    import asyncpg
    from aiokafka.errors import KafkaError

    from devstack.errors import DevstackError
    from domain.failures import DependencyDown, Permanent
    from messaging.rewind import GroupRunsError
    from messaging.topic_admin import TopicAdminError
    from settings import SettingsError
    from storage.eraser import WritersOpenError
    from storage.migrate import MigrationError

    told = SettingsError | MigrationError | TopicAdminError | DevstackError | WritersOpenError | GroupRunsError
    if isinstance(error, told):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed; `orderflow dev` needs what requirements/dev.txt lists"
    if isinstance(error, KafkaError):
        return f"Kafka (ORDERFLOW_KAFKA_BOOTSTRAP): {error!r}"
    if isinstance(error, Permanent) or (isinstance(error, DependencyDown) and error.dependency == "gateway"):
        return f"the payment gateway (ORDERFLOW_GATEWAY_URL): {error.message}"
    refused = (
        asyncpg.InvalidAuthorizationSpecificationError
        | asyncpg.InvalidCatalogNameError
        | asyncpg.InsufficientPrivilegeError
        | asyncpg.CannotConnectNowError
        | asyncpg.TooManyConnectionsError
    )
    if isinstance(error, DependencyDown | OSError | refused):
        return f"PostgreSQL (ORDERFLOW_DATABASE_URL): {error}"
    return None


def show(rows: Sequence[Mapping[str, Any]], form: Format, *, empty: str) -> None:
    """Prints rows as an aligned table, as a JSON array or as a JSON object per line."""
    if form is Format.JSON:
        print(json.dumps(list(rows)))
    elif form is Format.JSONL:
        for row in rows:
            print(json.dumps(row))
    elif not rows:
        print(empty, file=sys.stderr)
    else:
        _show_table(rows)


def show_message(message: "Message", row: Mapping[str, Any], form: Format) -> None:
    """Prints one answer of the server: its row as a table, or all of it in protobuf's JSON."""
    if form is Format.TABLE:
        _show_table([row])
    else:
        print(json.dumps(_as_dict(message), indent=2 if form is Format.JSON else None))


def show_messages(
    messages: Iterable[_Message], row: Callable[[_Message], Mapping[str, Any]], form: Format, *, empty: str
) -> None:
    """Prints what the server lists. As JSON lines each is printed as it comes."""
    if form is Format.TABLE:
        show([row(message) for message in messages], form, empty=empty)
    elif form is Format.JSON:
        print(json.dumps([_as_dict(message) for message in messages]))
    else:
        for message in messages:
            print(json.dumps(_as_dict(message)), flush=True)


def enum_name(message: "Message", field: str) -> str:
    """Returns a field's enum value without the prefix that all its values have: `PAID` for ORDER_STATUS_PAID."""
    kind = message.DESCRIPTOR.fields_by_name[field].enum_type
    assert kind is not None
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    number = getattr(message, field)
    known = kind.values_by_number.get(number)
    if known is None:
        return str(number)
    return known.name.removeprefix(prefix) if number else ""


def ago(text: str) -> datetime.timedelta:
    """Returns the span that `--since` names: 30m, 2h, 7d."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    if not text or text[-1] not in units or not text[:-1].isdecimal():
        raise typer.BadParameter("must be a number and s, m, h or d, for example 2h", param_hint="--since")
    seconds = int(text[:-1]) * units[text[-1]]
    if seconds > _FURTHEST.total_seconds():
        raise typer.BadParameter(f"must be at most {_FURTHEST.days}d", param_hint="--since")
    return datetime.timedelta(seconds=seconds)


def _as_dict(message: "Message") -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True)


def _show_table(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        whole = name in ("id", "time") or name.endswith("_id")
        table.add_column(name.upper().replace("_", " "), overflow="fold", no_wrap=whole)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console = Console(markup=False, emoji=False)  # what callers wrote is shown as it is
    if not console.is_terminal:
        console.width = 10_000  # a pipe has no edge: ids are never cut
    console.print(table)
