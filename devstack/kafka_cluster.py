"""Several Kafka brokers on this machine, each combined with a controller: what one broker cannot show.

A record is acknowledged once two of three have it. One may die and nothing is lost; when two have, nothing is
acknowledged until one of them is back.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from devstack import kafka_fence
from devstack.errors import DevstackError
from devstack.kafka import KafkaBroker, formatted_for, new_cluster_id
from devstack.kafka_properties import Member

_ANSWER_SECONDS = 5.0
_POLL_SECONDS = 0.1
# Three of them, and a development machine's memory.
_HEAP_MB = 256


class KafkaCluster:
    """A cluster with its data in one folder, below which each broker has its own.

    Args:
        directory: one folder for each broker, named by its number.
        ports: of each broker, the port where clients connect and the controller's.
        classpath: what `ensure_jars` returned.
        java: the java program; None takes `java_executable()`.
        heap_mb: the most heap that each broker may take.
    """

    def __init__(
        self,
        directory: Path,
        ports: Sequence[tuple[int, int]],
        *,
        classpath: str,
        java: Path | None = None,
        heap_mb: int = _HEAP_MB,
    ) -> None:
        self.directory = directory.absolute()
        controllers = tuple(controller for _, controller in ports)
        folders = [self.directory / str(number) for number in range(1, len(ports) + 1)]
        cluster_id = next(filter(None, map(formatted_for, folders)), None) or new_cluster_id()
        self.brokers = tuple(
            KafkaBroker(
                folder,
                port,
                controller,
                classpath=classpath,
                java=java,
                heap_mb=heap_mb,
                member=Member(number, cluster_id, controllers),
            )
            for number, (folder, (port, controller)) in enumerate(zip(folders, ports, strict=True), 1)
        )
        self._prepared = False

    @property
    def bootstrap(self) -> str:
        """The addresses for clients, comma-separated."""
        return ",".join(broker.bootstrap for broker in self.brokers)

    @property
    def running(self) -> bool:
        """Whether every JVM runs; `wait_ready` tells whether they answer."""
        return all(broker.running for broker in self.brokers)

    def prepare(self) -> None:
        """Format the storage, or make it ready for the next start; a few seconds.

        `start` does it too, unless it was done since the last start; this may run in a thread before.
        """
        known = [broker.is_formatted for broker in self.brokers]
        with ThreadPoolExecutor(len(self.brokers)) as threads:
            list(threads.map(KafkaBroker.prepare, self.brokers))
        if all(known):
            kafka_fence.fence([broker.fenced_place() for broker in self.brokers])
        self._prepared = True

    def start(self) -> None:
        """Start all brokers, none of which runs; call from the main thread, then await `wait_ready`."""
        if not self._prepared:
            self.prepare()
        self._prepared = False
        for broker in self.brokers:
            broker.start()

    async def wait_ready(self, deadline_seconds: float = 180.0) -> None:
        """Wait until every broker answers, and every partition is in sync on all that are to have it.

        Raises:
            DevstackError: one ended, or it was not so within the deadline.
        """
        until = time.monotonic() + deadline_seconds
        await asyncio.gather(*(broker.wait_ready(deadline_seconds) for broker in self.brokers))
        while behind := await self._behind():
            if time.monotonic() > until:
                raise DevstackError(f"not in sync after {deadline_seconds:.0f} s: {', '.join(behind[:10])}")
            await asyncio.sleep(_POLL_SECONDS)

    async def stop(self, grace_seconds: float = 20.0) -> None:
        """Ask all to shut down, and kill those that have not when the grace is over."""
        await asyncio.gather(*(broker.stop(grace_seconds) for broker in self.brokers))

    def kill(self) -> None:
        """SIGKILL to all that run, as a power cut would."""
        for broker in self.brokers:
            broker.kill()

    async def _behind(self) -> list[str]:
        """Return the partitions, internal ones too, that some broker does not see in sync on all replicas."""
        from aiokafka.client import AIOKafkaClient  # slow to import, needed here only
        from aiokafka.errors import KafkaError
        from aiokafka.protocol.metadata import MetadataRequest

        behind: set[str] = set()
        client = AIOKafkaClient(bootstrap_servers=self.bootstrap, client_id="devstack")
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await client.bootstrap()
                nodes = client.cluster.brokers()
                if len(nodes) < len(self.brokers):
                    return [f"{len(self.brokers) - len(nodes)} brokers"]
                for node in nodes:
                    answer = await client.send(node.nodeId, MetadataRequest(None))
                    for topic in answer.to_object()["topics"]:
                        behind |= {
                            f"{topic['topic']}-{each['partition']}"
                            for each in topic["partitions"]
                            if each["leader"] < 0 or set(each["isr"]) != set(each["replicas"])
                        }
        except (KafkaError, OSError, TimeoutError) as error:
            return [repr(error)]
        finally:
            await client.close()
        return sorted(behind)
