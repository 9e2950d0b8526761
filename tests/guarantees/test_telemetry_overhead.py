"""What telemetry costs: an order processor drains a backlog with all of it at its defaults, and with none.

With: metrics that are scraped, logs at info, spans sent to a collector, one order in a hundred in a sampled trace.
Without: tests.guarantees.unobserved. The order processor, because it is the worker that does least for a record.
"""

import asyncio
import contextlib
import dataclasses
import datetime
import os
import pathlib
import statistics
import sys
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from devstack import PostgresServer
from devstack.ports import free_ports
from devstack.process import ManagedProcess
from devstack.system import is_serving
from messaging import aiokafka_internals, clients, envelope, topics
from settings import KafkaSettings
from tests import engines
from tests.builders import an_item, an_order, order_created
from tests.collector import Collector, collecting
from tests.e2e import observer

ROOT = pathlib.Path(__file__).parents[2]
ORDERS = 5_000
ROUNDS = 5
MOST = 0.10
GROUP = "order-processor"
SKU = "SKU-OVERHEAD"


@pytest.fixture
async def kafka(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KafkaSettings]:
    """A broker of its own: the group reads the topic from its beginning."""
    async with engines.kafka_broker(tmp_path_factory.mktemp("overhead")) as broker:
        yield engines.kafka_settings(broker)


@dataclasses.dataclass(frozen=True)
class Drained:
    """How a backlog went: orders a second from the first commit to the last, and the worker's CPU time for each."""

    rate: float
    cpu_milliseconds: float


class Backlog:
    """Orders on the topic, and an order processor that is started for them."""

    def __init__(self, directory: pathlib.Path, kafka: KafkaSettings, database_url: str, collector: Collector) -> None:
        self._directory = directory
        self._kafka = kafka
        self._database_url = database_url
        self._collector = collector
        self._health, self._metrics = free_ports(2)

    async def drained(self, *, observed: bool) -> Drained:
        """Has a worker decide a new backlog."""
        ends = await self._add()
        process = self._worker(observed=observed)
        process.start()
        scraping = asyncio.create_task(self._scrape()) if observed else None
        try:
            drained = await self._drained(ends, process)
            await self._caught_up()
            return drained
        finally:
            if scraping is not None:
                scraping.cancel()
            await process.stop(40)

    async def _add(self) -> dict[TopicPartition, int]:
        now = datetime.datetime.now(datetime.UTC)
        async with engines.started(clients.idempotent_producer(self._kafka, client_id="tests")) as producer:
            sent = []
            for number in range(ORDERS):
                record = envelope.encode(order_created(an_order(items=[an_item(SKU, 1)], now=now)))
                trace = f"00-{uuid.uuid4().hex}-00f067aa0ba902b7-{'00' if number % 100 else '01'}"
                headers = [*record.headers, ("traceparent", trace.encode())]
                sent.append(await producer.send(record.topic.name, key=record.key, value=record.value, headers=headers))
            await asyncio.gather(*sent)
        return await engines.ends(self._kafka, topics.ORDERS)

    def _worker(self, *, observed: bool) -> ManagedProcess:
        module = ["cli", "run", GROUP] if observed else ["tests.guarantees.unobserved", GROUP]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("ORDERFLOW_", "OTEL_"))}
        settings = {
            "PYTHONPATH": os.pathsep.join(str(ROOT / each) for each in ("", "generated", "clients")),
            "ORDERFLOW_KAFKA_BOOTSTRAP": self._kafka.bootstrap,
            "ORDERFLOW_DATABASE_URL": self._database_url,
            "ORDERFLOW_WORKER_HEALTH_LISTEN": f"127.0.0.1:{self._health}",
            "ORDERFLOW_WORKER_METRICS_LISTEN": f"127.0.0.1:{self._metrics}",
            "ORDERFLOW_WORKER_SWEEP_SECONDS": "3600",
        }
        if observed:
            settings["OTEL_EXPORTER_OTLP_ENDPOINT"] = self._collector.endpoint
        return ManagedProcess(
            GROUP, [sys.executable, "-m", *module], self._directory / "worker.log", {**inherited, **settings}
        )

    async def _scrape(self) -> None:
        while True:
            await asyncio.sleep(1)
            with contextlib.suppress(OSError):
                await asyncio.to_thread(_read, f"http://127.0.0.1:{self._metrics}/metrics")

    async def _drained(self, ends: dict[TopicPartition, int], process: ManagedProcess) -> Drained:
        async with engines.started(clients.consumer(self._kafka, client_id="tests", group=GROUP)) as consumer:
            begins_with = first = await _left(consumer, ends)
            began, cpu = time.monotonic(), 0.0
            async with asyncio.timeout(300):
                while now := await _left(consumer, ends):
                    if now < begins_with and first == begins_with:
                        began, first, cpu = time.monotonic(), now, observer.cpu_seconds(process.pid)
                    await asyncio.sleep(0.02)
            used = observer.cpu_seconds(process.pid) - cpu
            return Drained(rate=first / (time.monotonic() - began), cpu_milliseconds=1000 * used / first)

    async def _caught_up(self) -> None:
        """Waits until the worker has passed its own events, too: the next backlog is of orders alone."""
        async with engines.started(clients.consumer(self._kafka, client_id="tests", group=GROUP)) as consumer:
            async with asyncio.timeout(60):
                while await _left(consumer, await engines.ends(self._kafka, topics.ORDERS)):  # noqa: ASYNC110 - in Kafka
                    await asyncio.sleep(0.2)

    async def first_start(self) -> None:
        """Registers the group, so that each round begins where the last one ended."""
        process = self._worker(observed=True)
        process.start()
        try:
            async with asyncio.timeout(60):
                while not await is_serving(f"127.0.0.1:{self._health}"):
                    assert process.running, process.tail()
                    await asyncio.sleep(0.1)
        finally:
            await process.stop(40)


async def _left(consumer: AIOKafkaConsumer, ends: dict[TopicPartition, int]) -> int:
    """Returns how many offsets the group has before it."""
    found = [await aiokafka_internals.read_committed(consumer, partition) for partition in ends]
    return sum(
        max(end - (committed[0] if committed else 0), 0) for end, committed in zip(ends.values(), found, strict=True)
    )


def _read(url: str) -> None:
    with urllib.request.urlopen(url, timeout=5) as answer:
        answer.read()


@pytest.mark.heavy
@pytest.mark.timeout(1800)
async def test_telemetry_at_its_defaults_costs_less_than_a_tenth_of_the_throughput(
    kafka: KafkaSettings, postgres: PostgresServer, tmp_path: pathlib.Path
) -> None:
    database = await engines.new_database(postgres, template=engines.TEMPLATE)
    async with engines.opened(database) as opened, opened.connection() as connection:
        await connection.execute("insert into stock (sku, available) values ($1, 1000000000)", SKU)
    runs: dict[bool, list[Drained]] = {False: [], True: []}
    with collecting() as collector:
        backlog = Backlog(tmp_path, kafka, database.url.get_secret_value(), collector)
        await backlog.first_start()
        await backlog.drained(observed=True)  # files, caches and statistics are warm from here on
        collector.spans.clear()
        for _ in range(ROUNDS):
            for observed in (False, True):
                runs[observed].append(await backlog.drained(observed=observed))
        handled = sum(each.name == "process orders" for each in collector.spans)
    without, with_all = (statistics.median(each.rate for each in runs[observed]) for observed in (False, True))
    lost = 1 - with_all / without
    for name, found in (("without", runs[False]), ("with", runs[True])):
        rates = [each.rate for each in found]
        spread = (max(rates) - min(rates)) / statistics.median(rates)
        cpu = ", ".join(f"{each.cpu_milliseconds:.2f}" for each in found)
        print(
            f"{name}: {', '.join(f'{each:.0f}' for each in rates)} orders/s, spread {spread:.1%}; CPU {cpu} ms an order"
        )
    print(f"lost with telemetry: {lost:.1%}, {handled} spans of handlings")
    assert handled == ROUNDS * ORDERS // 100, "it was on"
    assert lost < MOST
