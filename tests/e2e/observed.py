"""The running system with what tests look up in it from outside, and what puts it right again."""

import asyncio
import contextlib
import pathlib
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from devstack.system import ROLES, STAND_INS, Ports, StripeStandIn, System, is_serving
from tests.e2e import observer

RETRY_DELAYS: Final = (1, 2)
READS: Final = {
    "order-processor": ("orders",),
    "payment-processor": ("orders",),
    "notification-email": ("orders", "payments"),
    "notification-sms": ("orders", "payments"),
}
"""The groups that retry and write dead letters, and what they read besides their own retry topics."""

RETRY_TOPICS: Final = {f"{group}.retry.{delay}s": group for group in READS for delay in RETRY_DELAYS}
PARTITIONS: Final = {"orders": 3, "payments": 3, "notifications": 3, "dlq": 1, **dict.fromkeys(RETRY_TOPICS, 1)}


class ObservedSystem(System):
    """A System with short retry delays that tells where its groups stand and can be mended."""

    def __init__(
        self,
        directory: pathlib.Path,
        ports: Ports,
        *,
        settings: dict[str, str],
        stripe: StripeStandIn | None = None,
    ) -> None:
        delays = {"ORDERFLOW_KAFKA_RETRY_DELAYS": ",".join(map(str, RETRY_DELAYS))}
        super().__init__(directory, ports, settings=delays | settings, stripe=stripe)
        self._own_settings: dict[str, dict[str, str]] = {}

    # -- put right ---------------------------------------------------------------------------------------------------

    def start_role(self, role: str, settings: dict[str, str] | None = None) -> None:
        super().start_role(role, settings)
        self._own_settings[role] = settings or {}

    async def mend(self) -> None:
        """Starts what does not run, restarts roles that do not serve or have settings of a test's own, and waits."""
        assert self.kafka is not None
        for engine in (self.kafka, self.postgres):
            if not engine.running:
                engine.start()
                await engine.wait_ready()
        for stand_in in STAND_INS:
            if stand_in not in self.processes or not self.processes[stand_in].running:
                self.start_stand_in(stand_in)
        await self.gateway_answers()
        await asyncio.gather(*(self._mend(role) for role in ROLES))
        await self.wait_healthy(ROLES)

    async def _mend(self, role: str) -> None:
        if self._own_settings[role] or not await is_serving(self.health_address(role)):
            await self.stop_role(role)
            self.start_role(role)

    async def gateway_answers(self) -> None:
        """Waits until the gateway takes calls."""

        async def answers() -> bool:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.ports.gateway)
                writer.close()
                await writer.wait_closed()
                return True
            return False

        await observer.eventually(answers, within=60, what="a gateway that answers")

    # -- looked up ---------------------------------------------------------------------------------------------------

    async def ends(self, *topics: str) -> dict[TopicPartition, int]:
        """Returns where readers of committed records are at the end."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap, isolation_level="read_committed")
        await consumer.start()
        try:
            partitions = [TopicPartition(topic, number) for topic in topics for number in range(PARTITIONS[topic])]
            return dict(await consumer.end_offsets(partitions))
        finally:
            await consumer.stop()

    async def lag(self) -> dict[str, int]:
        """Returns how many records each group, the projector included, has before it, where that is any."""
        ends = await self.ends(*PARTITIONS)
        found: dict[str, int] = {}
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            for group, topics in READS.items():
                committed = await admin.list_consumer_group_offsets(group)
                read = (*topics, *(topic for topic, owner in RETRY_TOPICS.items() if owner == group))
                found[group] = sum(max(end - committed[at].offset, 0) for at, end in ends.items() if at.topic in read)
        finally:
            await admin.close()
        projected = sum(end for at, end in ends.items() if at.topic not in RETRY_TOPICS)
        # There is none while the read model is made anew, until the projector has begun.
        positions = "select coalesce(sum(position), 0) from projection_positions"
        found["projector"] = projected - await self.count(positions)
        return {group: records for group, records in found.items() if records}

    async def caught_up(self, group: str, *, within: float) -> None:
        """Waits until a group has handled all there is."""

        async def is_caught_up() -> bool:
            return group not in await self.lag()

        await observer.eventually(is_caught_up, within=within, what=f"lag 0 of {group}")

    async def all_caught_up(self, *, within: float) -> None:
        """Waits until every group has handled all there is, what it parked itself included."""

        async def caught_up() -> bool:
            before = await self.ends(*PARTITIONS)
            return not await self.lag() and await self.ends(*PARTITIONS) == before

        await observer.eventually(caught_up, within=within, what="lag 0 of every group")
