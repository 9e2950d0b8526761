"""The running system with a door before its gateway, and what the guarantees look up in it from outside."""

import asyncio
import pathlib
from typing import Any, Final

from devstack.system import ROLES, Ports
from tests.e2e import observer
from tests.e2e.observed import ObservedSystem
from tests.guarantees.front import Front

GATEWAY_TIMEOUT: Final = 1.0
BREAKER_RESET: Final = 0.5
_SETTINGS: Final = {
    "ORDERFLOW_GATEWAY_TIMEOUT": str(GATEWAY_TIMEOUT),
    "ORDERFLOW_GATEWAY_CONNECT_TIMEOUT": "0.8",
    "ORDERFLOW_GATEWAY_BREAKER_RESET_SECONDS": str(BREAKER_RESET),
}


class FrontedSystem(ObservedSystem):
    """A system whose payment processor reaches the gateway through a Front."""

    def __init__(self, directory: pathlib.Path, ports: Ports, front: Front) -> None:
        super().__init__(directory, ports, settings=_SETTINGS)
        self.front = front
        self.key_ttl_seconds: float | None = None
        self.mail_is_moody = False

    def environment(self, role: str | None = None) -> dict[str, str]:
        return {**super().environment(role), "ORDERFLOW_GATEWAY_URL": self.front.url}

    def start_stand_in(self, name: str) -> None:
        if name == "mail" and self.mail_is_moody:
            arguments = ["--port", str(self.ports.mail), "--folder", str(self.mail_folder)]
            self._spawn(name, ["-m", "tests.guarantees.moody_mail", *arguments])
            return
        super().start_stand_in(name)
        if name == "gateway" and self.key_ttl_seconds is not None:
            gateway = self.processes[name]
            gateway.kill()  # it has not served yet
            gateway.command += ["--key-ttl-seconds", str(self.key_ttl_seconds)]
            gateway.start()

    def charges(self, order_id: str) -> list[dict[str, Any]]:
        """Returns what the gateway executed for an order."""
        return [line for line in observer.journal(self.gateway_journal) if line.get("order_id") == order_id]

    async def restart_mail(self, *, moody: bool) -> None:
        await self.stop_role("mail")
        self.mail_is_moody = moody
        self.start_stand_in("mail")

    def metric(self, role: str, name: str, **labels: str) -> float:
        return observer.metric(self.metrics_address(role), name, **labels)

    def pids(self) -> dict[str, int | None]:
        """Returns the processes that are running."""
        return {role: self.processes[role].pid for role in ROLES if self.processes[role].running}

    async def metrics(self, *wanted: tuple[str, str, dict[str, str]]) -> list[float]:
        """Returns several (role, metric, labels) at about one moment."""
        return await asyncio.gather(
            *(asyncio.to_thread(observer.metric, self.metrics_address(role), name, **labels)
              for role, name, labels in wanted)
        )  # fmt: skip
