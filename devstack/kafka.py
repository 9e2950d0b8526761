"""An Apache Kafka broker (KRaft, combined with its controller) as a child process on loopback.

By itself it is a cluster of one; `kafka_cluster.py` makes a cluster of several.
"""

import asyncio
import base64
import contextlib
import re
import secrets
import shutil
import time
from pathlib import Path

from devstack import kafka_aot, kafka_fence, kafka_properties, leftover
from devstack.errors import DevstackError
from devstack.java import java_executable
from devstack.kafka_properties import Member
from devstack.ports import LOOPBACK, require_free
from devstack.process import ManagedProcess, run_to_end

_FORMAT_SECONDS = 60
_ANSWER_SECONDS = 5
_POLL_SECONDS = 0.05
# The first of two compilers only: what the better one would win, a JVM that lives for minutes hardly sees, and while it
# compiles it takes a core from everybody else.
_QUICK = ("-XX:TieredStopAtLevel=1",)


class KafkaBroker:
    """A broker with its data in a folder of its own.

    Args:
        directory: its settings, data, log and notes.
        port: where clients connect.
        controller_port: where it talks to itself.
        classpath: what `ensure_jars` returned.
        java: the java program; None takes `java_executable()`.
        heap_mb: the most heap it may take.
        full_speed: whether it is compiled as a broker of production is, which takes a minute of load and pays later.
        proxied: a second port to listen on, and the port of the proxy before it, which its clients are told to use.
        member: its place in a cluster of several; None is a cluster of this one.
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
        full_speed: bool = False,
        proxied: tuple[int, int] | None = None,
        member: Member | None = None,
    ) -> None:
        self.name = "Kafka" if member is None else f"Kafka broker {member.node_id}"
        self.directory = directory.absolute()
        self.port = port
        self.controller_port = controller_port
        self._classpath = classpath
        self._java = java
        self._heap_mb = heap_mb
        self._options = () if full_speed else _QUICK
        self._proxied = proxied
        self._member = member
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

    @property
    def exit_code(self) -> int | None:
        """How the JVM ended (negative: by that signal), None while it runs or before it was started."""
        return None if self._process is None else self._process.exit_code

    @property
    def is_formatted(self) -> bool:
        """Whether there is storage of an earlier start."""
        return formatted_for(self.directory) is not None

    def prepare(self) -> None:
        """Format the storage, or make it ready for the next start; about a second.

        `start` does it too, unless it was done since the last start; this may run in a thread before.
        """
        if self.running:
            raise DevstackError(f"{self.name} is already running (pid {self.pid})")
        leftover.end_leftover(self._pid_file, self.name)  # before the ports are judged: it may hold them
        require_free(self.port, self.name, "the Kafka port")
        require_free(self.controller_port, f"{self.name}'s controller", "the Kafka controller port")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._properties.write_text(
            kafka_properties.broker(
                self.port, self.controller_port, self._data, proxied=self._proxied, member=self._member
            )
        )
        self._log4j2.write_text(kafka_properties.LOG4J2)
        if not self.is_formatted:
            self._format()
        elif self._member is None:  # that of a cluster is fenced by the others, or together with them
            kafka_fence.fence([self.fenced_place()])
        self._prepared = True

    def fenced_place(self) -> kafka_fence.Place:
        """What `kafka_fence.fence` needs to know, once the storage is formatted."""
        return kafka_fence.Place(
            node_id=1 if self._member is None else self._member.node_id,
            directory=self.directory,
            data=self._data,
            port=self.controller_port,
            command=[*self._java_command(*_QUICK), "kafka.Kafka"],
        )

    def start(self) -> None:
        """Start the broker; call from the main thread, then await `wait_ready`."""
        if not self._prepared:
            self.prepare()
        self._prepared = False
        self._process = ManagedProcess(
            self.name,
            [*self._java_command(*self._options), "kafka.Kafka", str(self._properties)],
            self.log_file,
            pid_file=self._pid_file,
        )
        self._process.start()

    async def wait_ready(self, deadline_seconds: float = 60.0) -> None:
        """Wait until the broker answers a client and lists itself."""
        until = time.monotonic() + deadline_seconds
        while True:
            if self._process is None:
                raise DevstackError(f"{self.name} was not started")
            if not self._process.running:
                raise self._process.died()
            if await self._answers():
                return
            if time.monotonic() > until:
                raise DevstackError(
                    f"{self.name} does not answer on {self.bootstrap} after {deadline_seconds:.0f} s; "
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
        java = java_executable(self._java)
        return [
            str(java),
            *kafka_aot.options(java, self._classpath),
            *options,
            f"-Xms{min(256, self._heap_mb)}m",
            f"-Xmx{self._heap_mb}m",
            *kafka_aot.JVM_OPTIONS,
            f"-Dlog4j2.configurationFile={self._log4j2}",
            "-cp",
            self._classpath,
        ]

    def _format(self) -> None:
        # What an interrupted format left is no use to anyone.
        shutil.rmtree(self._data, ignore_errors=True)
        self._data.mkdir()
        cluster_id = new_cluster_id() if self._member is None else self._member.cluster_id
        command = [*self._java_command(*_QUICK), "kafka.tools.StorageTool", "format"]
        # In one word, because an id may begin with a dash.
        command += [f"--cluster-id={cluster_id}", "-c", str(self._properties)]
        run_to_end(f"formatting {self._data} for {self.name}", command, deadline_seconds=_FORMAT_SECONDS)

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


def formatted_for(directory: Path) -> str | None:
    """Return the id of the cluster that a broker's storage was formatted for, None before that."""
    with contextlib.suppress(FileNotFoundError):
        facts = (directory / "data" / "meta.properties").read_text()
        if found := re.search(r"^cluster\.id=(.+)$", facts, re.MULTILINE):
            return found[1]
    return None


def new_cluster_id() -> str:
    """Return an id for a new cluster."""
    return base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")


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
