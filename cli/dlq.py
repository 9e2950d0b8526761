"""`orderflow dlq`: dead letters, through the server's DeadLetterService."""

import contextlib
import datetime
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer
from google.protobuf.json_format import MessageToDict

from cli.connection import Connection, connected
from cli.output import Format, ago, show

if TYPE_CHECKING:
    from orderflow.operations.v1.dead_letter_service_pb2 import DeadLetterFilter, ReplayPlan
    from orderflow.operations.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub

app = typer.Typer(help="Look at dead letters, replay and discard them.", no_args_is_help=True)

_OUTPUT = typer.Option(Format.TABLE, "-o", "--output")
_GROUP = typer.Option("", help="Only of this consumer group.")
_REASON = typer.Option("", "--error-class", help="Only of this error class.")
_ORDER = typer.Option("", "--order", help="Only about this order.")
_SINCE = typer.Option("", help="Only written within this time: 30m, 2h, 7d.")
_WHY = typer.Option(..., "--reason", help="Why, for the history.")


@contextlib.contextmanager
def _service(connection: Connection) -> Iterator["DeadLetterServiceStub"]:
    from orderflow.operations.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub

    with connection.channel() as channel:
        yield DeadLetterServiceStub(channel)


@app.command()
@connected
def reasons(connection: Connection, output: Format = _OUTPUT) -> None:
    """Count unresolved dead letters by group and error class."""
    from orderflow.operations.v1 import dead_letter_service_pb2 as pb

    with _service(connection) as service:
        response = service.SummarizeDeadLetters(pb.SummarizeDeadLettersRequest(), timeout=10)
    rows = [
        {
            "group": each.group,
            "error_class": each.error_class,
            "records": each.count,
            "orders": each.order_count,
            "first": each.first_time.ToJsonString(),
            "last": each.last_time.ToJsonString(),
        }
        for each in response.summaries
    ]
    show(rows, output, empty="No unresolved dead letters.")


@app.command("list")
@connected
def list_letters(
    connection: Connection,
    group: str = _GROUP,
    error_class: str = _REASON,
    order: str = _ORDER,
    since: str = _SINCE,
    resolved: bool = typer.Option(False, "--resolved", help="Resolved ones too."),
    limit: int = typer.Option(50, min=1, help="At most so many."),
    output: Format = _OUTPUT,
) -> None:
    """List dead letters, newest first."""
    from orderflow.operations.v1 import dead_letter_service_pb2 as pb

    rows: list[dict[str, Any]] = []
    request = pb.ListDeadLettersRequest(filter=_filter(group, error_class, order, since), include_resolved=resolved)
    with _service(connection) as service:
        while len(rows) < limit:
            request.page_size = min(limit - len(rows), 1_000)
            response = service.ListDeadLetters(request, timeout=10)
            for entry in response.dead_letters:
                letter = entry.dead_letter
                rows.append(
                    {
                        "id": entry.dead_letter_id,
                        "group": letter.group,
                        "error_class": letter.error_class,
                        "key": letter.key.decode("utf-8", "backslashreplace"),
                        "origin": f"{letter.origin.topic}-{letter.origin.partition}@{letter.origin.offset}",
                        "attempts": letter.attempts,
                        "replay": letter.replay,
                        "state": pb.DeadLetterState.Name(entry.state).removeprefix("DEAD_LETTER_STATE_"),
                        "time": entry.record_time.ToJsonString(),
                    }
                )
            request.page_token = response.next_page_token
            if not response.next_page_token:
                break
    show(rows, output, empty="No dead letters match.")


@app.command("show")
@connected
def show_letter(connection: Connection, dead_letter_id: str) -> None:
    """Show one dead letter as JSON, with the event that it carries if that can be read."""
    import json

    from orderflow.operations.v1 import dead_letter_service_pb2 as pb

    with _service(connection) as service:
        response = service.GetDeadLetter(pb.GetDeadLetterRequest(dead_letter_id=dead_letter_id), timeout=10)
    print(json.dumps(MessageToDict(response.dead_letter, preserving_proto_field_name=True), indent=2))


@app.command()
@connected
def replay(connection: Connection, dead_letter_id: str, reason: str = _WHY) -> None:
    """Hand one dead letter to the group that gave up on it."""
    from orderflow.operations.v1 import dead_letter_service_pb2 as pb

    with _service(connection) as service:
        service.ReplayDeadLetter(pb.ReplayDeadLetterRequest(dead_letter_id=dead_letter_id, reason=reason), timeout=15)
    typer.echo("handed over; if it fails again it comes back as a new dead letter", err=True)


@app.command()
@connected
def discard(connection: Connection, dead_letter_ids: list[str], reason: str = _WHY) -> None:
    """Close dead letters without another try. One that may not be closed keeps none of the others from it."""
    import grpc

    from orderflow.operations.v1 import dead_letter_service_pb2 as pb

    exit_code = 0
    with _service(connection) as service:
        for each in dead_letter_ids:
            request = pb.DiscardDeadLetterRequest(dead_letter_id=each, reason=reason)
            try:
                service.DiscardDeadLetter(request, timeout=10)
                typer.echo(f"{each}: discarded", err=True)
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
                    raise
                typer.echo(f"orderflow: {each}: {error.code().name}: {error.details()}", err=True)
                exit_code = 64 + error.code().value[0]
    if exit_code:
        raise typer.Exit(exit_code)


@app.command()
@connected
def plan(
    connection: Connection,
    group: str = _GROUP,
    error_class: str = _REASON,
    order: str = _ORDER,
    since: str = _SINCE,
    output: Format = _OUTPUT,
) -> None:
    """Freeze the list of all unresolved dead letters that match, to be replayed by `apply`."""
    from orderflow.operations.v1 import dead_letter_service_pb2 as pb

    with _service(connection) as service:
        request = pb.CreateReplayPlanRequest(filter=_filter(group, error_class, order, since))
        made = service.CreateReplayPlan(request, timeout=30).plan
    show([_plan_row(made)], output, empty="")
    typer.echo(f'Apply: orderflow dlq apply {made.plan_id} --reason "..."', err=True)


@app.command()
@connected
def apply(
    connection: Connection,
    plan_id: str,
    reason: str = _WHY,
    rate: int = typer.Option(20, min=1, max=1_000, help="Records per second."),
    output: Format = _OUTPUT,
) -> None:
    """Replay a plan, and show how far it is. Made again after a break it goes on where it ended."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from orderflow.operations.v1 import dead_letter_service_pb2 as pb

    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    last = None
    with _service(connection) as service, Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("replaying")
        request = pb.ApplyReplayPlanRequest(plan_id=plan_id, reason=reason, rate=rate)
        for response in service.ApplyReplayPlan(request):
            last = response.plan
            progress.update(task, total=last.total, completed=last.replayed + last.skipped)
    assert last is not None
    show([_plan_row(last)], output, empty="")


@app.command()
@connected
def abort(connection: Connection, plan_id: str, output: Format = _OUTPUT) -> None:
    """End a plan: what was not replayed yet stays as it is."""
    from orderflow.operations.v1 import dead_letter_service_pb2 as pb

    with _service(connection) as service:
        ended = service.AbortReplayPlan(pb.AbortReplayPlanRequest(plan_id=plan_id), timeout=10).plan
    show([_plan_row(ended)], output, empty="")


def _plan_row(made: "ReplayPlan") -> dict[str, Any]:
    from orderflow.operations.v1 import dead_letter_service_pb2 as pb

    return {
        "plan": made.plan_id,
        "records": made.total,
        "replayed": made.replayed,
        "skipped": made.skipped,
        "state": pb.ReplayPlanState.Name(made.state).removeprefix("REPLAY_PLAN_STATE_"),
        "by": made.created_by,
    }


def _filter(group: str, error_class: str, order: str, since: str) -> "DeadLetterFilter":
    from orderflow.operations.v1.dead_letter_service_pb2 import DeadLetterFilter

    which = DeadLetterFilter(group=group, error_class=error_class, order_id=order)
    if since:
        which.since.FromDatetime(datetime.datetime.now(datetime.UTC) - ago(since))
    return which
