"""The system under test: two processes of each worker, restarted when they end by themselves, as a supervisor does."""

import asyncio
import pathlib
from collections.abc import Callable
from typing import Final

import asyncpg

from devstack.process import ManagedProcess
from devstack.system import ROLES, STAND_INS, WORKERS, Ports, StripeStandIn, System, is_serving
from settings import DatabaseSettings, KafkaSettings

SECOND: Final = tuple(f"{worker}-2" for worker in WORKERS)
INSTANCES: Final = (*WORKERS, *SECOND)
DELAYS: Final = (1, 3)
ATTEMPTS: Final = 3
_SETTINGS: Final = {
    "ORDERFLOW_KAFKA_RETRY_DELAYS": ",".join(map(str, DELAYS)),
    "ORDERFLOW_WORKER_ATTEMPTS": str(ATTEMPTS),
    "ORDERFLOW_GATEWAY_BREAKER_RESET_SECONDS": "1",
    "ORDERFLOW_GATEWAY_CONNECT_TIMEOUT": "1",
    "ORDERFLOW_GATEWAY_TIMEOUT": "2",
    "ORDERFLOW_LOG_FORMAT": "json",
    "ORDERFLOW_SERVER_TIME_TO_PAY_MINUTES": "0.2",
    "ORDERFLOW_WORKER_SWEEP_SECONDS": "1",
}
_LOOK_SECONDS: Final = 0.25


def role_of(instance: str) -> str:
    """Returns the role, and consumer group, of a process."""
    return instance.removesuffix("-2")


class ChaosSystem(System):
    """A System with a second process of each worker, named `<worker>-2`."""

    def __init__(
        self, directory: pathlib.Path, *, stripe: StripeStandIn | None = None, note: Callable[[str], None]
    ) -> None:
        ports, others = Ports.chosen_beside(2 * len(SECOND))
        ports.health.update(zip(SECOND, others, strict=False))
        ports.metrics.update(zip(SECOND, others[len(SECOND) :], strict=True))
        super().__init__(directory, ports, settings=_SETTINGS, stripe=stripe, note=note)
        self.down: set[str] = set()
        """What is ended on purpose: not to be restarted."""
        self.ended: list[tuple[str, int | None]] = []
        """What ended by itself, and its exit code."""

    def start_role(self, role: str, settings: dict[str, str] | None = None) -> None:
        """Starts the server or a worker's process."""
        self.down.discard(role)
        self._spawn(role, ["-m", "cli", "run", role_of(role)], {**self.environment(role), **(settings or {})})

    def process(self, instance: str) -> ManagedProcess:
        """Returns a running process."""
        return self.processes[instance]

    async def start(self) -> None:
        """Starts everything and waits until all of it is healthy."""
        self.ports.require_free()
        await self.launch_engines()
        for stand_in in STAND_INS:
            self.start_stand_in(stand_in)
        for instance in (*ROLES, *SECOND):
            self.start_role(instance)
        await self.wait_engines()
        await self.set_up()
        await self.wait_healthy((*ROLES, *SECOND), deadline_seconds=120)

    async def stop(self) -> None:
        """Ends everything in order."""
        self.down.update((*ROLES, *SECOND))
        for process in self.processes.values():
            process.kill() if not process.running else None
        await asyncio.gather(*(self.stop_role(instance) for instance in SECOND))
        await super().stop()

    async def supervise(self) -> None:
        """Starts again what ended by itself. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for instance in (*ROLES, *SECOND):
                process = self.processes.get(instance)
                if instance not in self.down and process is not None and not process.running:
                    self.ended.append((instance, process.exit_code))
                    self._note(f"{instance} ended by itself with exit code {process.exit_code}; starting it again")
                    self.start_role(instance)

    async def unhealthy(self) -> list[str]:
        """Returns the processes that do not answer SERVING."""
        instances = [*ROLES, *SECOND]
        serving = await asyncio.gather(*(is_serving(self.health_address(instance)) for instance in instances))
        return [instance for instance, is_well in zip(instances, serving, strict=True) if not is_well]

    async def add_stock(self, levels: dict[str, tuple[int, int]]) -> None:
        """Adds SKUs: units and the price of one in EUR cents."""
        connection = await asyncpg.connect(self.postgres.dsn, timeout=10)
        try:
            for sku, (units, price) in levels.items():
                await connection.execute("insert into stock (sku, available) values ($1, $2)", sku, units)
                await connection.execute(
                    "insert into prices (sku, currency_code, amount_minor) values ($1, 'EUR', $2)", sku, price
                )
        finally:
            await connection.close(timeout=5)

    def _connections(self) -> tuple[KafkaSettings, DatabaseSettings]:
        kafka, database = super()._connections()
        # The base class does not pass them on: the topics would be made for the default delays.
        return kafka.model_copy(update={"retry_delays": _SETTINGS["ORDERFLOW_KAFKA_RETRY_DELAYS"]}), database
