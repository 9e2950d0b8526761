"""`orderflow check`: how each part stands, as a monitoring plugin answers."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, NoReturn

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

import settings
from cli import checks
from cli.connection import Connection, connected
from cli.output import told
from cli.plugin import Form, Result, State, Threshold, seconds, shown, span, together

Look = Callable[[], Awaitable[Result]]

_SUBJECTS: Final = ("server", "kafka", "db")
"""Checks of something that has to answer: when it does not, that is critical. Of the others it is unknown."""
_TIMED: Final = ("server", "db")
"""Checks of how soon something answers."""

_ANSWER: Final = ("1s", "5s")
_AGE: Final = ("60s", "5m")
_CERTIFICATE: Final = ("14d", "3d")
_COUNT: Final = (0.0, 10.0)
_OLDEST: Final = "24h"
_UNKNOWN: Final = "15m"
_STALE: Final = "1h"


class _Plugin(TyperGroup):
    """A command that is not written right ends with 3: 2 would be read as critical."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _not_critical():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _not_critical():
            return super().invoke(ctx)


@contextlib.contextmanager
def _not_critical() -> Iterator[None]:
    try:
        yield
    except TyperException as error:
        error.exit_code = State.UNKNOWN
        raise


app = typer.Typer(
    cls=_Plugin,
    help="How each part stands, for monitoring. Exit code 0 ok, 1 warning, 2 critical, 3 unknown.",
    no_args_is_help=True,
)


def _duration(text: str) -> float:
    try:
        return seconds(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _span(flag: str, default: str, text: str) -> Any:
    return typer.Option(default, flag, parser=_duration, metavar="DURATION", help=text)


def _count(flag: str, default: float, text: str) -> Any:
    return typer.Option(default, flag, min=0, help=text)


_FORMAT = typer.Option(Form.TEXT, "--format", help="`nagios` is one line with performance data.")
_TIMEOUT = _span("--timeout", "10s", "What has not answered by then is away.")
_GROUPS = typer.Option([], "--group", help="Only of this consumer group; may be repeated.")


@app.command()
@connected
def server(
    connection: Connection,
    warn: float = _span("--warn", _ANSWER[0], "Warning when it answers later than that."),
    crit: float = _span("--crit", _ANSWER[1], "Critical when it answers later than that."),
    timeout: float = _TIMEOUT,
    form: Form = _FORMAT,
) -> None:
    """Whether the server serves."""
    threshold = _threshold(warn, crit)
    _answer("server", lambda: checks.server(connection, threshold, timeout=timeout), timeout, form)


@app.command()
def kafka(timeout: float = _TIMEOUT, form: Form = _FORMAT) -> None:
    """Whether every broker answers and every partition takes records. Replicas out of sync are a warning."""
    _answer("kafka", lambda: checks.kafka(settings.load()), timeout, form)


@app.command()
def db(
    warn: float = _span("--warn", _ANSWER[0], "Warning when it answers later than that."),
    crit: float = _span("--crit", _ANSWER[1], "Critical when it answers later than that."),
    timeout: float = _TIMEOUT,
    form: Form = _FORMAT,
) -> None:
    """Whether PostgreSQL answers and takes writes. Pending migrations are a warning."""
    threshold = _threshold(warn, crit)
    _answer("db", lambda: checks.db(settings.load(), threshold), timeout, form)


@app.command()
def lag(
    group: list[str] = _GROUPS,
    warn: float = _span("--warn", _AGE[0], "Warning when a record has waited for longer than that."),
    crit: float = _span("--crit", _AGE[1], "Critical when a record has waited for longer than that."),
    timeout: float = _TIMEOUT,
    form: Form = _FORMAT,
) -> None:
    """For how long the oldest record has waited that a group has to handle, whether it runs or not."""
    groups, threshold = _known(group), _threshold(warn, crit)
    _answer("lag", lambda: checks.lag(settings.load(), threshold, groups), timeout, form)


@app.command()
@connected
def dlq(
    connection: Connection,
    warn: float = _count("--warn", _COUNT[0], "Warning when more than so many wait for somebody."),
    crit: float = _count("--crit", _COUNT[1], "Critical when more than so many do."),
    oldest: float = _span("--oldest", _OLDEST, "Warning when one has waited for longer than that."),
    timeout: float = _TIMEOUT,
    form: Form = _FORMAT,
) -> None:
    """How many dead letters wait for somebody."""
    threshold = _threshold(warn, crit)
    _answer("dlq", lambda: checks.dlq(connection, threshold, oldest=oldest, timeout=timeout), timeout, form)


@app.command()
def orders(
    warn: float = _count("--warn", _COUNT[0], "Warning when more than so many are overdue."),
    crit: float = _count("--crit", _COUNT[1], "Critical when more than so many are."),
    unknown: float = _span("--unknown", _UNKNOWN, "Critical when nobody knows of a charge for longer than that."),
    timeout: float = _TIMEOUT,
    form: Form = _FORMAT,
) -> None:
    """How many orders stay where they are for longer than they may."""
    threshold = _threshold(warn, crit)
    _answer("orders", lambda: checks.orders(settings.load(), threshold, unknown=unknown), timeout, form)


@app.command()
def ledger(
    warn: float = _count("--warn", 0.0, "Warning when there are more differences than that."),
    crit: float = _count("--crit", 0.0, "Critical when there are more differences than that."),
    stale: float = _span("--stale", _STALE, "Unknown when nothing was compared for longer than that."),
    timeout: float = _TIMEOUT,
    form: Form = _FORMAT,
) -> None:
    """Whether the gateway, the payments and the orders agree, as far as the reconciler has compared them."""
    threshold = _threshold(warn, crit)
    _answer("ledger", lambda: checks.ledger(settings.load(), threshold, stale=stale), timeout, form)


@app.command()
@connected
def cert(
    connection: Connection,
    warn: float = _span("--warn", _CERTIFICATE[0], "Warning when it ends in less than that."),
    crit: float = _span("--crit", _CERTIFICATE[1], "Critical when it ends in less than that."),
    timeout: float = _TIMEOUT,
    form: Form = _FORMAT,
) -> None:
    """When the server's certificate ends, and your own if you show one. One that callers refuse is critical."""
    threshold = _threshold(warn, crit, below=True)
    _answer("cert", lambda: checks.cert(connection, threshold), timeout, form)


@app.command("all")
@connected
def everything(
    connection: Connection,
    skip: list[str] = typer.Option([], "--skip", help="Leave this check out; may be repeated."),
    group: list[str] = _GROUPS,
    timeout: float = _TIMEOUT,
    form: Form = _FORMAT,
) -> None:
    """All of them, with their own thresholds; the worst counts. Without TLS there is no certificate to check."""
    groups = _known(group)
    looks: dict[str, Look] = {
        "server": lambda: checks.server(connection, _default(_ANSWER), timeout=timeout),
        "kafka": lambda: checks.kafka(settings.load()),
        "db": lambda: checks.db(settings.load(), _default(_ANSWER)),
        "lag": lambda: checks.lag(settings.load(), _default(_AGE), groups),
        "dlq": lambda: checks.dlq(connection, Threshold(*_COUNT), oldest=seconds(_OLDEST), timeout=timeout),
        "orders": lambda: checks.orders(settings.load(), Threshold(*_COUNT), unknown=seconds(_UNKNOWN)),
        "ledger": lambda: checks.ledger(settings.load(), Threshold(0.0, 0.0), stale=seconds(_STALE)),
        "cert": lambda: checks.cert(connection, _default(_CERTIFICATE, below=True)),
    }
    for name in skip:
        if name not in looks:
            raise typer.BadParameter(f"{name} is no check: {', '.join(looks)}", param_hint="--skip")
    chosen = {
        name: look for name, look in looks.items() if name not in skip and (name != "cert" or connection.uses_tls)
    }

    async def look_at_all() -> Result:
        # Those that time an answer go first and alone: beside the others they would time this process.
        found = {name: await looked(name, look, timeout) for name, look in chosen.items() if name in _TIMED}
        rest = [name for name in chosen if name not in _TIMED]
        found |= zip(rest, await asyncio.gather(*(looked(name, chosen[name], timeout) for name in rest)), strict=True)
        return together([found[name] for name in chosen])

    _end(asyncio.run(look_at_all()), form)


def _answer(name: str, look: Look, timeout: float, form: Form) -> NoReturn:
    _end(asyncio.run(looked(name, look, timeout)), form)


def _end(result: Result, form: Form) -> NoReturn:
    print(shown(result, form))
    sys.exit(result.state)


async def looked(name: str, look: Look, timeout: float) -> Result:
    """Returns what a check found. One that could not look says so, and has no figures."""
    away = State.CRITICAL if name in _SUBJECTS else State.UNKNOWN
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # the answer says what is away
    try:
        async with asyncio.timeout(timeout):
            return await look()
    except TimeoutError:
        return Result(name, away, f"no answer within {span(timeout)}")
    except checks.Unreadable as error:
        return Result(name, away, str(error))
    except TyperException:
        raise
    except settings.SettingsError as error:
        return Result(name, State.UNKNOWN, str(error))
    except Exception as error:
        text = told(error)
        if text is None:
            return Result(name, State.UNKNOWN, f"{type(error).__name__}: {error}")
        return Result(name, away, text)


def _threshold(warn: float, crit: float, *, below: bool = False) -> Threshold:
    threshold = Threshold(warn, crit, below=below)
    if not threshold.is_in_order:
        raise typer.BadParameter("a warning has to come before it is critical", param_hint="--warn")
    return threshold


def _default(spans: tuple[str, str], *, below: bool = False) -> Threshold:
    return Threshold(seconds(spans[0]), seconds(spans[1]), below=below)


def _known(chosen: Sequence[str]) -> list[str]:
    known = checks.groups()
    for group in chosen:
        if group not in known:
            raise typer.BadParameter(f"{group} is no group: {', '.join(known)}", param_hint="--group")
    return list(chosen or known)
