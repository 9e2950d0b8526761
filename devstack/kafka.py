"""One Apache Kafka broker (KRaft, combined with its controller) as a child process on loopback."""

import asyncio
import base64
import contextlib
import secrets
import shutil
import time
from pathlib import Path

from devstack import kafka_fence, leftover
from devstack.errors import DevstackError
from devstack.java import java_executable
from devstack.ports import LOOPBACK, require_free
from devstack.process import ManagedProcess, run_to_end

_FORMAT_SECONDS = 60
_ANSWER_SECONDS = 5
_POLL_SECONDS = 0.05
# For a JVM that lives a second: what the better compiler would win, it does not live to see.
_SHORT = ("-XX:TieredStopAtLevel=1",)

_PROPERTIES = """\
# Written by devstack at each start.
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}{proxied_listener}
advertised.listeners=PLAINTEXT://{host}:{port}{proxied_advertised}
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT
log.dirs={data}

# Topics are declared by `orderflow topics`; a misspelt name has to fail.
auto.create.topics.enable=false
delete.topic.enable=true

# One node: every internal topic has one replica, and few partitions because each one is a file to open at the start.
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
transaction.state.log.segment.bytes=16777216
offsets.topic.segment.bytes=16777216
log.segment.bytes=134217728
log.index.size.max.bytes=1048576

# A worker that was away for weeks still finds its place (30 days).
offsets.retention.minutes=43200
# Wait for no further members: tests and `make run` start consumers one by one and want them at work at once.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
# Never fence the only broker, not when it was suspended, not when it stops (see kafka_fence.py).
broker.session.timeout.ms=2147483647
controlled.shutdown.enable=false
num.network.threads=2
num.io.threads=4
num.recovery.threads.per.data.dir=2
log.cleaner.dedupe.buffer.size=16777216
"""

_LOG4J2 = """\
<?xml version="1.0" encoding="UTF-8"?>
<!-- Written by devstack at each start. -->
<Configuration status="WARN" shutdownHook="disable">
  <Appenders>
    <Console name="out" target="SYSTEM_OUT">
      <PatternLayout pattern="%d{ISO8601} %p %c{1} %m%n"/>
    </Console>
  </Appenders>
  <Loggers>
    <Root level="INFO"><AppenderRef ref="out"/></Root>
    <Logger name="kafka" level="INFO"/>
    <Logger name="org.apache.kafka.clients" level="WARN"/>
    <!-- These print hundreds of lines of configuration at each start. -->
    <Logger name="org.apache.kafka.common.config.AbstractConfig" level="WARN"/>
    <Logger name="kafka.server.KafkaConfig" level="WARN"/>
  </Loggers>
</Configuration>
"""


class KafkaBroker:
    """A broker with its data in a folder of its own.

    Args:
        directory: its settings, data, log and notes.
        port: where clients connect.
        controller_port: where it talks to itself.
        classpath: what `ensure_jars` returned.
        java: the java program; None takes `java_executable()`.
        heap_mb: the most heap it may take.
        proxied: a second port to listen on, and the port of the proxy before it, which its clients are told to use.
    """

    def __init__(
        self,
        directory: Path,
        port: int,
        controller_port: int,
        *,
        classpath: str,
        java: Path | None = None,
        heap_mb: int = 512,
        proxied: tuple[int, int] | None = None,
    ) -> None:
        self.directory = directory.absolute()
        self.port = port
        self.controller_port = controller_port
        self._classpath = classpath
        self._java = java
        self._heap_mb = heap_mb
        self._proxied = proxied
        self._data = self.directory / "data"
        self._properties = self.directory / "server.properties"
        self._log4j2 = self.directory / "log4j2.xml"
        self._pid_file = self.directory / "kafka.pid"
        self._prepared = False
        self._process: ManagedProcess | None = None

    @property
    def bootstrap(self) -> str:
        """The address for clients."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def log_file(self) -> Path:
        """Where the broker logs."""
        return self.directory / "kafka.log"

    @property
    def pid(self) -> int | None:
        """The JVM's process id."""
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """Whether the JVM runs; `wait_ready` tells whether it answers."""
        return self._process is not None and self._process.running

    def prepare(self) -> None:
        """Format the storage, or make it ready for the next start; about a second.

        `start` does it too, unless it was done since the last start; this may run in a thread before.
        """
        if self.running:
            raise DevstackError(f"Kafka is already running (pid {self.pid})")
        leftover.end_leftover(self._pid_file, "Kafka")  # before the ports are judged: it may hold them
        require_free(self.port, "Kafka", "the Kafka port")
        require_free(self.controller_port, "Kafka's controller", "the Kafka controller port")
        self.directory.mkdir(parents=True, exist_ok=True)
        proxied = [f",PROXIED://{LOOPBACK}:{port}" for port in self._proxied or ()]
        self._properties.write_text(
            _PROPERTIES.format(
                host=LOOPBACK,
                port=self.port,
                controller_port=self.controller_port,
                proxied_listener="".join(proxied[:1]),
                proxied_advertised="".join(proxied[1:]),
                data=self._data,
            )
        )
        self._log4j2.write_text(_LOG4J2)
        if (self._data / "meta.properties").exists():
            command = [*self._java_command(*_SHORT), "kafka.Kafka"]
            kafka_fence.fence(self.directory, self._data, self.controller_port, command)
        else:
            self._format()
        self._prepared = True

    def start(self) -> None:
        """Start the broker; call from the main thread, then await `wait_ready`."""
        if not self._prepared:
            self.prepare()
        self._prepared = False
        self._process = ManagedProcess(
            "Kafka",
            [*self._java_command(), "kafka.Kafka", str(self._properties)],
            self.log_file,
            pid_file=self._pid_file,
        )
        self._process.start()

    async def wait_ready(self, deadline_seconds: float = 60.0) -> None:
        """Wait until the broker answers a client and lists itself."""
        until = time.monotonic() + deadline_seconds
        while True:
            if self._process is None:
                raise DevstackError("Kafka was not started")
            if not self._process.running:
                raise self._process.died()
            if await self._answers():
                return
            if time.monotonic() > until:
                raise DevstackError(
                    f"Kafka does not answer on {self.bootstrap} after {deadline_seconds:.0f} s; "
                    f"the end of {self.log_file}:\n{self._process.tail(20)}"
                )
            await asyncio.sleep(_POLL_SECONDS)

    async def stop(self, grace_seconds: float = 20.0) -> None:
        """Ask the broker to shut down, and kill it when the grace is over."""
        if self._process is not None:
            await self._process.stop(grace_seconds)

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()

    def suspend(self) -> None:
        """SIGSTOP: the broker holds its connections and answers nothing."""
        if self._process is not None:
            self._process.suspend()

    def resume(self) -> None:
        """SIGCONT, after `suspend`."""
        if self._process is not None:
            self._process.resume()

    def _java_command(self, *options: str) -> list[str]:
        return [
            str(java_executable(self._java)),
            *options,
            f"-Xms{min(256, self._heap_mb)}m",
            f"-Xmx{self._heap_mb}m",
            "-XX:+UseSerialGC",
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={self._log4j2}",
            "-cp",
            self._classpath,
        ]

    def _format(self) -> None:
        # What an interrupted format left is no use to anyone.
        shutil.rmtree(self._data, ignore_errors=True)
        self._data.mkdir()
        cluster_id = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        command = [*self._java_command(*_SHORT), "kafka.tools.StorageTool", "format"]
        # In one word, because an id may begin with a dash.
        command += [f"--cluster-id={cluster_id}", "-c", str(self._properties)]
        run_to_end(f"formatting {self._data} for Kafka", command, deadline_seconds=_FORMAT_SECONDS)

    async def _answers(self) -> bool:
        # An open port is not enough: the broker opens it before it is part of its own cluster.
        if not await _accepts(self.port):
            return False
        from aiokafka.client import AIOKafkaClient  # slow to import, needed here only
        from aiokafka.errors import KafkaError

        client = AIOKafkaClient(bootstrap_servers=self.bootstrap, client_id="devstack")
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await client.bootstrap()
                return any(broker.port == self.port for broker in client.cluster.brokers())
        except (KafkaError, OSError, TimeoutError):
            return False
        finally:
            await client.close()


async def _accepts(port: int) -> bool:
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            _, writer = await asyncio.open_connection(LOOPBACK, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
