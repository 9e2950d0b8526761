"""The monitor finds a Kafka that is away, and one that is back."""

import asyncio

from devstack import KafkaBroker
from messaging.reachability import KafkaMonitor
from tests import engines


async def test_away_and_back(kafka_broker: KafkaBroker) -> None:
    monitor = KafkaMonitor(engines.kafka_settings(kafka_broker), client_id="tests")
    assert not monitor.is_reachable
    task = asyncio.create_task(monitor.run())
    try:
        await engines.eventually(lambda: monitor.is_reachable, "Kafka was found", seconds=5)
        kafka_broker.suspend()
        try:
            await engines.eventually(lambda: not monitor.is_reachable, "the outage was found", seconds=6)
        finally:
            kafka_broker.resume()
        await engines.eventually(lambda: monitor.is_reachable, "the recovery was found", seconds=6)
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled(), "it ends when it is told to, and by nothing else"
