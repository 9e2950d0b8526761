"""The gateway as a process, for tests."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from workers.gateways.gateway import Charge, PaymentGateway
from workers.gateways.remote import HttpGateway

ROOT = Path(__file__).parents[2]


class GatewayProcess:
    """One gateway process at a time over one journal, with a client of it."""

    def __init__(self, folder: Path) -> None:
        self.journal = folder / "journal.jsonl"
        self._errors = folder / "stderr.txt"
        self._process: subprocess.Popen[str] | None = None
        self._clients: list[HttpGateway] = []
        self._admin = ""
        self.url = ""
        self.client: HttpGateway

    async def start(self, *options: str) -> None:
        command = [sys.executable, "-m", "devstack.gateway", "--port", "0", "--admin-port", "0"]
        with self._errors.open("a") as errors:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - returns at once, and lets each ending be sent by hand
                [*command, "--journal", str(self.journal), *options],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._process.stdout is not None
        ready = await asyncio.to_thread(self._process.stdout.readline)
        assert ready, self._errors.read_text()
        addresses = json.loads(ready)
        self.url, self._admin = addresses["gateway"], addresses["admin"]
        self.client = self.connect()

    def connect(self, *, connect_timeout: float = 5.0, total_timeout: float = 10.0) -> HttpGateway:
        client = HttpGateway(self.url, connect_timeout=connect_timeout, total_timeout=total_timeout)
        self._clients.append(client)
        return client

    def connect_impatient(self) -> HttpGateway:
        """A client that waits 2 s for an answer, nearly all of which connecting may take."""
        return self.connect(connect_timeout=1.9, total_timeout=2.0)

    async def faults(self, **faults: float | bool | list[dict[str, Any]]) -> None:
        assert await self.put_faults(json.dumps(faults)) == 200

    async def put_faults(self, body: str) -> int:
        """Returns the status."""
        return await put_faults(self._admin, body)

    async def shown_faults(self) -> dict[str, Any]:
        async with httpx.AsyncClient(trust_env=False) as admin:
            shown: dict[str, Any] = (await admin.get(f"{self._admin}/faults")).raise_for_status().json()
        return shown

    async def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        code = await asyncio.to_thread(self._process.wait, 60)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
        return code

    def lines(self) -> list[dict[str, Any]]:
        """Returns the journal, without a last line that is still being written."""
        whole, _, _ = self.journal.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    async def aclose(self) -> None:
        for client in self._clients:
            await client.aclose()
        if self._process is not None:
            await self.end(signal.SIGKILL)
        assert self._errors.read_text() == ""


async def put_faults(admin_url: str, body: str) -> int:
    """Replaces the faults of the gateway whose admin port is there; returns the status."""
    async with httpx.AsyncClient(trust_env=False, timeout=30) as admin:
        return (await admin.put(f"{admin_url}/faults", content=body)).status_code


async def charge(gateway: PaymentGateway, key: str = "k-1", **changes: Any) -> Charge:
    asked = {"order_id": "o-1", "amount_minor": 3998, "currency_code": "EUR", "payment_method": "pm_card_visa"}
    return await gateway.charge(key, **{**asked, **changes})
