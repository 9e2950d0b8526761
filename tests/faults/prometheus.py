"""A real Prometheus on loopback, with the alert rules scaled in time."""

import contextlib
import dataclasses
import fractions
import pathlib
import time
from collections.abc import Mapping
from typing import Any, Final

import httpx
import yaml

from deploy.observability import render
from devstack.ports import LOOPBACK
from devstack.process import ManagedProcess
from tests.e2e.observer import eventually

SCALE: Final = fractions.Fraction(1, 60)
"""What the rules' durations are multiplied with: a minute is a second."""

_ABOUT: Final = ("group", "component", "breaker", "state", "channel", "instance")


@dataclasses.dataclass(frozen=True)
class Alert:
    """An alert that fires."""

    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether it has these labels, and perhaps more."""
        return labels.items() <= self.labels.items()


class Prometheus:
    """Scrapes the addresses, each with its component, twice in a second of the rules' minute."""

    def __init__(self, program: str, folder: pathlib.Path, port: int, addresses: Mapping[str, str]) -> None:
        folder.mkdir(parents=True)
        rules = folder / "orderflow.rules.yaml"
        rules.write_text(render.rendered(time_scale=SCALE))
        (folder / "prometheus.yaml").write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
                    "rule_files": [rules.name],
                    "scrape_configs": [
                        {
                            "job_name": "orderflow",
                            "static_configs": [
                                {"targets": [address], "labels": {"component": component}}
                                for component, address in addresses.items()
                            ],
                        }
                    ],
                }
            )
        )
        self._client = httpx.AsyncClient(base_url=f"http://{LOOPBACK}:{port}", trust_env=False, timeout=10)
        self._process = ManagedProcess(
            "prometheus",
            [
                program,
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={LOOPBACK}:{port}",
                "--log.level=warn",
            ],
            folder / "prometheus.log",
            {},
        )

    async def start(self) -> None:
        """Starts it, and waits until it is ready."""
        self._process.start()

        async def ready() -> bool:
            if not self._process.running:
                raise self._process.died()
            with contextlib.suppress(httpx.TransportError):
                return (await self._client.get("/-/ready")).is_success
            return False

        await eventually(ready, within=30, what="a Prometheus that is ready")

    async def stop(self) -> None:
        await self._client.aclose()
        await self._process.stop(10)

    async def firing(self) -> list[Alert]:
        """Returns the alerts that fire."""
        return [
            Alert(each["labels"]["alertname"], each["labels"], each["annotations"])
            for each in (await self._get("/api/v1/alerts"))["alerts"]
            if each["state"] == "firing"
        ]

    async def query(self, expression: str) -> list[dict[str, str]]:
        """Returns the labels of each series that an expression has now."""
        found = await self._get("/api/v1/query", query=expression)
        return [each["metric"] for each in found["result"]]

    async def pages_since(self, moment: float) -> set[tuple[str, str]]:
        """Returns every page that has fired since then (`time.monotonic()`), and what it is about."""
        # Not a moment longer: what has just ended fired before it.
        milliseconds = int((time.monotonic() - moment) * 1000)
        fired = await self.query(f'max_over_time(ALERTS{{alertstate="firing",severity="page"}}[{milliseconds}ms])')
        return {(each["alertname"], next((each[label] for label in _ABOUT if label in each), "")) for each in fired}

    async def _get(self, path: str, **parameters: str) -> Any:
        answer = (await self._client.get(path, params=parameters)).raise_for_status().json()
        assert answer["status"] == "success", answer
        return answer["data"]
