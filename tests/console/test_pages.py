"""The pages by their HTTP: what they show, what they never show, and what they refuse."""

import contextlib
import re
from collections.abc import AsyncIterator

import httpx
import pytest

from orderflow_client import OrdersClient
from settings import SettingsError
from tests import engines
from tests.console import content
from tests.console.system import System, console, system
from tests.e2e.observer import eventually


@pytest.fixture
async def of() -> AsyncIterator[System]:
    async with system() as started:
        yield started


@pytest.fixture
async def made(of: System) -> dict[str, str]:
    return await content.a_day(of)


@contextlib.asynccontextmanager
async def browser(of: System, **settings: object) -> AsyncIterator[httpx.AsyncClient]:
    async with console(of, **settings) as url, httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
        yield client


def csrf(page: httpx.Response) -> str:
    [*_, token] = re.findall(r'name="csrf" value="([0-9a-f]+)"', page.text)
    return token


async def messages(response: httpx.Response) -> AsyncIterator[str]:
    """Yields the data of each event, and `end` for the last."""
    data: list[str] = []
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            data.append(line.removeprefix("data: "))
        elif not line and data:
            yield "\n".join(data)
            data = []


async def test_nothing_about_the_customer_is_on_any_page(of: System, made: dict[str, str]) -> None:
    paths = ["/", "/stuck", "/orders", "/orders?user=u-1042", "/dead-letters", f"/dead-letters/{made['letter']}"]
    paths += [f"/dead-letters/{made['letter']}/{verb}" for verb in ("replay", "discard")]
    paths += [f"/orders/{made[name]}" for name in ("paid", "given up")]
    async with browser(of) as client:
        for path in paths:
            shown = await client.get(path)
            assert shown.status_code == 200, path
            for personal in ("carla", "customer@", "1701234567", "pm_card_visa"):
                assert personal not in shown.text, (path, personal)
        assert "c•••@e•••.com" in (await client.get(f"/orders/{made['paid']}")).text


async def test_an_order_is_found_by_its_id_and_shown_with_all_that_happened(of: System, made: dict[str, str]) -> None:
    async with browser(of, order_traces_url="https://traces.example/search?order={order_id}") as client:
        found = await client.get("/search", params={"q": f" {made['paid'].upper()} "}, follow_redirects=True)
        assert found.url.path == f"/orders/{made['paid']}"
        types = re.findall(r"<strong>([A-Z_]+)</strong>", found.text)
        assert types == ["ORDER_CREATED", "ORDER_PROCESSING", "ORDER_PAID", "NOTIFICATION_SENT", "NOTIFICATION_SENT"]
        assert f"test-{made['paid']}" in found.text, "the gateway's reference"
        assert "ORDER_PAID by SMS" in found.text
        assert f"https://traces.example/search?order={made['paid']}" in found.text
        assert "It is paid: EUR 41.23." in found.text
        given_up = await client.get(f"/orders/{made['given up']}")
        assert "payment-processor gave up on it: GATEWAY_CHARGE_UNKNOWN. Waits for you" in given_up.text
        assert f'href="/dead-letters/{made["letter"]}"' in given_up.text


@pytest.mark.parametrize(
    ("text", "path"),
    [("0-42", "/dead-letters/0-42"), ("dlq/0-42", "/dead-letters/0-42"), ("u-7 & co", "/orders?user=u-7+%26+co")],
)
async def test_other_ids_lead_to_what_they_stand_for(of: System, text: str, path: str) -> None:
    async with browser(of) as client:
        assert (await client.get("/search", params={"q": text})).headers["location"] == path


async def test_an_order_is_found_by_any_id_that_has_to_do_with_it(of: System, made: dict[str, str]) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    async with OrdersClient(of.target) as orders:
        traced = (("traceparent", f"00-{trace_id}-00f067aa0ba902b7-01"),)
        placed = [
            await content.place(orders, request_id=each, metadata=traced)
            for each in ("name", "7a1f8a52-9f51-4d0e-8f0e-1f6d4a0b9c11")
        ]
        [event] = [each async for each in orders.list_order_events(placed[0])]
    of.orders.pay(placed[0])
    async with browser(of) as client:
        for text, order_id in (
            (event.entry_id, placed[0]),
            (f"test-{placed[0]}", placed[0]),
            ("7a1f8a52-9f51-4d0e-8f0e-1f6d4a0b9c11", placed[1]),
        ):
            found = await client.get("/search", params={"q": text})
            assert found.headers["location"] == f"/orders/{order_id}", text
        several = await client.get("/search", params={"q": trace_id})
        assert several.status_code == 200
        assert [each for each in placed if f'href="/orders/{each}"' in several.text] == placed
        named = await client.get("/search", params={"q": "name"})
        assert f'href="/orders/{placed[0]}"' in named.text
        assert 'href="/orders?user=name"' in named.text, "it may be a user as well"
        nowhere = await client.get("/search", params={"q": trace_id.replace("4", "5")})
        assert nowhere.status_code == 404


async def test_what_is_nowhere_is_not_found(of: System) -> None:
    async with browser(of) as client:
        nowhere = "00000000-0000-4000-8000-000000000000"
        for path in (f"/search?q={nowhere}", f"/orders/{nowhere}", f"/plans/{nowhere}", "/dead-letters/0-99", "/nope"):
            assert (await client.get(path)).status_code == 404, path


async def test_lists_are_narrowed_and_paged(of: System, made: dict[str, str]) -> None:
    async with browser(of) as client:
        paid = await client.get("/orders", params={"status": "PAID", "since": "1h", "user": "u-1042"})
        assert made["paid"] in paid.text
        assert made["declined"] not in paid.text
        for _ in range(60):
            of.give_up(made["declined"], group="order-processor", error_class="SKU_UNKNOWN")
        first = await client.get("/dead-letters", params={"group": "order-processor"})
        assert made["letter"] + "</a>" not in first.text
        assert first.text.count('<th scope="row"><a href="/dead-letters/0-') == 50
        [more] = re.findall(r'href="([^"]+)" rel="next"', first.text)
        second = await client.get(more.replace("&amp;", "&"))
        assert second.text.count('<th scope="row"><a href="/dead-letters/0-') == 10
        assert (await client.get(more.replace("&amp;", "&").replace("order-", "payment-"))).status_code == 400


async def test_a_source_that_does_not_answer_is_unknown_and_never_zero(of: System, made: dict[str, str]) -> None:
    metrics = await content.processes(of)
    async with browser(of, metrics=metrics) as client:
        async with client.stream("GET", "/live") as stream:
            boards = messages(stream)
            board = await anext(boards)
            assert tile(board, "Dead letters") == "1"
            while tile(board, "Processing") != "1,207":  # one after the other is heard
                board = await anext(boards)
            for name in ("order-processor", "payment-processor", "notification-email", "notification-sms"):
                await of.metrics.stop(name)
            while "0 of 1" not in (board := await anext(boards)):
                pass
            while {tile(board, name) for name in ("Processing", "Breakers")} != {"unknown"}:
                board = await anext(boards)
            while "Without those of order-processor" not in board:
                board = await anext(boards)
            await of.stop_server()
            while tile(board, "Dead letters") != "unknown":
                board = await anext(boards)
            assert tile(board, "Stuck") == "unknown"
            assert "Unknown since" in board
        assert (await client.get(f"/orders/{made['paid']}")).status_code == 503


def tile(board: str, name: str) -> str:
    """Returns what a tile of the board says in large."""
    [big] = re.findall(rf"<h2>{name}</h2>\s*<p class=\"big[^>]*>\s*(?:<span[^>]*>)?([^<]*)", board)
    return big.strip()


async def test_without_metrics_nothing_is_made_up(of: System) -> None:
    async with browser(of, metrics="") as client:
        board = (await client.get("/")).text
        assert [tile(board, name) for name in ("Intake", "Processing", "Breakers")] == ["unknown"] * 3
        assert "no process answers under the addresses" in board


async def test_the_funnel_counts_what_the_counters_gain(of: System) -> None:
    metrics = await content.processes(of)
    of.metrics.pages["server"] = content.orders_in(50_000)
    async with browser(of, metrics=metrics) as client, client.stream("GET", "/live") as stream:
        boards = messages(stream)
        while not (shown := numbers(await anext(boards))):
            pass
        assert shown["placed"] == "0", "what was before the console began is not known"
        of.metrics.pages["server"] = content.orders_in(51_000)
        while (shown := numbers(await anext(boards)))["placed"] == "0":
            pass
        assert (shown["placed"], shown["paid"], shown["declined"]) == ("1,000", "958 95.8 %", "21")
        of.metrics.pages["server"] = content.orders_in(1_000)  # it was started again
        while (shown := numbers(await anext(boards)))["placed"] == "1,000":
            pass
        assert shown["placed"] == "2,000"


def numbers(board: str) -> dict[str, str]:
    """Returns the funnel's numbers by their labels."""
    found = re.findall(r'<span class="number">(.*?)</span>\s*([a-z ]+)<svg', board, re.DOTALL)
    return {label.strip(): re.sub(r"<[^>]+>", "", number).strip() for number, label in found}


async def test_a_stuck_order_is_told_with_its_reason(of: System, made: dict[str, str]) -> None:
    metrics = await content.processes(of, gateway="open")
    async with browser(of, metrics=metrics) as client, client.stream("GET", "/stuck/live") as stream:
        boards = messages(stream)
        while "The circuit breaker" not in (shown := await anext(boards)):
            pass
        assert re.findall(r'href="/orders/([^"]+)"', shown) == [made["given up"], made["waits"]]
        assert "payment-processor gave up on it: GATEWAY_CHARGE_UNKNOWN" in shown
        assert "The circuit breaker “gateway” is open" in shown


async def test_forms_that_are_not_of_the_session_are_refused(of: System, made: dict[str, str]) -> None:
    path = f"/dead-letters/{made['letter']}/discard"
    async with browser(of) as client:
        mine = csrf(await client.get(path))
        async with httpx.AsyncClient(base_url=client.base_url, trust_env=False, timeout=30) as other:
            theirs = csrf(await other.get(path))
        assert mine != theirs
        for token in ("", theirs, "0" * 64):
            assert (await client.post(path, data={"csrf": token, "reason": "x"})).status_code == 403
        cross = {"sec-fetch-site": "cross-site"}
        assert (await client.post(path, data={"csrf": mine, "reason": "x"}, headers=cross)).status_code == 403
        assert (await client.post(path, data={"csrf": mine, "reason": "y" * 70_000})).status_code == 403
        assert "resolved_by" not in str(await of.letters.summary())
        assert [each.count for each in await of.letters.summary()] == [1], "nothing was done"
        assert (await client.post(path, data={"csrf": mine, "reason": "sold out"})).status_code == 303
        assert await of.letters.summary() == []


async def test_pages_are_for_no_other_site(of: System) -> None:
    async with browser(of) as client:
        page = await client.get("/")
        assert page.headers["content-security-policy"].startswith("default-src 'self';")
        assert "<script>" not in page.text
        assert " style=" not in page.text
        assert page.headers["cache-control"] == "no-store"
        cookie = page.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        # A name that leads to loopback, of somebody else's: its pages would read ours.
        assert (await client.get("/", headers={"host": "evil.example"})).status_code == 403
        assert (await client.get("/", headers={"host": "localhost:1"})).status_code == 200


async def test_a_refused_discard_says_why_and_changes_nothing(of: System, made: dict[str, str]) -> None:
    of.letters.refuses_discard = "CHARGE_OPEN"
    path = f"/dead-letters/{made['letter']}/discard"
    async with browser(of) as client:
        answer = await client.post(path, data={"csrf": csrf(await client.get(path)), "reason": "x"})
        assert answer.status_code == 409
        assert "a charge of its order may have happened" in answer.text
        assert "CHARGE_OPEN" in answer.text


async def test_one_dead_letter_is_replayed_once(of: System, made: dict[str, str]) -> None:
    path = f"/dead-letters/{made['letter']}/replay"
    async with browser(of) as client:
        token = csrf(await client.get(path))
        assert (await client.post(path, data={"csrf": token, "reason": ""})).status_code == 400
        done = await client.post(path, data={"csrf": token, "reason": "gateway is back"}, follow_redirects=True)
        assert "REPLAYED" in done.text
        assert "gateway is back" in done.text
        assert "/replay" not in done.text, "it is offered no more"
        assert (await client.post(path, data={"csrf": token, "reason": "again"})).status_code == 409
        assert len(of.replayed.records) == 1


async def plan(of: System, client: httpx.AsyncClient, made: dict[str, str], count: int) -> tuple[str, str]:
    """Returns the path of a plan of so many, and the session's token."""
    for _ in range(count):
        of.give_up(made["declined"], group="order-processor", error_class="SKU_UNKNOWN")
    token = csrf(await client.get("/dead-letters"))
    made_plan = await client.post("/plans", data={"csrf": token, "error_class": "SKU_UNKNOWN"})
    assert made_plan.status_code == 303
    return made_plan.headers["location"], token


async def test_a_plan_is_applied_only_once_its_size_is_typed(of: System, made: dict[str, str]) -> None:
    async with browser(of) as client:
        path, token = await plan(of, client, made, 3)
        right = {"csrf": token, "count": "3", "rate": "1000", "reason": "SKU added"}
        for wrong in ({"count": "4"}, {"count": ""}, {"rate": "1001"}, {"rate": "0"}, {"rate": "x"}, {"reason": " "}):
            assert (await client.post(f"{path}/apply", data=right | wrong)).status_code == 422, wrong
        assert of.replayed.records == []
        assert (await client.post(f"{path}/apply", data=right)).status_code == 303
        async with client.stream("GET", f"{path}/live") as stream:
            *_, last, end = [message async for message in messages(stream)]
        assert "All 3 are done: 3 replayed, 0 left out." in last
        assert end == "end"
        assert len(of.replayed.records) == 3
        assert made["letter"] in [each.dead_letter_id for each in of.letters.entries.values() if each.state == 1]


async def test_a_plan_is_ended_while_it_runs(of: System, made: dict[str, str]) -> None:
    async with browser(of) as client:
        path, token = await plan(of, client, made, 50)
        await client.post(f"{path}/apply", data={"csrf": token, "count": "50", "rate": "2", "reason": "try"})
        async with client.stream("GET", f"{path}/live") as stream:
            shown = messages(stream)
            while "RUNNING" not in await anext(shown):
                pass
            await engines.eventually(lambda: of.replayed.records, "the first of them is replayed", seconds=30)
            assert (await client.post(f"{path}/abort", data={"csrf": token})).status_code == 303
            *_, last, _ = [message async for message in shown]
        assert "Ended by somebody" in last
        assert 0 < len(of.replayed.records) < 50


async def test_a_replay_that_breaks_off_says_so_and_can_go_on(of: System, made: dict[str, str]) -> None:
    async with browser(of) as client:
        path, token = await plan(of, client, made, 2)
        fields = {"csrf": token, "count": "2", "rate": "1000", "reason": "try"}
        of.replayed.is_away = True
        await client.post(f"{path}/apply", data=fields)
        async with client.stream("GET", f"{path}/live") as stream:
            shown = messages(stream)
            while "It broke off" not in await anext(shown):
                pass
        of.replayed.is_away = False
        assert (await client.post(f"{path}/apply", data=fields)).status_code == 303
        async with client.stream("GET", f"{path}/live") as stream:
            *_, last, _ = [message async for message in messages(stream)]
        assert "2 replayed" in last


async def test_nothing_to_replay_is_told(of: System) -> None:
    async with browser(of) as client:
        token = csrf(await client.get("/sign-in"))
        answer = await client.post("/plans", data={"csrf": token, "group": "order-processor"})
        assert answer.status_code == 409
        assert "NOTHING_TO_REPLAY" in answer.text


async def test_streams_are_bounded_and_a_reader_that_leaves_makes_room(of: System) -> None:
    async with browser(of, max_streams=2) as client:
        async with client.stream("GET", "/live") as one, client.stream("GET", "/live") as two:
            await anext(messages(one))
            await anext(messages(two))
            refused = await client.get("/live")
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "5"
        await eventually(lambda: opens(client), within=30, what="room for another")


async def opens(client: httpx.AsyncClient) -> bool:
    """Returns whether there is room for a stream."""
    async with client.stream("GET", "/live") as response:
        return response.status_code == 200


async def test_a_stopping_console_ends_its_streams(of: System) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        async with console(of) as url:
            request = client.stream("GET", f"{url}/live")
            response = await request.__aenter__()
            shown = messages(response)
            await anext(shown)
        assert [message async for message in shown if message == "end"] == [], "the page is to come back for more"
        await request.__aexit__(None, None, None)


@pytest.mark.parametrize(
    ("settings", "token", "text"),
    [
        ({"listen": "0.0.0.0:0"}, None, "tokens would travel in the clear"),
        ({"listen": "0.0.0.0:0", "insecure": True}, "mine", "would act with your token"),
        ({"tls_key_file": "key.pem"}, None, "one needs the other"),
        ({"listen": "nowhere"}, None, "is not host:port"),
    ],
)
async def test_what_would_expose_it_is_refused(
    of: System, settings: dict[str, object], token: str | None, text: str
) -> None:
    with pytest.raises(SettingsError, match=text):
        async with console(of, token=token, **settings):
            pass
