"""The running system as operators have it: with its console, and with a Prometheus that raises the alarm."""

import asyncio
import contextlib
import json
import pathlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import httpx

from devstack.system import RECONCILER, ROLES, Ports
from tests.e2e.observed import ObservedSystem
from tests.e2e.observer import eventually
from tests.faults.board import Board
from tests.faults.operator import Operator
from tests.faults.prometheus import Alert, Prometheus
from tests.gateways.process import put_faults

# What the alerts compare with times is scaled as they are, or nearly: from minutes to seconds.
_SETTINGS: Final = {
    "ORDERFLOW_KAFKA_SESSION_TIMEOUT": "3",
    "ORDERFLOW_GATEWAY_BREAKER_RESET_SECONDS": "0.5",
    "ORDERFLOW_WORKER_DEPENDENCY_PROBE_CAP": "0.5",
    "ORDERFLOW_WORKER_SWEEP_SECONDS": "0.5",
    "ORDERFLOW_WORKER_STANDING_SECONDS": "0.5",
    "ORDERFLOW_WORKER_LAG_SECONDS": "0.5",
    "ORDERFLOW_WORKER_OVERDUE_MINUTES": str(5 / 60),
    "ORDERFLOW_RECONCILER_INTERVAL": "5",
    "ORDERFLOW_CONSOLE_REFRESH_SECONDS": "0.5",
}
_RESOLVED_SECONDS: Final = 60.0
"""Above the longest time that a scaled rule looks back."""


class WatchedSystem(ObservedSystem):
    """The system with all its programs, a console and a Prometheus."""

    def __init__(self, directory: pathlib.Path, prometheus: str) -> None:
        """`prometheus` is the program's path."""
        ports, (port,) = Ports.chosen_beside(1)
        super().__init__(directory, ports, settings=_SETTINGS)
        self.roles = (*ROLES, RECONCILER)
        self._mail_is_refused = False
        addresses = {role: self.metrics_address(role) for role in self.roles}
        self.prometheus = Prometheus(prometheus, directory / "prometheus", port, addresses)
        self.operator = Operator({"ORDERFLOW_TARGET": self.server_address})

    async def start(self) -> None:
        await super().start()
        self.start_console()
        await self.prometheus.start()
        await self.wait_console()

    async def stop(self) -> None:
        await self.prometheus.stop()
        await super().stop()

    async def mend(self) -> None:
        """Ends what a test that failed may have left."""
        if self._mail_is_refused:
            await self.refuse_mail(False)
        await self.gateway_faults()
        await super().mend()

    # -- faults --------------------------------------------------------------------------------------------------------

    async def gateway_faults(self, **faults: float | bool) -> None:
        """Has the gateway's calls go wrong like this; without any, like none."""
        assert await put_faults(f"http://127.0.0.1:{self.ports.gateway_admin}", json.dumps(faults)) == 200

    async def refuse_mail(self, refused: bool) -> None:
        """Has the mail server refuse every recipient for good, or take them all again."""
        await self.stop_role("mail")
        self._mail_is_refused = refused
        if refused:
            arguments = ["--port", str(self.ports.mail), "--folder", str(self.mail_folder)]
            self._spawn("mail", ["-m", "tests.faults.blocking_mail", *arguments])
        else:
            self.start_stand_in("mail")

    def log(self, role: str, event: str = "") -> list[dict[str, Any]]:
        """Returns the lines of a role's log, or those of an event."""
        path = self.directory / "logs" / f"{role}.log"
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if event in ("", line["event"])]

    def events(self, role: str) -> list[str]:
        """Returns the events of a role's log."""
        return [line["event"] for line in self.log(role)]

    # -- alerts --------------------------------------------------------------------------------------------------------

    async def alert(self, name: str, *, within: float = 60, **labels: str) -> Alert:
        """Waits until Prometheus says that an alert with the labels fires."""

        async def fires() -> Alert | None:
            firing = await self.prometheus.firing()
            return next((each for each in firing if each.name == name and each.has(labels)), None)

        found = await eventually(fires, within=within, what=f"{name} {labels} fires")
        assert found is not None
        assert "  " not in found.annotations["summary"], f"{found} lacks a label"
        return found

    async def resolved(self, *alerts: Alert, within: float = _RESOLVED_SECONDS) -> None:
        """Waits until none of the alerts fires."""
        names = {each.name for each in alerts}

        async def are_over() -> bool:
            return not names & {each.name for each in await self.prometheus.firing()}

        await eventually(are_over, within=within, what=f"the end of {', '.join(names)}")

    @contextlib.asynccontextmanager
    async def only(self, pages: set[tuple[str, str]]) -> AsyncIterator[None]:
        """Fails if other pages fire meanwhile than these: name, and group, component or what else it is about."""
        began = time.monotonic()
        yield
        fired = await self.prometheus.pages_since(began)
        assert fired <= pages, f"nothing is a reason for {fired - pages}"

    async def quiet(self) -> None:
        """Waits until every process is scraped and no alert fires."""
        up: list[dict[str, str]] = []
        alerts: list[Alert] = []

        async def is_quiet() -> bool:
            nonlocal up, alerts
            up = await self.prometheus.query('up{job="orderflow"} == 1')
            alerts = await self.prometheus.firing()
            return len(up) == len(self.roles) and not alerts

        try:
            await eventually(is_quiet, within=_RESOLVED_SECONDS, what="no alert")
        except AssertionError as error:
            raise AssertionError(f"up: {len(up)}; {alerts}") from error

    # -- console -------------------------------------------------------------------------------------------------------

    async def console_shows(self, what: str, condition: Callable[[Board], bool], *, within: float = 20) -> None:
        """Waits until the console's first page, kept up to date as a browser does, shows something."""
        board = None
        try:
            async with asyncio.timeout(within), _live(self.console_url) as boards:
                async for board in boards:
                    if condition(board):
                        return
        except TimeoutError:
            pass
        raise AssertionError(f"the console does not show {what}, but {board}")


@contextlib.asynccontextmanager
async def _live(url: str) -> AsyncIterator[AsyncIterator[Board]]:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
        (await client.get("/")).raise_for_status()
        async with client.stream("GET", "/live") as stream:
            yield _boards(stream)


async def _boards(stream: httpx.Response) -> AsyncIterator[Board]:
    data: list[str] = []
    async for line in stream.aiter_lines():
        if line.startswith("data: "):
            data.append(line.removeprefix("data: "))
        elif not line and data:
            yield Board("\n".join(data))
            data = []
