"""The running system with a door before its gateway, and what the guarantees look up in it from outside."""

import asyncio
import pathlib
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from devstack.system import ROLES, Ports, System
from tests.e2e import observer
from tests.guarantees.front import Front

GATEWAY_TIMEOUT: Final = 1.0
BREAKER_RESET: Final = 0.5
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
_SETTINGS: Final = {
    "ORDERFLOW_GATEWAY_TIMEOUT": str(GATEWAY_TIMEOUT),
    "ORDERFLOW_GATEWAY_CONNECT_TIMEOUT": "0.8",
    "ORDERFLOW_GATEWAY_BREAKER_RESET_SECONDS": str(BREAKER_RESET),
    "ORDERFLOW_KAFKA_RETRY_DELAYS": ",".join(map(str, RETRY_DELAYS)),
}


class FrontedSystem(System):
    """A System whose payment processor reaches the gateway through a Front."""

    def __init__(self, directory: pathlib.Path, ports: Ports, front: Front) -> None:
        super().__init__(directory, ports, settings=_SETTINGS)
        self.front = front
        self.key_ttl_seconds: float | None = None

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.ports.kafka}"

    def environment(self, role: str | None = None) -> dict[str, str]:
        return {**super().environment(role), "ORDERFLOW_GATEWAY_URL": self.front.url}

    def start_stand_in(self, name: str) -> None:
        super().start_stand_in(name)
        if name == "gateway" and self.key_ttl_seconds is not None:
            gateway = self.processes[name]
            gateway.kill()  # it has not served yet
            gateway.command += ["--key-ttl-seconds", str(self.key_ttl_seconds)]
            gateway.start()

    def charges(self, order_id: str) -> list[dict[str, Any]]:
        """Returns what the gateway executed for an order."""
        return [line for line in observer.journal(self.gateway_journal) if line.get("order_id") == order_id]

    def metric(self, role: str, name: str, **labels: str) -> float:
        return observer.metric(self.metrics_address(role), name, **labels)

    def pids(self) -> dict[str, int | None]:
        """Returns the processes that are running."""
        return {role: self.processes[role].pid for role in ROLES if self.processes[role].running}

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
        found["projector"] = projected - await self.count("select sum(position) from projection_positions")
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

    async def metrics(self, *wanted: tuple[str, str, dict[str, str]]) -> list[float]:
        """Returns several (role, metric, labels) at about one moment."""
        return await asyncio.gather(
            *(asyncio.to_thread(observer.metric, self.metrics_address(role), name, **labels)
              for role, name, labels in wanted)
        )  # fmt: skip
