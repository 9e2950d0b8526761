"""The gateway that speaks as Stripe does, as a process, with StripeGateways before it."""

from pathlib import Path
from typing import Any

import httpx

from tests.gateways.process import GatewayProcess
from tests.gateways.references import MemoryReferences
from workers.gateways.stripe import StripeGateway

KEY = "sk_test_canary"


class StripeProcess(GatewayProcess):
    """As GatewayProcess. What is stored outlives each StripeGateway."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.references = MemoryReferences()
        self.stripe: StripeGateway
        self._gateways: list[StripeGateway] = []

    async def start(self, *options: str) -> None:
        await super().start("--dialect", "stripe", *options)
        self.stripe = self.gateway()

    def gateway(self, *, total_timeout: float = 60.0, references: Any = None) -> StripeGateway:
        gateway = StripeGateway(
            KEY,
            references=references or self.references,
            base_url=self.url,
            connect_timeout=total_timeout * 0.9,
            total_timeout=total_timeout,
        )
        self._gateways.append(gateway)
        return gateway

    async def call(self, method: str, path: str, key: str = "", **form: str) -> httpx.Response:
        """Calls the API by hand."""
        headers = {"Authorization": f"Bearer {KEY}"} | ({"Idempotency-Key": key} if key else {})
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, headers=headers, timeout=30) as client:
            return await client.request(method, path, data=form or None)

    async def aclose(self) -> None:
        for gateway in self._gateways:
            await gateway.aclose()
        await super().aclose()
