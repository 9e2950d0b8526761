"""The system under measurement: engines that last for all workloads, and a new database and new topics for each run."""

import asyncio
import contextlib
import os
import pathlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Final

import asyncpg
import pydantic
from aiokafka.admin import AIOKafkaAdminClient

from bench import role as replaced
from bench.usage import Meter, cpu_seconds, resident_mib
from devstack.errors import DevstackError
from devstack.ports import LOOPBACK, free_ports
from devstack.process import ManagedProcess
from devstack.system import Ports, System
from messaging import clients
from settings import DatabaseSettings, KafkaSettings

GATEWAY_SECONDS: Final = 0.05
"""How long the simulated gateway takes for a charge. It declines one order in fifty, by the order's id."""

_SETTINGS: Final = {
    "ORDERFLOW_GATEWAY_KIND": "simulated",
    "ORDERFLOW_GATEWAY_SIMULATED_LATENCY_MS": str(int(GATEWAY_SECONDS * 1000)),
    "ORDERFLOW_GATEWAY_SIMULATED_DECLINE_EVERY_50TH": "true",
    # Connections to a mail server are what bounds e-mails, and bench.role has none.
    "ORDERFLOW_EMAIL_CONNECTIONS": "512",
}
KAFKA: Final = "kafka"
POSTGRES: Final = "postgres"
_LISTEN_SECONDS: Final = 20.0
_LAST_LINES: Final = 6


def python_path() -> str:
    """Returns the PYTHONPATH of programs that are started beside the system."""
    root = pathlib.Path(__file__).resolve().parent.parent
    return os.pathsep.join(str(root / each) for each in ("", "generated", "clients"))


class BenchSystem(System):
    """A System whose engines are started once, and whose data is made anew for each run.

    Roles have the settings that they are shipped with, apart from addresses, the gateway and mail.
    """

    def __init__(self, directory: pathlib.Path, note: Callable[[str], None], *, full_speed: bool = True) -> None:
        """`full_speed` is KafkaBroker's: false only for who looks at no figures."""
        super().__init__(directory, Ports.chosen(), settings=_SETTINGS, note=note, full_speed=full_speed)
        self._runs = 0
        self._prefix, self._partitions = "", replaced.SHIPPED

    # -- settings ----------------------------------------------------------------------------------------------------

    def environment(self, role: str | None = None) -> dict[str, str]:
        """Returns the settings of a role; the gateway is the payment processor's own, in memory."""
        return {**super().environment(role), **_SETTINGS}

    @property
    def kafka_settings(self) -> KafkaSettings:
        """How the bench itself reaches Kafka."""
        return KafkaSettings(bootstrap=self.bootstrap)

    @property
    def database_settings(self) -> DatabaseSettings:
        """How the bench itself reaches PostgreSQL."""
        return DatabaseSettings(url=pydantic.SecretStr(self.postgres.dsn))

    # -- engines and data --------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def engines(self) -> AsyncIterator[None]:
        """Runs Kafka and PostgreSQL, and takes their data away in the end."""
        try:
            await self.launch_engines()
            await self.wait_engines()
            yield
        finally:
            await self.stop()
            with contextlib.suppress(DevstackError, OSError):
                self.postgres.remove_data()

    @contextlib.asynccontextmanager
    async def fresh(self, *, partitions: int = replaced.SHIPPED) -> AsyncIterator[None]:
        """Gives the body a system without an order and without processes; ends the processes that it started."""
        # A name is never used again: of a topic that is made anew under the name of a deleted one, Kafka and its
        # clients may still know offsets, transactions and the id of the old one.
        self._runs += 1
        self._prefix, self._partitions = f"run{self._runs}.", partitions
        with replaced.catalogue(self._prefix, partitions):
            await self._forget_everything()
            await self.set_up()
            try:
                yield
            finally:
                await self.stop_all()

    async def _forget_everything(self) -> None:
        connection = await asyncpg.connect(self.postgres.dsn_of("postgres"), timeout=10)
        try:
            await connection.execute(f'drop database if exists "{self.postgres.database}" with (force)', timeout=60)
            await connection.execute(f'create database "{self.postgres.database}"', timeout=60)
            await connection.execute("checkpoint", timeout=60)  # what the last run wrote is not this one's work
        finally:
            await connection.close(timeout=5)
        async with self._admin() as admin:
            left = [name for name in await admin.list_topics() if not name.startswith("__")]
            if left:
                await admin.delete_topics(left)

    @contextlib.asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = clients.admin(self.kafka_settings, client_id="bench")
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    @contextlib.asynccontextmanager
    async def copied_database(self, name: str) -> AsyncIterator[str]:
        """Gives the body a copy of the database as it is now, which nobody may use meanwhile; yields its address."""
        connection = await asyncpg.connect(self.postgres.dsn_of("postgres"), timeout=10)
        try:
            await connection.execute(f'drop database if exists "{name}" with (force)', timeout=60)
            await connection.execute(f'create database "{name}" template "{self.postgres.database}"', timeout=60)
            yield self.postgres.dsn_of(name)
            await connection.execute(f'drop database "{name}" with (force)', timeout=60)
        finally:
            await connection.close(timeout=5)

    @contextlib.asynccontextmanager
    async def sql(self, dsn: str | None = None) -> AsyncIterator["asyncpg.Connection[Any]"]:
        """Lends a connection without limits of time, to the database there or to the system's."""
        connection = await asyncpg.connect(dsn or self.postgres.dsn, timeout=10)
        try:
            yield connection
        finally:
            await connection.close(timeout=5)

    async def add_stock(self, skus: Iterable[str], units: int) -> None:
        """Puts so many units of each SKU on sale, at any price."""
        async with self.sql() as connection:
            await connection.execute(
                "insert into stock (sku, available) select unnest($1::text[]), $2", list(skus), units
            )

    # -- processes ---------------------------------------------------------------------------------------------------

    def start_roles(self, *roles: str, processes: int = 1) -> None:
        """Starts so many processes of each role."""
        for each in roles:
            self.start_role(each)
            for number in range(2, processes + 1):
                health, metrics = free_ports(2)
                addresses = {
                    "ORDERFLOW_WORKER_HEALTH_LISTEN": f"{LOOPBACK}:{health}",
                    "ORDERFLOW_WORKER_METRICS_LISTEN": f"{LOOPBACK}:{metrics}",
                }
                self._start(each, f"{each}.{number}", addresses)

    def start_role(self, role: str, settings: dict[str, str] | None = None, *, name: str = "") -> None:
        """Starts one process of a role, with settings and a name of its own if given."""
        self._start(role, name or role, settings or {})

    def _start(self, role: str, name: str, settings: Mapping[str, str]) -> None:
        program = ["-m", "bench.role", role, "--prefix", self._prefix, "--partitions", str(self._partitions)]
        self._spawn(name, program, {**self.environment(role), **settings})

    def start_program(self, name: str, arguments: list[str]) -> ManagedProcess:
        """Starts a program of the bench's own, `python` with these arguments, that ends with the run."""
        self._spawn(name, arguments)
        return self.processes[name]

    async def stop_all(self) -> None:
        """Ends all roles and programs."""
        await asyncio.gather(*(self.stop_role(name) for name in list(self.processes)))

    async def wait_listening(self, port: int) -> None:
        """Waits until something of ours listens on a port."""
        async with asyncio.timeout(_LISTEN_SECONDS):
            while True:
                self.check_running()
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(LOOPBACK, port)
                    writer.close()
                    await writer.wait_closed()
                    return
                await asyncio.sleep(0.05)

    def last_words(self) -> str:
        """Returns the ends of all logs, for who asks why something failed."""
        logs = sorted((self.directory / "logs").glob("*.log"))
        ends = {log.name: log.read_text(errors="replace").splitlines()[-_LAST_LINES:] for log in logs}
        return "\n".join(f"{name}: {line}" for name, lines in ends.items() for line in lines)

    def check_running(self) -> None:
        """Checks that no process has ended by itself.

        Raises:
            DevstackError: one has; the text has the end of its log.
        """
        for process in self.processes.values():
            if not process.running:
                raise process.died()

    def meter(self) -> Meter:
        """Returns a meter of the CPU time of everything that runs, by process; of the engines as well."""
        assert self.postgres.pid is not None
        [broker] = self.brokers
        assert broker.pid is not None
        pids = {name: process.pid for name, process in self.processes.items() if process.pid is not None}
        return Meter({**pids, KAFKA: broker.pid, POSTGRES: self.postgres.pid})

    def spent(self) -> dict[str, float]:
        """Returns the CPU time of each role's processes since they were started, seconds, by process."""
        return {name: cpu_seconds(each.pid) for name, each in self.processes.items() if each.pid is not None}

    def resident(self) -> dict[str, float]:
        """Returns the resident memory of each role's processes, MiB, by process."""
        return {name: resident_mib(each.pid) for name, each in self.processes.items() if each.pid is not None}
