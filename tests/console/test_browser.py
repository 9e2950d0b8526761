"""The console in a real Chromium. Every page ends with an empty browser console, or its test is red."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, expect

from devstack import free_ports
from orderflow_client import OrdersClient
from tests import engines
from tests.console import content
from tests.console.browser import PHONE, chromium, launched, page
from tests.console.system import System, console, system

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="chromium is not on this machine, and `make tools` cannot fetch it here"
)


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with launched() as started:
        yield started


@pytest.fixture
async def of() -> AsyncIterator[System]:
    async with system() as started:
        yield started


@pytest.fixture
async def made(of: System) -> dict[str, str]:
    return await content.a_day(of)


async def is_live(opened: Page) -> None:
    """Waits until the page is kept up to date."""
    await expect(opened.locator("#live")).to_have_text("live")


async def test_the_board_moves_by_itself(browser: Browser, of: System, made: dict[str, str]) -> None:
    metrics = await content.processes(of)
    async with console(of, metrics=metrics) as url, page(browser, url) as opened:
        await opened.goto("/")
        await is_live(opened)
        payment = opened.get_by_role("row", name="payment-processor").first
        await expect(payment).to_contain_text("1,204")
        await expect(payment).to_contain_text("closed")
        of.metrics.pages["payment-processor"] = content.worker("payment-processor", lag=9, paused=3) + content.breaker(
            "open"
        )
        of.metrics.pages["server"] = content.orders_in(412)
        await expect(payment).to_contain_text("dependency down (3)")
        await expect(payment).to_contain_text("open")
        await expect(opened.locator(".funnel li").first).to_contain_text("412")
        await expect(opened.locator(".tile", has_text="Stuck")).to_contain_text("2")
        of.letters.entries.clear()
        await expect(opened.get_by_text("No unresolved dead letters.")).to_be_visible()


async def test_an_orders_life_grows_while_somebody_looks(browser: Browser, of: System, made: dict[str, str]) -> None:
    async with console(of) as url, page(browser, url) as opened:
        await opened.goto(f"/orders/{made['waits']}")
        await is_live(opened)
        await expect(opened.locator(".life > li")).to_have_count(2)
        of.orders.pay(made["waits"])
        of.orders.notify(made["waits"])
        await expect(opened.locator(".life > li")).to_have_count(4)
        await expect(opened.locator(".lead")).to_contain_text("It is paid: EUR 41.23.")


async def test_replaying_1000_dead_letters_shows_progress_and_ends(
    browser: Browser, of: System, made: dict[str, str]
) -> None:
    for _ in range(1_000):
        of.give_up(made["rejected"], group="order-processor", error_class="SKU_UNKNOWN")
    async with console(of) as url, page(browser, url) as opened:
        await opened.goto("/")
        await opened.get_by_role("link", name="SKU_UNKNOWN").click()
        await opened.get_by_role("button", name="Plan a replay").click()
        await expect(opened.locator(".lead")).to_contain_text("1,000 records. Nothing is replayed yet.")
        await opened.get_by_label("Why, for the history").fill("the SKU is there now")
        # Ten seconds: long enough for a slow browser to show steps of it.
        await opened.get_by_label("Records per second").fill("100")
        await opened.get_by_label("to confirm").fill("1000")
        await opened.get_by_role("button", name="Replay 1,000 records").click()
        seen = await progress_until_done(opened)
        assert len(seen) >= 4, f"too few steps to be called progress: {seen}"
        assert seen == sorted(seen)
        assert seen[-1] == 1_000
        await expect(opened.locator(".lead")).to_contain_text("All 1,000 are done: 1,000 replayed, 0 left out.")
        await expect(opened.get_by_role("button", name="Stop")).to_have_count(0)
        assert len(of.replayed.records) == 1_000
        await opened.goto("/dead-letters")
        await expect(opened.get_by_role("link", name="SKU_UNKNOWN")).to_have_count(0)


async def progress_until_done(opened: Page) -> list[int]:
    """Returns every different value that the bar showed, in their order."""
    seen: list[int] = []
    async with asyncio.timeout(90):
        while not seen or seen[-1] < 1_000:
            value = int(await opened.locator("#progress").get_attribute("value") or "0")
            if not seen or value != seen[-1]:
                seen.append(value)
            await opened.wait_for_timeout(50)
    return seen


async def test_a_plan_asks_for_its_size_and_can_be_stopped_from_another_page(
    browser: Browser, of: System, made: dict[str, str]
) -> None:
    for _ in range(200):
        of.give_up(made["rejected"], group="order-processor", error_class="SKU_UNKNOWN")
    # Chromium calls the answer to what was typed wrong an error.
    typed_wrong = page(browser, "", complains=["status of 422"])
    async with console(of) as url, typed_wrong as opened, page(browser, url) as other:
        await opened.goto(f"{url}/dead-letters?error_class=SKU_UNKNOWN")
        await opened.get_by_role("button", name="Plan a replay").click()
        await opened.get_by_label("Why, for the history").fill("try")
        await opened.get_by_label("to confirm").fill("20")
        await opened.get_by_role("button", name="Replay 200 records").click()
        await expect(opened.get_by_role("alert")).to_have_text("Type 200 to confirm.")
        assert of.replayed.records == []
        await expect(opened.get_by_label("Why, for the history")).to_have_value("try")
        await opened.get_by_label("to confirm").fill("200")
        await opened.get_by_label("Records per second").fill("4")  # it must not end before it is stopped
        await opened.get_by_role("button", name="Replay 200 records").click()
        await expect(opened.locator(".lead")).to_contain_text("RUNNING")
        await other.goto(re.sub(r"/apply$", "", opened.url))
        await engines.eventually(lambda: of.replayed.records, "the first of them is replayed", seconds=30)
        await other.get_by_role("button", name="Stop").click()
        for each in (opened, other):
            await expect(each.locator(".lead")).to_contain_text("ABORTED")
        assert 0 < len(of.replayed.records) < 200


async def test_it_works_without_a_mouse(browser: Browser, of: System, made: dict[str, str]) -> None:
    async with console(of) as url, page(browser, url) as opened:
        keys = opened.keyboard
        await opened.goto("/orders")
        await keys.press("Tab")
        await expect(opened.get_by_text("Skip to content")).to_be_focused()
        await keys.press("/")
        await keys.type(made["given up"])
        await keys.press("Enter")
        await expect(opened.get_by_role("heading", level=1)).to_contain_text(made["given up"])
        await tab_to(opened, f"/dead-letters/{made['letter']}")
        await keys.press("Enter")
        await expect(opened.get_by_role("heading", level=1)).to_have_text(f"Dead letter {made['letter']}")
        await tab_to(opened, f"/dead-letters/{made['letter']}/discard")
        await keys.press("Enter")
        await expect(opened.get_by_label("Why, for the history")).to_be_focused()
        await keys.type("cancelled by phone")
        await keys.press("Enter")
        await expect(opened.locator(".lead")).to_contain_text("DISCARDED")
        await expect(opened.locator(".lead")).to_contain_text("cancelled by phone")
    assert await of.letters.summary() == []


async def tab_to(opened: Page, path: str) -> None:
    """Presses Tab until the link has the focus, and sees that the focus shows."""
    await opened.wait_for_load_state()
    for _ in range(40):
        await opened.keyboard.press("Tab")
        href, outline = await opened.evaluate(
            "[document.activeElement.getAttribute('href'), getComputedStyle(document.activeElement).outlineStyle]"
        )
        assert outline == "solid", href
        if href == path:
            return
    raise AssertionError(f"no Tab leads to {path}")


async def test_what_has_the_focus_keeps_it_while_the_board_moves(
    browser: Browser, of: System, made: dict[str, str]
) -> None:
    async with console(of) as url, page(browser, url) as opened:
        await opened.goto("/")
        await is_live(opened)
        link = opened.get_by_role("link", name="GATEWAY_CHARGE_UNKNOWN")
        await link.focus()
        of.give_up(made["rejected"], group="order-processor", error_class="SKU_UNKNOWN")
        await expect(opened.get_by_role("link", name="SKU_UNKNOWN")).to_be_visible()
        await expect(link).to_be_focused()


async def paths(of: System, made: dict[str, str]) -> list[str]:
    letter = f"/dead-letters/{made['letter']}"
    return ["/", "/orders", f"/orders/{made['given up']}", "/stuck", "/dead-letters", letter, f"{letter}/discard", "/x"]


async def test_nothing_is_wider_than_a_phone(browser: Browser, of: System, made: dict[str, str]) -> None:
    metrics = await content.processes(of, gateway="open")
    async with console(of, metrics=metrics) as url, page(browser, url) as opened:
        await opened.set_viewport_size({"width": PHONE["width"], "height": PHONE["height"]})
        for path in (await paths(of, made))[:-1]:
            await opened.goto(path)
            width = await opened.evaluate("document.documentElement.scrollWidth")
            assert width == PHONE["width"], path
            small = await opened.evaluate(
                "[...document.querySelectorAll('button, .button, .top nav a')]"
                ".map(each => each.getBoundingClientRect().height).filter(height => height > 0 && height < 24)"
            )
            assert small == [], f"too small for a finger: {path}"


_CONTRAST = """() => {
  const channel = value => { value /= 255; return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4 };
  const parts = colour => colour.match(/[0-9.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = element => {
    for (let each = element; each; each = each.parentElement) {
      const colour = parts(getComputedStyle(each).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest('svg, script, .hidden, [hidden]')) continue;
    const [a, b] = [light(parts(getComputedStyle(element).color)), light(ground(element))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(element.outerHTML.slice(0, 100));
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_can_be_read_in_light_and_dark(
    browser: Browser, of: System, made: dict[str, str], scheme: str
) -> None:
    metrics = await content.processes(of, gateway="open")
    async with console(of, metrics=metrics) as url, page(browser, url, color_scheme=scheme) as opened:
        for path in (await paths(of, made))[:-1]:
            await opened.goto(path)
            assert await opened.evaluate(_CONTRAST) == [], path
        ground = await opened.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(246, 247, 249)", "dark": "rgb(15, 19, 23)"}[scheme]


async def test_every_field_has_a_name_and_every_page_its_landmarks(
    browser: Browser, of: System, made: dict[str, str]
) -> None:
    async with console(of) as url, page(browser, url) as opened:
        for path in (await paths(of, made))[:-1]:
            await opened.goto(path)
            nameless = await opened.evaluate(
                "[...document.querySelectorAll('input:not([type=hidden]), select, progress')]"
                ".filter(each => !each.labels.length && !each.ariaLabel).map(each => each.outerHTML)"
            )
            assert nameless == [], path
            for role in ("banner", "navigation", "search", "main", "contentinfo"):
                await expect(opened.get_by_role(role)).to_have_count(1)
            assert await opened.locator("h1").count() == 1
            assert await opened.evaluate("document.documentElement.lang") == "en"
            assert "orderflow" in await opened.title()


async def test_a_lost_connection_is_told_and_comes_back(browser: Browser, of: System) -> None:
    # Chromium and htmx call each request that nobody answers, or whose answer breaks off, an error.
    unanswered = ["net::ERR_", "htmx:sse:error"]
    [port] = free_ports(1)
    async with page(browser, "", complains=unanswered) as opened:
        async with console(of, listen=f"127.0.0.1:{port}") as url:
            await opened.goto(url)
            await is_live(opened)
        await expect(opened.locator("#live")).to_contain_text("connection lost")
        async with console(of, listen=f"127.0.0.1:{port}"):
            await expect(opened.locator("#live")).to_have_text("live", timeout=60_000)


async def test_injected_markup_is_text(browser: Browser, of: System) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    async with OrdersClient(of.orders.target) as orders:
        order_id = await content.place(orders, user_id=evil, external_reference=evil)
    letter = of.give_up(order_id, group="order-processor", error_class=evil, message=evil)
    async with console(of) as url, page(browser, url) as opened:
        opened.on("dialog", lambda dialog: pytest.fail(dialog.message))
        for path in ("/", "/orders", f"/orders/{order_id}", "/dead-letters", f"/dead-letters/{letter}"):
            await opened.goto(path)
            assert await opened.locator("img, main script").count() == 0, path
            await expect(opened.get_by_text("<script>").first).to_be_visible()
