"""Commands: each does one thing, once, or is refused, and its clients are told which (I18)."""

import collections
from collections.abc import Iterator
from typing import Final

from chaos.oracle import rules
from chaos.oracle.facts import Facts
from chaos.oracle.folder import Asked, CommandRequest, Row
from chaos.oracle.violations import Violation
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import OrderStatus

_DECIDED: Final = frozenset(
    {"ILLEGAL_TRANSITION", "ETAG_MISMATCH", "REFUND_TOO_LARGE", "CURRENCY_MISMATCH", "REFUND_REFUSED"}
)
"""Refusals that only a decision leads to. With another one the command may never have been handed over."""

_Key = tuple[str, int, str, str]
"""Who asks, for which command, of which order, under which request_id."""


def answered(facts: Facts) -> Iterator[Violation]:
    """I18: a command that was done has its event once, a refused one none, and clients were told what came of it."""
    answers = {row["event_id"]: row for row in facts.run.table("command_answers")}
    effects: dict[str, list[OrderEvent]] = collections.defaultdict(list)
    for life in facts.lives.values():
        for event in life:
            effects[event.metadata.causation_id].append(event)
    asked: dict[_Key, list[Asked]] = collections.defaultdict(list)
    for call in facts.run.asked:
        request = call.request
        asked[call.caller, rules.METHODS[call.method], request.order_id, request.request_id].append(call)
    for event_id, copies in facts.copies.items():
        command = copies[0].event
        if command.type not in rules.COMMANDS:
            continue
        key = (command.metadata.caller, command.type, command.order.order_id, command.command.request_id)
        calls, answer, caused = asked.pop(key, []), answers.get(event_id), effects[event_id]
        yield from _given(command, calls, answer)
        if answer is not None:
            life = facts.lives.get(command.order.order_id, [])
            yield from _decided(command, answer, caused, life)
            yield from _told(command, answer, caused, life, calls)
        elif command.order.order_id not in facts.open_refunds:
            yield _violation(command, "nobody has answered it")
    for calls in asked.values():
        for call in calls:
            if call.outcome == "ok" or call.reason in _DECIDED:
                yield Violation(
                    "I18",
                    f"{call.method} was answered {call.reason or 'OK'}, and is not on the topic",
                    {"order": call.request.order_id, "call": call.number},
                )


def _given(command: OrderEvent, calls: list[Asked], answer: Row | None) -> Iterator[Violation]:
    """A client asked for it, in these words, and was not told that it was not handed over; or a sweep did."""
    refusal = answer["refusal"] if answer is not None else ""
    if not command.metadata.caller:
        if command.type not in rules.SWEPT or command.metadata.source != "order-processor":
            yield _violation(command, f"the system never asks that, and {command.metadata.source} did")
    elif not any(_says(command, call.request) for call in calls):
        yield _violation(command, "no client asked for it")
    elif all(call.outcome == "refused" and call.reason != refusal for call in calls):
        yield _violation(command, f"its client was told {calls[0].reason}")


def _says(command: OrderEvent, request: CommandRequest) -> bool:
    details = getattr(command, command.WhichOneof("details") or "order_created")
    return all(
        getattr(details, field.name) == getattr(request, field.name, None) for field in details.DESCRIPTOR.fields
    )


def _decided(command: OrderEvent, answer: Row, caused: list[OrderEvent], life: list[OrderEvent]) -> Iterator[Violation]:
    leads, refusal = rules.COMMANDS[command.type], answer["refusal"]
    told = [rules.name(event.type) for event in caused]
    if refusal:
        if caused:
            yield _violation(command, f"refused with {refusal}, and it led to {told}")
        status: OrderStatus = answer["refused_status"]
        if status and not any(event.order.status == status for event in life):
            yield _violation(command, f"refused as {rules.status_name(status)}, which the order never was")
        if refusal == "ILLEGAL_TRANSITION" and rules.may_ask(command, status):
            yield _violation(command, f"refused as {rules.status_name(status)}, where it may be asked")
    elif len(caused) > 1 or any(event.type != leads for event in caused):
        yield _violation(command, f"it led to {told}")
    elif not caused and (
        # What is done already is done; but one more refund is not the one before. A sweep goes on with another's.
        (command.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_REFUND_REQUESTED and command.metadata.caller)
        or not any(event.type == leads for event in life)
    ):
        yield _violation(command, "answered as done, and nothing came of it")
    asked = command.order_refund_requested.amount
    if caused and asked.amount_minor and any(event.payment_refunded.amount != asked for event in caused):
        yield _violation(command, f"{asked.amount_minor} was asked for, and another amount given back")


def _told(
    command: OrderEvent, answer: Row, caused: list[OrderEvent], life: list[OrderEvent], calls: list[Asked]
) -> Iterator[Violation]:
    for call in calls:
        if call.outcome == "ok":
            if answer["refusal"]:
                yield _violation(command, f"a client was told OK, and it was refused with {answer['refusal']}")
            elif not any(call.order == event.order for event in caused or life):
                yield _violation(command, "a client was told of an order that never was so")
        elif call.reason in _DECIDED and call.reason != answer["refusal"]:
            yield _violation(command, f"a client was told {call.reason}, and it was {answer['refusal'] or 'done'}")


def _violation(command: OrderEvent, text: str) -> Violation:
    return Violation(
        "I18",
        f"{rules.name(command.type)}: {text}",
        {"order": command.order.order_id, "event": command.event_id},
    )
