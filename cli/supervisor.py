"""What `orderflow dev` does between its start and Ctrl-C."""

import asyncio
import dataclasses
import os
import pathlib
import signal
import sys
import time
from typing import Final

from rich.console import Console

from cli import broker_starts, dev_status, sample_orders
from devstack.errors import DevstackError
from devstack.ports import LOOPBACK
from devstack.system import CONSOLE, RECONCILER, ROLES, Ports, System

_WATCH_SECONDS: Final = 0.5
_RESTART_SECONDS: Final = 1.0
# On one machine all is at rest soon, and who plants a difference wants to see it.
_RECONCILED: Final = {"ORDERFLOW_RECONCILER_INTERVAL": "15", "ORDERFLOW_RECONCILER_SETTLE_MINUTES": "0.5"}
# The system's own come first: a shell that is set up for a real cluster must lead dev neither there nor to real
# customers, whom the sample orders would tell.
_OWN: Final = (
    *(f"ORDERFLOW_{section}_" for section in ("KAFKA", "DATABASE", "SERVER_TLS", "SERVER_TOKEN", "SERVER_MTLS")),
    *(f"ORDERFLOW_SMS_{name}" for name in ("KIND", "URL", "TOKEN", "CA_FILE")),
    *(f"ORDERFLOW_EMAIL_{name}" for name in ("TLS", "USERNAME", "PASSWORD", "CA_FILE")),
    "ORDERFLOW_STATE_DIR",
    "ORDERFLOW_SERVER_LISTEN",
)


def ports(configured: str, asked: int, *, random_ports: bool, brokers: int = 1) -> Ports:
    """Returns the system's ports: `asked` for the server, or what the settings say.

    Raises:
        DevstackError: the settings ask for an address that is not on loopback.
    """
    host, _, port = configured.rpartition(":")
    if host not in (LOOPBACK, "localhost"):
        raise DevstackError(f"ORDERFLOW_SERVER_LISTEN: `orderflow dev` listens on {LOOPBACK} only, not on {host}")
    if random_ports:
        chosen = Ports.chosen(brokers=brokers)
    else:
        chosen = dataclasses.replace(Ports.usual(brokers=brokers), server=int(port))
    return dataclasses.replace(chosen, server=asked) if asked else chosen


class Supervisor:
    """Starts the system, restarts what dies, and ends it in order."""

    def __init__(self, directory: pathlib.Path, chosen: Ports) -> None:
        """Starts nothing."""
        self._console = Console(stderr=True, highlight=False)
        passed = {
            name: value
            for name, value in os.environ.items()
            if name.startswith("ORDERFLOW_") and not name.startswith(_OWN)
        }
        self._system = System(
            directory, chosen, settings=_RECONCILED | passed, roles=(*ROLES, RECONCILER), note=self._note
        )
        self._stop = asyncio.Event()
        self._signals = 0
        self._down: set[str] = set()

    async def run(self, *, samples: bool) -> int:
        """Runs until a signal and returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._asked)
        started = time.monotonic()
        work = asyncio.create_task(self._run(started, samples=samples))
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            return 0
        except DevstackError as error:
            self._console.print(f"orderflow: {error}", style="red", markup=False)
            return 1
        finally:
            stopped.cancel()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            self._note("stopping: workers drain, then Kafka and PostgreSQL end")
            await self._system.stop()
            dev_status.remove(self._system.directory)
            self._note("stopped")

    def _asked(self) -> None:
        self._signals += 1
        self._stop.set()
        if self._signals == 2:
            self._note("stopping already; a third Ctrl-C ends everything at once")
        if self._signals > 2:
            os.killpg(os.getpgid(0), signal.SIGKILL)

    def _note(self, text: str) -> None:
        self._console.print(f"  {text}", style="dim", markup=False)

    async def _run(self, started: float, *, samples: bool) -> None:
        self._console.print(f"orderflow dev   data in {self._system.directory}", markup=False)
        await self._system.start()
        self._system.start_console()  # it takes a second, which the samples take too
        dev_status.write(self._system)
        self._console.print(f"all healthy after {time.monotonic() - started:.1f} s", style="green")
        watch = asyncio.create_task(self._watch())
        try:
            if samples:
                await sample_orders.place(self._system, say=print)
            await self._system.wait_console()
            self._print_addresses()
            await watch
        finally:
            watch.cancel()

    async def _watch(self) -> None:
        """Restarts a role that ended by itself; ends with an error when an engine did."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            for name, process in list(self._system.processes.items()):
                if process.running:
                    continue
                self._console.print(
                    f"{name} ended with exit code {process.exit_code}; starting it again", style="yellow"
                )
                await asyncio.sleep(_RESTART_SECONDS)
                if name in self._system.roles:
                    self._system.start_role(name)
                elif name == CONSOLE:
                    self._system.start_console()
                else:
                    self._system.start_stand_in(name)
                dev_status.write(self._system)
            self._watch_brokers()
            if not self._system.postgres.running:
                raise DevstackError(f"PostgreSQL ended by itself; see {self._system.postgres.log_file}")

    def _watch_brokers(self) -> None:
        """Tells which broker ended, and starts again what it is asked to; ends with an error when none is left."""
        brokers = dev_status.brokers(self._system)
        if not any(broker.running for broker in brokers.values()):
            raise DevstackError(f"Kafka ended by itself; see {self._system.brokers[0].log_file}")
        for name, broker in brokers.items():
            if broker.running:
                self._down.discard(name)
            elif name not in self._down:
                self._down.add(name)
                self._console.print(
                    f"{name} ended with exit code {broker.exit_code} and stays down: "
                    f"`orderflow dev start-broker {name.removeprefix('kafka-')}` starts it again",
                    style="yellow",
                )
        for number in broker_starts.asked(self._system):
            broker = self._system.brokers[number - 1]
            if not broker.running:
                self._note(f"starting kafka-{number}")
                try:
                    broker.start()
                except DevstackError as error:
                    self._console.print(f"orderflow: {error}", style="red", markup=False)
                dev_status.write(self._system)

    def _print_addresses(self) -> None:
        system = self._system
        order = (
            '{"user_id":"u-1","email":"a@example.com","payment_method":"pm_card_visa","items":[{"sku":"SKU-1",'
            '"quantity":2,"unit_price":{"currency_code":"EUR","amount_minor":"1999"}}]}'
        )
        service = "orderflow.orders.v1.OrderService"
        print(
            f"""
Console    {system.console_url}
gRPC       {system.server_address}
Metrics    http://{system.metrics_address("server")}/metrics (workers: orderflow dev status)
Kafka      {system.bootstrap}
PostgreSQL {LOOPBACK}:{system.ports.postgres} (orderflow dev status -o env)
Mail       {system.mail_folder}
Gateway    journal in {system.gateway_journal}
Logs       {system.directory / "logs"}

Try it:
  grpcurl -plaintext -d '{order}' {system.server_address} {service}/CreateOrder
  grpcurl -plaintext -d '{{"order_id":"..."}}' {system.server_address} {service}/GetOrder

Ctrl-C ends it; the data stays."""
        )
        sys.stdout.flush()
