"""A real Chromium, and pages that fail a test for what their console says."""

import contextlib
import shutil
from collections.abc import AsyncIterator, Sequence
from typing import Any

from playwright.async_api import Browser, Page, async_playwright, expect

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
expect.set_options(timeout=30_000)  # how fast a page is is the machine's matter
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}


def chromium() -> str | None:
    """Returns where it is, None if this machine has none: `make tools` fetches it."""
    return shutil.which("chromium")


@contextlib.asynccontextmanager
async def launched() -> AsyncIterator[Browser]:
    """Runs it meanwhile."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=_ARGUMENTS, timeout=90_000)
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def page(browser: Browser, url: str, *, complains: Sequence[str] = (), **options: Any) -> AsyncIterator[Page]:
    """Opens a page in a profile of its own. What its console complains about, but of `complains`, fails the test."""
    context = await browser.new_context(base_url=url or None, viewport=DESKTOP, **options)
    complaints: list[str] = []
    try:
        opened = await context.new_page()
        opened.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        yield opened
    finally:
        await context.close()
    unexpected = [said for said in complaints if not any(each in said for each in complains)]
    assert not unexpected, unexpected
