"""How long done records wait for others to share their transaction with."""

import asyncio
import dataclasses
import time

import pytest
from aiokafka import ConsumerRecord

from domain.records import Delivery
from messaging import envelope, linger
from messaging.linger import CROWD_SECONDS, MOST_SKIPPED, SKIPPED_SECONDS, longest_wait
from messaging.window import MAX_SPAN
from messaging.worker import Limits
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from tests.builders import a_record, emitted_for, order_event
from tests.engines import eventually
from tests.partitions import Producer, a_placed_record, doubled_kafka, running  # noqa: F401

LIMITS = Limits(max_in_flight=8)
_LONG = 5.0
_SOON = 2.0


@pytest.mark.parametrize(
    ("done", "with_outputs", "under_way", "linger", "expected"),
    [
        pytest.param(1, True, 0, 0.0, 0.0, id="somebody waits for it"),
        pytest.param(1, True, 1, 0.0, 0.0, id="few are under way"),
        pytest.param(1, True, 2, 0.0, CROWD_SECONDS, id="a crowd is under way"),
        pytest.param(8, True, 8, 0.0, 0.0, id="enough are done"),
        pytest.param(1, True, 0, 0.2, 0.2, id="nobody waits for the worker's outputs"),
        pytest.param(1, True, 8, 0.2, 0.2, id="nor in a crowd"),
        pytest.param(7, False, 0, 0.0, SKIPPED_SECONDS, id="nothing to write"),
        pytest.param(8, False, 0, 0.0, 0.0, id="nothing to write for many"),
    ],
)
def test_the_longest_wait(done: int, with_outputs: bool, under_way: int, linger: float, expected: float) -> None:
    wait = longest_wait(done=done, skipped=0, with_outputs=with_outputs, under_way=under_way, most=8, linger=linger)
    assert wait == expected


@pytest.mark.parametrize(("skipped", "expected"), [(MOST_SKIPPED - 1, SKIPPED_SECONDS), (MOST_SKIPPED, 0.0)])
def test_the_longest_wait_of_what_is_only_passed(skipped: int, expected: float) -> None:
    assert longest_wait(done=0, skipped=skipped, with_outputs=False, under_way=0, most=8, linger=0.0) == expected


async def told(delivery: Delivery) -> list[OrderEvent]:
    return [emitted_for(delivery)]


async def test_what_is_done_while_nothing_else_is_under_way_is_committed_at_once(kafka: Producer) -> None:
    began = time.monotonic()
    async with running(kafka, told, limits=LIMITS) as ran:
        await ran.done(a_placed_record())
        assert time.monotonic() - began < _SOON
        assert kafka.transactions == 1


async def test_a_crowd_shares_a_transaction(kafka: Producer) -> None:
    turns = asyncio.Semaphore(0)
    handled: list[Delivery] = []

    async def one_by_one(delivery: Delivery) -> list[OrderEvent]:
        await turns.acquire()
        handled.append(delivery)
        return await told(delivery)

    async with running(kafka, one_by_one, limits=LIMITS) as ran:
        ran.runner.accept([a_placed_record(offset) for offset in range(8)])
        for each in range(1, 7):
            turns.release()
            await eventually(lambda count=each: len(handled) == count, "handled")  # type: ignore[misc]
        assert kafka.transactions <= 3
        turns.release()
        turns.release()


async def test_what_nobody_waits_for_shares_a_transaction_until_the_worker_drains(kafka: Producer) -> None:
    began = time.monotonic()
    handled: list[Delivery] = []

    async def noted(delivery: Delivery) -> list[OrderEvent]:
        handled.append(delivery)
        return await told(delivery)

    async with running(kafka, noted, limits=LIMITS, linger=_LONG) as ran:
        for offset in range(2):
            ran.runner.accept([a_placed_record(offset)])
            await eventually(lambda expected=offset + 1: len(handled) == expected, "handled")  # type: ignore[misc]
    assert time.monotonic() - began < _SOON
    assert (kafka.transactions, len(kafka.sent)) == (1, 2)


async def test_a_skipped_record_is_committed_with_the_next_that_has_outputs(kafka: Producer) -> None:
    async with running(kafka, told, limits=LIMITS) as ran:
        await ran.done(skipped(0), a_placed_record(1))
        assert kafka.transactions == 1


async def test_skipped_records_take_no_slot_and_are_passed_together(kafka: Producer) -> None:
    async with running(kafka, told, limits=LIMITS) as ran:
        one = skipped(0)
        count = 4 * LIMITS.max_in_flight
        ran.runner.accept([dataclasses.replace(one, offset=offset) for offset in range(count)])
        assert ran.runner.wants_records
        await eventually(lambda: ran.runner.standing.committed == count, "all are passed")
    assert kafka.transactions == 1


async def test_many_skipped_records_are_passed_at_once(kafka: Producer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "SKIPPED_SECONDS", _LONG)
    async with running(kafka, told, limits=LIMITS) as ran:
        one, began = skipped(0), time.monotonic()
        ran.runner.accept([dataclasses.replace(one, offset=offset) for offset in range(MAX_SPAN)])
        await eventually(lambda: ran.runner.standing.committed == MAX_SPAN, "all are passed")
        assert time.monotonic() - began < _SOON


def skipped(offset: int) -> ConsumerRecord:
    processing = order_event(OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING)
    record = envelope.encode(processing)
    return a_record(record.value, key=record.key, partition=0, offset=offset)
