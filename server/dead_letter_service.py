"""The DeadLetterService: operators look at dead letters, replay and discard them."""

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import grpc

import fault_points
from domain.failures import Failure
from domain.identifiers import is_canonical_uuid
from domain.validation import Violation
from messaging import envelope, retry
from messaging.publisher import NotHandedOver, OutcomeUnknown, Publisher
from messaging.topics import GROUPS, retry_topics
from orderflow.operations.v1 import dead_letter_service_pb2 as pb
from orderflow.operations.v1 import dead_letter_service_pb2_grpc
from server import calls, errors, page_tokens
from server.errors import CallError
from settings import KafkaSettings, ServerSettings
from storage.dead_letters import AlreadyResolved, DeadLetterId, DeadLetters
from storage.discarded_refunds import DiscardRefused
from telemetry import logs, metrics

if TYPE_CHECKING:
    from server.calls import Context

log = logs.get()

_DEFAULT_RATE: Final = 20
_LARGEST_RATE: Final = 1_000
_REPORT_SECONDS: Final = 0.5
_PUBLISH_SECONDS: Final = 10.0


class DeadLetterService(dead_letter_service_pb2_grpc.DeadLetterServiceServicer):
    """Implements orderflow.operations.v1.DeadLetterService. Methods raise CallError and DependencyDown."""

    def __init__(
        self, *, letters: DeadLetters, publisher: Publisher, kafka: KafkaSettings, settings: ServerSettings
    ) -> None:
        """Collaborators are given; nothing is connected here."""
        self._letters = letters
        self._publisher = publisher
        self._delays = kafka.retry_delay_seconds
        self._settings = settings

    async def SummarizeDeadLetters(  # noqa: N802
        self,
        request: pb.SummarizeDeadLettersRequest,  # noqa: ARG002
        context: "Context",  # noqa: ARG002
    ) -> pb.SummarizeDeadLettersResponse:
        """Counts unresolved dead letters."""
        return pb.SummarizeDeadLettersResponse(summaries=await self._letters.summary())

    async def ListDeadLetters(  # noqa: N802
        self,
        request: pb.ListDeadLettersRequest,
        context: "Context",  # noqa: ARG002
    ) -> pb.ListDeadLettersResponse:
        """Lists dead letters, newest first."""
        size = page_tokens.page_size(request)
        _check_filter(request.filter)
        bound = _fingerprint(request)
        before = _page_token(request.page_token, bound)
        entries = await self._letters.page(
            request.filter, include_resolved=request.include_resolved, size=size + 1, before=before
        )
        more = len(entries) > size
        response = pb.ListDeadLettersResponse(dead_letters=[_readable(entry) for entry in entries[:size]])
        if more:
            raw = f"{bound}:{response.dead_letters[-1].dead_letter_id}"
            response.next_page_token = base64.urlsafe_b64encode(raw.encode()).decode()
        return response

    async def GetDeadLetter(  # noqa: N802
        self,
        request: pb.GetDeadLetterRequest,
        context: "Context",  # noqa: ARG002
    ) -> pb.GetDeadLetterResponse:
        """Returns one dead letter."""
        return pb.GetDeadLetterResponse(dead_letter=await self._get(_letter_id(request.dead_letter_id)))

    async def ReplayDeadLetter(  # noqa: N802
        self, request: pb.ReplayDeadLetterRequest, context: "Context"
    ) -> pb.ReplayDeadLetterResponse:
        """Hands one dead letter to its group again."""
        which = _letter_id(request.dead_letter_id)
        _check_reason(request.reason)
        entry = await self._get(which)
        if entry.state != pb.DeadLetterState.DEAD_LETTER_STATE_OPEN:
            raise _already_resolved()
        await self._replay(entry, by=calls.caller(context), reason=request.reason)
        return pb.ReplayDeadLetterResponse(dead_letter=await self._get(which))

    async def DiscardDeadLetter(  # noqa: N802
        self, request: pb.DiscardDeadLetterRequest, context: "Context"
    ) -> pb.DiscardDeadLetterResponse:
        """Closes one dead letter without another try."""
        which = _letter_id(request.dead_letter_id)
        _check_reason(request.reason)
        await self._get(which)
        try:
            await self._letters.resolve(
                which,
                pb.DeadLetterState.DEAD_LETTER_STATE_DISCARDED,
                by=calls.caller(context),
                reason=request.reason,
            )
        except AlreadyResolved as error:
            raise _already_resolved() from error
        except DiscardRefused as refused:
            raise errors.failed_precondition(refused.reason, _DISCARD_TEXTS[refused.reason]) from refused
        log.info("dead_letter.discarded", dead_letter_id=str(which), by=calls.caller(context))
        return pb.DiscardDeadLetterResponse(dead_letter=await self._get(which))

    async def CreateReplayPlan(  # noqa: N802
        self, request: pb.CreateReplayPlanRequest, context: "Context"
    ) -> pb.CreateReplayPlanResponse:
        """Freezes a list of dead letters to replay."""
        _check_filter(request.filter)
        plan = await self._letters.create_plan(request.filter, by=calls.caller(context))
        if plan is None:
            raise errors.failed_precondition("NOTHING_TO_REPLAY", "no unresolved dead letter matches")
        log.info("replay_plan.created", plan_id=plan.plan_id, total=plan.total, by=calls.caller(context))
        return pb.CreateReplayPlanResponse(plan=plan)

    async def GetReplayPlan(  # noqa: N802
        self,
        request: pb.GetReplayPlanRequest,
        context: "Context",  # noqa: ARG002
    ) -> pb.GetReplayPlanResponse:
        """Returns a plan."""
        return pb.GetReplayPlanResponse(plan=await self._plan(request.plan_id))

    async def AbortReplayPlan(  # noqa: N802
        self,
        request: pb.AbortReplayPlanRequest,
        context: "Context",
    ) -> pb.AbortReplayPlanResponse:
        """Ends a plan."""
        await self._plan(request.plan_id)
        await self._letters.abort_plan(request.plan_id)
        log.info("replay_plan.aborted", plan_id=request.plan_id, by=calls.caller(context))
        return pb.AbortReplayPlanResponse(plan=await self._plan(request.plan_id))

    async def ApplyReplayPlan(  # noqa: N802
        self, request: pb.ApplyReplayPlanRequest, context: "Context"
    ) -> AsyncIterator[pb.ApplyReplayPlanResponse]:
        """Replays a plan at a rate and reports progress."""
        _check_reason(request.reason)
        if request.rate < 0:
            raise errors.invalid([Violation("rate", "must not be negative")])
        plan = await self._plan(request.plan_id)
        log.info("replay_plan.applied", plan_id=plan.plan_id, by=calls.caller(context))
        yield pb.ApplyReplayPlanResponse(plan=plan)
        pause = 1 / min(request.rate or _DEFAULT_RATE, _LARGEST_RATE)
        loop = asyncio.get_running_loop()
        reported = due = loop.time()
        while True:
            # Before the look: what is discarded, or stopped, during the pause is not replayed.
            await asyncio.sleep(max(due - loop.time(), 0))
            if (entry := await self._letters.next_of_plan(request.plan_id)) is None:
                break
            due = max(due + pause, loop.time())
            replays = entry.state == pb.DeadLetterState.DEAD_LETTER_STATE_OPEN
            if replays:
                await self._replay(entry, by=calls.caller(context), reason=request.reason)
            await self._letters.tick_off(request.plan_id, DeadLetterId.parse(entry.dead_letter_id), replayed=replays)
            if loop.time() - reported > _REPORT_SECONDS:
                reported = loop.time()
                yield pb.ApplyReplayPlanResponse(plan=await self._plan(request.plan_id))
        yield pb.ApplyReplayPlanResponse(plan=await self._plan(request.plan_id))

    async def _replay(self, entry: pb.DeadLetterEntry, *, by: str, reason: str) -> None:
        """Publishes the record to its group, then records it. Twice is once: the group takes the first copy only."""
        group = entry.dead_letter.group
        if group not in GROUPS:  # from the catalogue: a header never chooses where something is sent
            raise errors.failed_precondition("UNKNOWN_GROUP", "the group that gave up on it is not one of this version")
        try:
            await self._publisher.publish(
                retry.replayed(entry.dead_letter, retry_topics(group, self._delays)), timeout=_PUBLISH_SECONDS
            )
        except NotHandedOver as error:
            metrics.REPLAYS.labels("not_handed_over").inc()
            raise errors.kafka_unavailable() from error
        except OutcomeUnknown as error:
            metrics.REPLAYS.labels("unknown").inc()
            raise errors.replay_outcome_unknown() from error
        metrics.REPLAYS.labels("replayed").inc()
        fault_points.reached("W15")
        which = DeadLetterId.parse(entry.dead_letter_id)
        try:
            await self._letters.resolve(which, pb.DeadLetterState.DEAD_LETTER_STATE_REPLAYED, by=by, reason=reason)
        except AlreadyResolved:
            return  # somebody else's call was first; the group takes one copy
        log.info("dead_letter.replayed", dead_letter_id=str(which), group=group, by=by)

    async def _get(self, which: DeadLetterId) -> pb.DeadLetterEntry:
        entry = await self._letters.get(which)
        if entry is None:
            raise CallError(grpc.StatusCode.NOT_FOUND, "DEAD_LETTER_NOT_FOUND", "there is no such dead letter (yet)")
        return _readable(entry)

    async def _plan(self, plan_id: str) -> pb.ReplayPlan:
        plan = await self._letters.plan(plan_id) if is_canonical_uuid(plan_id) else None
        if plan is None:
            raise CallError(grpc.StatusCode.NOT_FOUND, "REPLAY_PLAN_NOT_FOUND", "there is no such plan")
        return plan


_DISCARD_TEXTS: Final = {
    "OUTCOME_STORED": "its group had decided the record before it gave up: replay it, so that the decision is told",
    "CHARGE_OPEN": "a charge of its order may have happened: replay it, or cancel the order",
    "REFUND_OPEN": "a refund of its order may have been made, or is still to be made: replay it, or wait",
}


def _readable(entry: pb.DeadLetterEntry) -> pb.DeadLetterEntry:
    letter = entry.dead_letter
    try:
        event = envelope.decode(letter.origin.topic, letter.key, letter.value)
    except Failure:
        return entry
    entry.event.CopyFrom(event)
    return entry


def _letter_id(text: str) -> DeadLetterId:
    try:
        return DeadLetterId.parse(text)
    except ValueError:
        raise errors.invalid([Violation("dead_letter_id", "must be one that ListDeadLetters returned")]) from None


def _check_reason(reason: str) -> None:
    if not 1 <= len(reason) <= 255 or not reason.isprintable():
        raise errors.invalid([Violation("reason", "must have 1 to 255 printable characters")])


def _check_filter(which: pb.DeadLetterFilter) -> None:
    if which.order_id and not is_canonical_uuid(which.order_id):
        raise errors.invalid([Violation("filter.order_id", "must be a lower-case UUID")])
    for name in ("group", "error_class"):
        if len(getattr(which, name)) > 255 or not getattr(which, name).isprintable():
            raise errors.invalid([Violation(f"filter.{name}", "must have at most 255 printable characters")])
    for name in ("since", "until"):
        time = getattr(which, name)
        if not (0 <= time.seconds < 253402300800 and 0 <= time.nanos < 10**9):
            raise errors.invalid([Violation(f"filter.{name}", "must be a time between 1970 and 9999")])


def _fingerprint(request: pb.ListDeadLettersRequest) -> str:
    """What a page token is bound to: everything of the request but the page."""
    which = request.filter.SerializeToString(deterministic=True)
    return uuid.uuid5(uuid.NAMESPACE_OID, which.hex() + str(request.include_resolved)).hex


def _page_token(token: str, bound: str) -> DeadLetterId | None:
    if not token:
        return None
    try:
        to, _, last = base64.urlsafe_b64decode(token.encode()).decode().partition(":")
        if to == bound:
            return DeadLetterId.parse(last)
    except ValueError:
        pass
    raise page_tokens.foreign_token()


def _already_resolved() -> CallError:
    return errors.failed_precondition("ALREADY_RESOLVED", "the dead letter was replayed, discarded or settled before")
