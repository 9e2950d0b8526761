"""Reads the processes' /metrics: often while somebody looks, now and then while nobody does."""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from console import metric_names

_READ_SECONDS: Final = 1.5
_LARGEST_PAGE: Final = 4 * 1024 * 1024
_IDLE_SECONDS: Final = 15.0

Sample = tuple[str, tuple[tuple[str, str], ...]]
"""A metric's name and its labels, sorted."""


@dataclasses.dataclass(frozen=True)
class Address:
    """Where one process serves /metrics."""

    name: str
    address: str


def addresses(setting: str) -> list[Address]:
    """Returns what the setting names: `name=host:port`, comma-separated."""
    return [Address(*each.split("=", 1)) for each in setting.split(",") if each]


@dataclasses.dataclass
class Process:
    """One process as it was last seen.

    Attributes:
        is_up: Whether it answered the last time.
        since: When that began, seconds since 1970; None before the first look.
        samples: What it said; empty while it does not answer.
    """

    where: Address
    is_up: bool = False
    since: float | None = None
    samples: dict[Sample, float] = dataclasses.field(default_factory=dict)


class Scraper:
    """Keeps what all addresses say.

    Attributes:
        processes: One for each address.
        read_at: When they were last read, seconds since 1970; None before.
    """

    def __init__(
        self,
        where: Sequence[Address],
        *,
        refresh_seconds: float,
        observe: Callable[[Sequence[Process], float], None] = lambda _, __: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Reads nothing yet. `observe` is told after each reading, with its time."""
        self.processes = [Process(address) for address in where]
        self.read_at: float | None = None
        self._refresh = refresh_seconds
        self._observe = observe
        self._now = now
        self._watchers = 0
        self._somebody_looks = asyncio.Event()

    def watched(self, by: int) -> None:
        """Counts those who look: 1 is one more, -1 one fewer."""
        if not self._watchers and by > 0:
            self._somebody_looks.set()
        self._watchers += by

    async def run(self) -> None:
        """Reads until cancelled."""
        async with httpx.AsyncClient(trust_env=False, timeout=_READ_SECONDS) as client:
            while True:
                self._somebody_looks.clear()
                await self.read(lambda address: _page(client, address))
                try:
                    async with asyncio.timeout(self._refresh if self._watchers else _IDLE_SECONDS):
                        await self._somebody_looks.wait()
                except TimeoutError:
                    pass

    async def read(self, page: Callable[[str], Awaitable[str]]) -> None:
        """Reads every address once. `page` returns its text, and raises OSError, ValueError or TimeoutError."""
        await asyncio.gather(*(self._read(process, page) for process in self.processes))
        self.read_at = self._now()
        self._observe(self.processes, self.read_at)

    async def _read(self, process: Process, page: Callable[[str], Awaitable[str]]) -> None:
        try:
            samples = parsed(await page(process.where.address))
        except (OSError, ValueError, TimeoutError):
            samples, is_up = {}, False
        else:
            is_up = True
        if process.since is None or process.is_up != is_up:
            process.since = self._now()
        process.is_up, process.samples = is_up, samples


def parsed(text: str) -> dict[Sample, float]:
    """Returns the samples that the console reads, from Prometheus' text format.

    Raises:
        ValueError: it is not of that format.
    """
    wanted = [line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] in metric_names.READ]
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families("\n".join(wanted) + "\n")
        for sample in family.samples
    }


async def _page(client: httpx.AsyncClient, address: str) -> str:
    try:
        async with asyncio.timeout(_READ_SECONDS), client.stream("GET", f"http://{address}/metrics") as response:
            response.raise_for_status()
            text = bytearray()
            async for chunk in response.aiter_bytes():
                text += chunk
                if len(text) > _LARGEST_PAGE:
                    raise ValueError("the page is too large")
            return text.decode()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OSError(str(error)) from error
