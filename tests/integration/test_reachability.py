"""The monitor finds a Kafka that is away, and one that is back."""

import asyncio

import pytest

from devstack import KafkaBroker
from messaging import reachability
from messaging.reachability import KafkaMonitor
from tests import engines


def test_either_is_found_within_4_seconds() -> None:
    assert reachability._INTERVAL_SECONDS + reachability._ANSWER_SECONDS <= 4


async def test_away_and_back(kafka_broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reachability, "_INTERVAL_SECONDS", 0.1)
    monkeypatch.setattr(reachability, "_ANSWER_SECONDS", 1.0)
    monitor = KafkaMonitor(engines.kafka_settings(kafka_broker), client_id="tests")
    assert not monitor.is_reachable
    task = asyncio.create_task(monitor.run())
    try:
        await engines.eventually(lambda: monitor.is_reachable, "Kafka was found")
        kafka_broker.suspend()
        try:
            await engines.eventually(lambda: not monitor.is_reachable, "the outage was found")
        finally:
            kafka_broker.resume()
        await engines.eventually(lambda: monitor.is_reachable, "the recovery was found")
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled(), "it ends when it is told to, and by nothing else"
