"""Takes the pictures of docs/console.md anew: `python -m tests.console.screenshots`."""

import asyncio
import pathlib
import re
import sys

from playwright.async_api import Browser, Page, expect

from tests.console import content
from tests.console.browser import PHONE, launched, page
from tests.console.system import System, console, system

IMAGES = pathlib.Path(__file__).parents[2] / "docs" / "images"


async def take(opened: Page, path: str, name: str, folder: pathlib.Path, *, whole: bool = True) -> None:
    """Opens a path and keeps its picture once it is kept up to date."""
    await opened.goto(path)
    await opened.locator("#live", has_text="live").wait_for()
    await opened.screenshot(path=folder / f"console-{name}.png", full_page=whole)


async def flow(of: System) -> None:
    """Lets the counters gain, evenly."""
    for number in range(1, 30):
        of.metrics.pages["server"] = content.orders_in(206 * number + (number % 7) * 15)
        await asyncio.sleep(0.5)


async def replay(opened: Page, folder: pathlib.Path) -> None:
    """Takes a plan's picture while it runs."""
    await opened.goto("/dead-letters?error_class=SKU_UNKNOWN")
    await opened.get_by_role("button", name="Plan a replay").click()
    await opened.get_by_label("Why, for the history").fill("the SKU is there now")
    await opened.get_by_label("Records per second").fill("200")
    await opened.get_by_label("to confirm").fill("1000")
    await opened.get_by_role("button", name="Replay 1,000 records").click()
    await expect(opened.locator("#progress")).to_have_attribute("value", re.compile("^[3-9][0-9]{2}$"))
    await opened.screenshot(path=folder / "console-plan.png")


async def shoot(browser: Browser, folder: pathlib.Path) -> None:
    """Takes them all."""
    async with system() as of:
        metrics = await content.processes(of, gateway="open")
        made = await content.a_day(of, pause=0.02)
        for _ in range(14):
            of.give_up(made["shipped"], group="notification-email", error_class="SMTP_REFUSED", message="550 refused")
        async with console(of, metrics=metrics) as url:
            async with page(browser, url, color_scheme="light") as opened:
                await opened.goto("/")
                await flow(of)
                await take(opened, "/", "overview", folder)
                await take(opened, f"/orders/{made['paid']}", "order", folder)
                await opened.goto("/dead-letters?group=payment-processor")
                await opened.screenshot(path=folder / "console-dead-letters.png", full_page=True)
                for _ in range(1_000):
                    of.give_up(made["declined"], group="order-processor", error_class="SKU_UNKNOWN")
                await replay(opened, folder)
            async with page(browser, url, color_scheme="dark") as opened:
                await take(opened, "/", "overview-dark", folder)
            async with page(browser, url, color_scheme="light") as opened:
                await opened.set_viewport_size({"width": PHONE["width"], "height": PHONE["height"]})
                await take(opened, "/", "overview-phone", folder, whole=False)
                await take(opened, "/stuck", "stuck-phone", folder, whole=False)


async def main(folder: pathlib.Path) -> None:
    async with launched() as browser:
        await shoot(browser, folder)


if __name__ == "__main__":
    chosen = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    chosen.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(chosen))
