"""The whole system on this machine: engines, stand-ins for the outside world, server and workers, each a child process.

`orderflow dev` supervises it for people; the end-to-end tests start, kill and restart its parts.
"""

import asyncio
import contextlib
import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Final

import asyncpg
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from devstack import catalogue, kafka_aot
from devstack.errors import DevstackError
from devstack.jars import ensure_jars
from devstack.java import java_executable
from devstack.kafka import KafkaBroker
from devstack.kafka_cluster import KafkaCluster
from devstack.ports import LOOPBACK, free_ports, require_free
from devstack.postgres import PostgresServer
from devstack.process import ManagedProcess
from messaging import topic_admin
from settings import DatabaseSettings, KafkaSettings
from storage import migrate

WORKERS: Final = ("order-processor", "payment-processor", "notification-email", "notification-sms", "projector")
ROLES: Final = ("server", *WORKERS)
RECONCILER: Final = "reconciler"
"""A role that runs where it is asked for."""
STAND_INS: Final = ("gateway", "mail")
_WITH_HEALTH: Final = (*WORKERS, RECONCILER)
BROKER_COUNTS: Final = (1, 3)
KAFKA_FOLDERS: Final = {1: "kafka", 3: "kafka-3"}
"""Where Kafka's data is, by the number of brokers."""
CONSOLE: Final = "console"
_CONNECTION: Final = ("ORDERFLOW_TARGET", "ORDERFLOW_TLS", "ORDERFLOW_TOKEN", "ORDERFLOW_INSECURE")

_ROOT: Final = pathlib.Path(__file__).resolve().parent.parent
_HEALTH_POLL_SECONDS: Final = 0.1
_STOP_SECONDS: Final = 40.0
_WEBHOOK_SECRET: Final = "whsec_stand_in"  # noqa: S105 - of a stand-in on loopback

Note = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Ports:
    """Every port of the system, all on loopback."""

    kafka: int = 50092
    kafka_controller: int = 50093
    postgres: int = 50432
    gateway: int = 50560
    gateway_admin: int = 50561
    mail: int = 50025
    server: int = 50051
    server_metrics: int = 9464
    console: int = 51051
    health: dict[str, int] = dataclasses.field(
        default_factory=lambda: {role: 50052 + index for index, role in enumerate(_WITH_HEALTH)}
    )
    metrics: dict[str, int] = dataclasses.field(
        default_factory=lambda: {role: 9465 + index for index, role in enumerate(_WITH_HEALTH)}
    )
    more_brokers: tuple[tuple[int, int], ...] = ()
    """Of each broker beyond the first, Kafka's port and its controller's."""

    @property
    def brokers(self) -> tuple[tuple[int, int], ...]:
        """Of each broker, Kafka's port and its controller's."""
        return ((self.kafka, self.kafka_controller), *self.more_brokers)

    @classmethod
    def usual(cls, *, brokers: int = 1) -> "Ports":
        """Returns the ports that the system has unless told otherwise."""
        more = tuple((50092 + 2 * number, 50093 + 2 * number) for number in range(1, brokers))
        return cls(more_brokers=more)

    @classmethod
    def chosen(cls, *, brokers: int = 1) -> "Ports":
        """Returns ports that are free at the moment."""
        ports, others = cls.chosen_beside(2 * (brokers - 1))
        return dataclasses.replace(ports, more_brokers=tuple(zip(others[::2], others[1::2], strict=True)))

    @classmethod
    def chosen_beside(cls, count: int) -> tuple["Ports", list[int]]:
        """Returns ports that are free at the moment, and so many others for what a test adds to the system."""
        free = free_ports(9 + 2 * len(_WITH_HEALTH) + count)
        others, ports = free[:count], free[count:]
        health = dict(zip(_WITH_HEALTH, ports[9:], strict=False))
        metrics = dict(zip(_WITH_HEALTH, ports[9 + len(_WITH_HEALTH) :], strict=True))
        kafka, controller, postgres, gateway, admin, mail, server, server_metrics, console = ports[:9]
        chosen = cls(
            kafka, controller, postgres, gateway, admin, mail, server, server_metrics, console, health, metrics
        )
        return chosen, others

    def require_free(self) -> None:
        """Checks them all.

        Raises:
            DevstackError: one is in use; the text names it.
        """
        require_free(self.server, "gRPC", "--listen or ORDERFLOW_SERVER_LISTEN")
        named = {
            "Kafka": self.kafka,
            "Kafka controller": self.kafka_controller,
            **{f"Kafka {number}": port for number, (port, _) in enumerate(self.more_brokers, 2)},
            **{f"Kafka controller {number}": port for number, (_, port) in enumerate(self.more_brokers, 2)},
            "PostgreSQL": self.postgres,
            "payment gateway": self.gateway,
            "payment gateway's faults": self.gateway_admin,
            "SMTP": self.mail,
            "server metrics": self.server_metrics,
            "console": self.console,
            **{f"{role} health": port for role, port in self.health.items()},
            **{f"{role} metrics": port for role, port in self.metrics.items()},
        }
        for purpose, port in named.items():
            require_free(port, purpose, "--random-ports")


@dataclasses.dataclass(frozen=True)
class StripeStandIn:
    """Has the system use Stripe, and the gateway's process speak as Stripe does.

    `webhook` is the port that its reports go to, where `orderflow run webhook` is to be run besides; `options` are more
    of the process's own.
    """

    webhook: int | None = None
    options: tuple[str, ...] = ()

    def settings(self, url: str) -> dict[str, str]:
        """Returns the ORDERFLOW_* settings, with the gateway there."""
        listen = {} if self.webhook is None else {"ORDERFLOW_STRIPE_WEBHOOK_LISTEN": f"{LOOPBACK}:{self.webhook}"}
        return {
            "ORDERFLOW_GATEWAY_KIND": "stripe",
            "ORDERFLOW_STRIPE_URL": url,
            "ORDERFLOW_STRIPE_KEY": "sk_test_stand_in",
            "ORDERFLOW_STRIPE_WEBHOOK_SECRET": _WEBHOOK_SECRET,
            **listen,
        }

    def arguments(self) -> list[str]:
        """Returns the arguments of the gateway's process."""
        arguments = ["--dialect", "stripe", *self.options]
        if self.webhook is not None:
            arguments += ["--webhook-url", f"http://{LOOPBACK}:{self.webhook}/webhooks/payments"]
            arguments += ["--webhook-secret", _WEBHOOK_SECRET]
        return arguments


class System:
    """The system, with its data in one folder. Starting it again on the folder goes on where it ended."""

    def __init__(
        self,
        directory: pathlib.Path,
        ports: Ports,
        *,
        settings: dict[str, str] | None = None,
        roles: tuple[str, ...] = ROLES,
        stripe: StripeStandIn | None = None,
        note: Note = lambda _: None,
        full_speed: bool = False,
    ) -> None:
        """`settings` are ORDERFLOW_* variables beside the system's own; `note` is told of each slow step.

        `roles` are what `start` starts; `stripe` has it pay through the stand-in of Stripe; `full_speed` is
        KafkaBroker's, of a single one.
        """
        self._stripe = stripe
        self._full_speed = full_speed
        self.directory = directory.absolute()
        self.ports = ports
        self._settings = settings or {}
        self.roles = roles
        self._note = note
        self.kafka: KafkaBroker | KafkaCluster | None = None
        self.postgres = PostgresServer(self.directory / "postgres", ports.postgres)
        self.processes: dict[str, ManagedProcess] = {}

    @property
    def brokers(self) -> tuple[KafkaBroker, ...]:
        """Kafka's brokers, once it was launched."""
        if self.kafka is None:
            return ()
        return self.kafka.brokers if isinstance(self.kafka, KafkaCluster) else (self.kafka,)

    # -- addresses ---------------------------------------------------------------------------------------------------

    @property
    def server_address(self) -> str:
        """Where callers call."""
        return f"{LOOPBACK}:{self.ports.server}"

    @property
    def bootstrap(self) -> str:
        """Where Kafka's clients start from."""
        return ",".join(f"{LOOPBACK}:{port}" for port, _ in self.ports.brokers)

    @property
    def mail_folder(self) -> pathlib.Path:
        """Where e-mail and text messages go."""
        return self.directory / "mail"

    @property
    def gateway_journal(self) -> pathlib.Path:
        """The simulated gateway's own ledger: one JSON line for each execution, flushed before each reply."""
        return self.directory / "gateway" / "journal.jsonl"

    def health_address(self, role: str) -> str:
        """Where a role answers the gRPC health probe."""
        return self.server_address if role == "server" else f"{LOOPBACK}:{self.ports.health[role]}"

    def metrics_address(self, role: str) -> str:
        """Where a role serves /metrics."""
        return f"{LOOPBACK}:{self.ports.server_metrics if role == 'server' else self.ports.metrics[role]}"

    @property
    def console_url(self) -> str:
        """Where operators look, once `start_console` was called."""
        return f"http://{LOOPBACK}:{self.ports.console}"

    def environment(self, role: str | None = None) -> dict[str, str]:
        """Returns the ORDERFLOW_* settings of the system, and of a role if given."""
        environment = {
            **self._settings,
            "ORDERFLOW_KAFKA_BOOTSTRAP": self.bootstrap,
            "ORDERFLOW_KAFKA_REPLICATION_FACTOR": str(len(self.ports.brokers)),
            "ORDERFLOW_KAFKA_MIN_INSYNC_REPLICAS": str(max(1, len(self.ports.brokers) - 1)),
            "ORDERFLOW_DATABASE_URL": self.postgres.dsn,
            "ORDERFLOW_SERVER_LISTEN": self.server_address,
            "ORDERFLOW_SERVER_METRICS_LISTEN": self.metrics_address("server"),
            "ORDERFLOW_GATEWAY_KIND": "remote",
            "ORDERFLOW_GATEWAY_URL": f"http://{LOOPBACK}:{self.ports.gateway}",
            "ORDERFLOW_EMAIL_HOST": LOOPBACK,
            "ORDERFLOW_EMAIL_PORT": str(self.ports.mail),
            "ORDERFLOW_SMS_FOLDER": str(self.mail_folder),
        }
        if self._stripe is not None:
            environment |= self._stripe.settings(environment.pop("ORDERFLOW_GATEWAY_URL"))
        if role is not None and role in self.ports.health:
            environment["ORDERFLOW_WORKER_HEALTH_LISTEN"] = self.health_address(role)
            environment["ORDERFLOW_WORKER_METRICS_LISTEN"] = self.metrics_address(role)
        return environment

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts everything and waits until all of it is healthy.

        Raises:
            DevstackError: a part did not start; the text says which, and shows the end of its log.
        """
        self.ports.require_free()
        await self.launch_engines()
        for stand_in in STAND_INS:
            self.start_stand_in(stand_in)
        # All wait by themselves for what is not there yet. But on few cores the workers would keep Kafka from starting,
        # and they wait for it.
        for role in self.roles:
            if role not in WORKERS:
                self.start_role(role)
        await self.wait_engines()
        for role in self.roles:
            if role in WORKERS:
                self.start_role(role)
        await self.set_up()
        await self.wait_healthy(self.roles)

    async def launch_engines(self) -> None:
        """Starts Kafka and PostgreSQL; the latter answers in the end.

        Raises:
            DevstackError: among others, the data is that of another number of brokers.
        """
        count = len(self.ports.brokers)
        self._refuse_data_of_others(count)
        self.mail_folder.mkdir(parents=True, exist_ok=True)
        classpath = await asyncio.to_thread(ensure_jars, None, self._note_jar)
        self._note("starting Kafka and PostgreSQL" if count == 1 else f"starting {count} Kafka brokers and PostgreSQL")
        folder = self.directory / KAFKA_FOLDERS[count]
        if count == 1:
            self.kafka = KafkaBroker(
                folder,
                self.ports.kafka,
                self.ports.kafka_controller,
                classpath=classpath,
                full_speed=self._full_speed,
            )
        else:
            self.kafka = KafkaCluster(folder, self.ports.brokers, classpath=classpath)
        if kafka_aot.is_missing(java_executable(), classpath):
            self._note("making Kafka start quickly, once: a quarter of a minute")
        self.postgres.start()
        preparing = asyncio.create_task(asyncio.to_thread(self.kafka.prepare))
        try:
            await self.postgres.wait_ready()
        finally:
            await preparing
        self.kafka.start()

    def _refuse_data_of_others(self, count: int) -> None:
        """PostgreSQL knows its groups and positions: with another Kafka beside it they would be taken for lost."""
        for other, name in KAFKA_FOLDERS.items():
            if other != count and (self.directory / name).exists():
                raise DevstackError(
                    f"the data in {self.directory} is that of {_brokers(other)}, not of {_brokers(count)}: start with "
                    f"--brokers {other}, or set ORDERFLOW_STATE_DIR to another folder, or delete the data with "
                    "`orderflow dev reset`"
                )

    async def wait_engines(self) -> None:
        """Waits until Kafka and PostgreSQL answer."""
        assert self.kafka is not None
        await asyncio.gather(self.kafka.wait_ready(), self.postgres.wait_ready())

    def _note_jar(self, done: int, total: int, name: str) -> None:
        self._note(f"fetching Kafka, once: {done} of {total} files ({name})")

    async def set_up(self) -> None:
        """Creates the topics, migrates the database and seeds the catalogue."""
        self._note("creating topics, migrating the database")
        kafka, database = self._connections()
        remaining, _ = await asyncio.gather(topic_admin.apply(kafka), migrate.migrate(database))
        if remaining:
            raise DevstackError(f"the topics are not as they should be: {remaining}; `orderflow dev reset` starts anew")
        await catalogue.seed(database)

    def _connections(self) -> tuple[KafkaSettings, DatabaseSettings]:
        environment = self.environment()
        kafka = {
            name.removeprefix("ORDERFLOW_KAFKA_").lower(): value
            for name, value in environment.items()
            if name.startswith("ORDERFLOW_KAFKA_")
        }
        return (
            KafkaSettings.model_validate(kafka),
            DatabaseSettings.model_validate({"url": environment["ORDERFLOW_DATABASE_URL"]}),
        )

    def start_stand_in(self, name: str) -> None:
        """Starts one of STAND_INS. The gateway's journal and the mail are kept."""
        if name == "mail":
            arguments = ["--port", str(self.ports.mail), "--folder", str(self.mail_folder)]
        else:
            self.gateway_journal.parent.mkdir(parents=True, exist_ok=True)
            arguments = ["--port", str(self.ports.gateway), "--admin-port", str(self.ports.gateway_admin)]
            arguments += ["--journal", str(self.gateway_journal)]
            arguments += self._stripe.arguments() if self._stripe is not None else []
        self._spawn(name, ["-m", f"devstack.{name}", *arguments])

    def start_role(self, role: str, settings: dict[str, str] | None = None) -> None:
        """Starts the server or a worker, with settings of its own if given."""
        self._spawn(role, ["-m", "cli", "run", role], {**self.environment(role), **(settings or {})})

    def start_console(self) -> None:
        """Starts the operators' console. The system does without it."""
        # A shell that is set up for a real cluster must not lead the console there, or into TLS.
        own = {name: value for name, value in self.environment().items() if not name.startswith(_CONNECTION)}
        settings = {
            **own,
            "ORDERFLOW_TARGET": self.server_address,
            "ORDERFLOW_CONSOLE_LISTEN": f"{LOOPBACK}:{self.ports.console}",
            "ORDERFLOW_CONSOLE_METRICS": ",".join(f"{role}={self.metrics_address(role)}" for role in self.roles),
        }
        self._spawn(CONSOLE, ["-m", "cli", "console"], settings)

    async def wait_console(self, *, deadline_seconds: float = 20.0) -> None:
        """Waits until the console answers.

        Raises:
            DevstackError: it ended, or does not answer in time.
        """
        import httpx

        async with httpx.AsyncClient(trust_env=False, timeout=2) as client:
            for _ in range(round(deadline_seconds / _HEALTH_POLL_SECONDS)):
                with contextlib.suppress(httpx.HTTPError):
                    await client.get(f"{self.console_url}/livez")
                    return
                process = self.processes[CONSOLE]
                if not process.running:
                    raise process.died()
                await asyncio.sleep(_HEALTH_POLL_SECONDS)
        raise DevstackError(f"the console does not answer within {deadline_seconds:.0f} s; see {self.directory}/logs")

    def start_another(self, role: str, name: str, settings: dict[str, str]) -> None:
        """Starts one more of a role, under a name and with addresses of its own."""
        self._spawn(name, ["-m", "cli", "run", role], {**self.environment(role), **settings})

    def _spawn(self, name: str, arguments: list[str], settings: dict[str, str] | None = None) -> None:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ORDERFLOW_")}
        python_path = os.pathsep.join([str(_ROOT), str(_ROOT / "generated"), str(_ROOT / "clients")])
        logs = {key: value for key, value in os.environ.items() if key.startswith("ORDERFLOW_LOG_")}
        process = ManagedProcess(
            name,
            [sys.executable, *arguments],
            self.directory / "logs" / f"{name}.log",
            {**inherited, "PYTHONPATH": python_path, **logs, **(settings or {})},
            pid_file=self.directory / "logs" / f"{name}.pid",
        )
        process.start()
        self.processes[name] = process

    async def wait_healthy(self, roles: Iterable[str], *, deadline_seconds: float = 60.0) -> None:
        """Waits until every role answers SERVING.

        Raises:
            DevstackError: one was not started, ended, or did not become healthy in time.
        """
        self._note("waiting until all are healthy")
        try:
            async with asyncio.timeout(deadline_seconds):
                await asyncio.gather(*(self._wait_healthy(role) for role in roles))
        except TimeoutError:
            unhealthy = [role for role in roles if not await is_serving(self.health_address(role))]
            raise DevstackError(
                f"{', '.join(unhealthy)} not healthy within {deadline_seconds:.0f} s; see {self.directory}/logs"
            ) from None

    async def _wait_healthy(self, role: str) -> None:
        while not await is_serving(self.health_address(role)):
            process = self.processes.get(role)
            if process is None:
                raise DevstackError(f"{role} was not started, or was stopped")
            if not process.running:
                raise process.died()
            await asyncio.sleep(_HEALTH_POLL_SECONDS)

    async def stop(self) -> None:
        """Ends everything in order: server, workers (they drain), stand-ins, engines."""
        await self.stop_role("server")
        beside = [name for name in self.processes if name not in STAND_INS]
        await asyncio.gather(*(self.stop_role(name) for name in beside))
        await asyncio.gather(*(self.stop_role(stand_in) for stand_in in STAND_INS))
        await asyncio.gather(self.kafka.stop() if self.kafka else asyncio.sleep(0), self.postgres.stop())

    async def stop_role(self, name: str) -> None:
        """Ends a role or a stand-in with SIGTERM, and waits until it has drained."""
        process = self.processes.pop(name, None)
        if process is not None:
            await process.stop(_STOP_SECONDS)

    async def count(self, query: str) -> int:
        """Returns the number that a query answers: what tests and people look up directly."""
        connection = await asyncpg.connect(self.postgres.dsn, timeout=5)
        try:
            return int(await connection.fetchval(query))
        finally:
            await connection.close(timeout=5)


def _brokers(count: int) -> str:
    return "one broker" if count == 1 else f"{count} brokers"


async def is_serving(address: str, service: str = "") -> bool:
    """Asks the standard gRPC health service once, as the health probe does."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        async with grpc.aio.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=2)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
    return False
