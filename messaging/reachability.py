"""Tells whether Kafka answers, for health and for the ingress."""

import asyncio
from typing import Final

from aiokafka.errors import KafkaError

from messaging import aiokafka_internals, clients
from settings import KafkaSettings
from telemetry import logs, metrics

log = logs.get()

_INTERVAL_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 3.0


class KafkaMonitor:
    """Asks Kafka for its metadata every second. `run` is its life."""

    def __init__(self, kafka: KafkaSettings, *, client_id: str) -> None:
        """Connects nothing."""
        self._kafka = kafka
        self._client_id = client_id
        self.is_reachable = False

    async def run(self) -> None:
        """Asks until cancelled. A Kafka that does not answer is found within 4 s, one that is back within 4 s."""
        admin = clients.admin(self._kafka, client_id=self._client_id)
        connected = False
        try:
            while True:
                try:
                    async with asyncio.timeout(_ANSWER_SECONDS):
                        if not connected:
                            await admin.start()
                            connected = True
                        await admin.describe_cluster()
                    self._report(reachable=True)
                except (KafkaError, OSError, TimeoutError, AssertionError) as error:
                    self._report(reachable=False, error=type(error).__name__)
                    # A new client starts from the bootstrap list again, so it also finds a cluster that has moved.
                    await aiokafka_internals.close_admin(admin)
                    admin = clients.admin(self._kafka, client_id=self._client_id)
                    connected = False
                await asyncio.sleep(_INTERVAL_SECONDS)
        finally:
            await aiokafka_internals.close_admin(admin)

    def _report(self, *, reachable: bool, error: str = "") -> None:
        if reachable != self.is_reachable:
            self.is_reachable = reachable
            if reachable:
                log.info("kafka.reachable")
            else:
                log.warning("kafka.unreachable", error=error)
        metrics.KAFKA_REACHABLE.set(reachable)
