"""The gateway's faults, as a caller meets them: which execute and which do not, and that a run replays."""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, TypeVar

import httpx
import pytest

from devstack.gateway_door import Outages
from devstack.gateway_faults import Call, Faults
from tests.engines import eventually
from tests.gateways.process import GatewayProcess, charge
from workers.gateways.gateway import ChargeUnknown, GatewayUnavailable
from workers.gateways.remote import HttpGateway

T = TypeVar("T")


async def until_answered(call: Callable[[], Awaitable[T]]) -> T:
    """Asks again and again until there is an answer."""
    async with asyncio.timeout(15):
        while True:
            try:
                return await call()
            except (ChargeUnknown, GatewayUnavailable):
                await asyncio.sleep(0.02)


async def test_a_dropped_reply_has_executed_once_and_is_found(gateway: GatewayProcess) -> None:
    await gateway.start()
    await gateway.faults(drop_reply_rate=1.0)
    for _ in range(2):
        with pytest.raises(ChargeUnknown):
            await charge(gateway.client)
    found = await gateway.client.find("k-1")
    assert found is not None
    assert found.approved
    assert [(line["kind"], line["reference"]) for line in gateway.lines()] == [("charge", found.reference)]


async def test_a_5xx_is_stored_under_the_key_and_nothing_executed(gateway: GatewayProcess) -> None:
    await gateway.start()
    paid = await charge(gateway.client, "k-0")
    await gateway.faults(error_rate=1.0)
    assert await charge(gateway.client, "k-0") == paid
    with pytest.raises(ChargeUnknown):
        await charge(gateway.client)
    await gateway.faults()
    with pytest.raises(ChargeUnknown):
        await charge(gateway.client)
    assert await gateway.client.find("k-1") is None
    assert [line["key"] for line in gateway.lines()] == ["k-0"]


async def test_faults_strike_the_same_keys_for_the_same_seed(gateway: GatewayProcess) -> None:
    struck: list[set[str]] = []
    for run, seed in enumerate(("7", "7", "8")):
        gateway.journal = gateway.journal.with_name(f"{run}.jsonl")
        await gateway.start("--seed", seed)
        await gateway.faults(error_rate=0.5)
        results = await asyncio.gather(*(charge(gateway.client, f"k-{n}") for n in range(40)), return_exceptions=True)
        struck.append({f"k-{n}" for n, result in enumerate(results) if isinstance(result, ChargeUnknown)})
        await gateway.end(signal.SIGTERM)
    assert 5 < len(struck[0]) < 35
    assert struck[0] == struck[1] != struck[2]


async def test_refuse_is_an_outage_until_it_is_lifted(gateway: GatewayProcess) -> None:
    await gateway.start()
    paid = await charge(gateway.client)
    await gateway.faults(refuse=True)
    fresh = gateway.connect()
    with pytest.raises(GatewayUnavailable):
        await charge(fresh, "k-2")
    with pytest.raises(GatewayUnavailable):
        await fresh.find("k-1")
    with pytest.raises(GatewayUnavailable):
        await fresh.close("k-1")
    await gateway.faults()
    assert await fresh.find("k-1") == paid
    assert await charge(fresh, "k-2") is not None
    assert [line["key"] for line in gateway.lines()] == ["k-1", "k-2"]


async def test_an_outage_resets_what_was_sent(gateway: GatewayProcess) -> None:
    await gateway.start()
    await gateway.faults(latency_seconds=30.0)
    sent = asyncio.create_task(charge(gateway.client))
    # A look-up on a second connection that times out proves that the gateway reads; the charge was sent before it.
    with pytest.raises(GatewayUnavailable, match="got no answer"):
        await gateway.connect_impatient().find("k-1")
    await gateway.faults(refuse=True)
    with pytest.raises(ChargeUnknown):
        await sent


async def test_a_charge_that_times_out_is_unknown_and_close_settles_it(gateway: GatewayProcess) -> None:
    await gateway.start()
    await gateway.faults(latency_seconds=8.0)
    other = asyncio.create_task(charge(gateway.connect(total_timeout=30.0), "k-2"))
    with pytest.raises(ChargeUnknown):
        await charge(gateway.connect_impatient())
    await gateway.faults()
    assert await gateway.client.close("k-1") is None, "the charge still waits inside the gateway"
    assert (await other).approved
    await gateway.end(signal.SIGTERM)  # lets the first finish, whose time is over with the other's
    assert [(line["kind"], line["key"]) for line in gateway.lines()] == [("close", "k-1"), ("charge", "k-2")]


@pytest.mark.parametrize(
    "fault", ["hang_rate", "reset_before_rate", "transient_error_rate", "error_rate", "hang"], ids=str
)
async def test_what_strikes_before_executes_nothing(gateway: GatewayProcess, fault: str) -> None:
    await gateway.start()
    await gateway.faults(**{fault: True if fault == "hang" else 1.0})
    for _ in range(2):
        with pytest.raises(ChargeUnknown):
            await charge(gateway.connect_impatient())
    await gateway.faults()
    assert await gateway.client.find("k-1") is None
    assert gateway.lines() == []
    if fault != "error_rate":
        assert (await charge(gateway.client)).approved, "nothing is remembered of it"


@pytest.mark.parametrize("fault", ["time_out_rate", "reset_after_rate", "drop_reply_rate"])
async def test_what_strikes_after_has_executed_once(gateway: GatewayProcess, fault: str) -> None:
    await gateway.start()
    paid = await charge(gateway.client, "k-0")
    await gateway.faults(**{fault: 1.0})
    impatient = gateway.connect_impatient()
    for _ in range(2):
        with pytest.raises(ChargeUnknown):
            await charge(impatient)
        with pytest.raises(ChargeUnknown):
            await impatient.refund("r-0", charge_reference=paid.reference, amount_minor=1)
    found = await gateway.client.find("k-1")
    assert found is not None
    assert [(line["kind"], line["key"]) for line in gateway.lines()] == [
        ("charge", "k-0"),
        ("charge", "k-1"),
        ("refund", "r-0"),
    ]
    await gateway.faults()
    assert await charge(gateway.client) == found


async def test_a_reset_and_a_close_differ_for_the_caller(gateway: GatewayProcess) -> None:
    await gateway.start()
    met = {}
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        body = {"order_id": "o", "amount_minor": 1, "currency_code": "EUR", "payment_method": "pm"}
        for fault in ("reset_before_rate", "reset_after_rate", "drop_reply_rate"):
            await gateway.faults(**{fault: 1.0})
            with pytest.raises(httpx.TransportError) as error:
                await client.post("/charges", json=body, headers={"Idempotency-Key": fault})
            met[fault] = type(error.value)
    assert met == {
        "reset_before_rate": httpx.ReadError,
        "reset_after_rate": httpx.ReadError,
        "drop_reply_rate": httpx.RemoteProtocolError,
    }


async def test_declines_at_a_rate_are_business_results(gateway: GatewayProcess) -> None:
    await gateway.start()
    paid = await charge(gateway.client, "k-0")
    await gateway.faults(decline_rate=1.0)
    declined = await charge(gateway.client)
    assert (declined.approved, declined.decline_reason) == (False, "CARD_DECLINED")
    assert await charge(gateway.client, "k-0") == paid, "what has executed stands"
    assert (await gateway.client.refund("r", charge_reference=paid.reference, amount_minor=1)).amount_minor == 1
    await gateway.faults()
    assert await charge(gateway.client) == declined
    assert [line.get("approved") for line in gateway.lines()] == [True, False, None]


async def test_a_share_of_the_calls_is_slow(gateway: GatewayProcess) -> None:
    await gateway.start()
    await gateway.faults(slow_rate=0.5, slow_seconds=30.0)
    tasks = [asyncio.create_task(charge(gateway.client, f"k-{n}")) for n in range(40)]
    struck = {f"k-{n}" for n in range(40) if Call(0, f"k-{n}", 1).strikes("slow", 0.5)}
    while len(gateway.lines()) < 40 - len(struck):
        await asyncio.wait(tasks, timeout=0.01)
    assert {line["key"] for line in gateway.lines()} == {f"k-{n}" for n in range(40)} - struck
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_a_run_with_all_faults_and_repeats_replays(gateway: GatewayProcess) -> None:
    async def story(key: str, client: HttpGateway) -> list[str]:
        """Returns what each attempt met, until one is answered."""
        met: list[str] = []
        while len(met) < 12:
            try:
                met.append(str((await charge(client, key)).approved))
                break
            except ChargeUnknown as unknown:
                met.append(unknown.message)
        return met

    runs: list[dict[str, list[str]]] = []
    executed: list[set[tuple[str, bool]]] = []
    names = ["reset_before", "transient_error", "decline", "reset_after", "drop_reply"]
    faults = {f"{name}_rate": 0.2 for name in names}
    for run, seed in enumerate(("7", "7", "8")):
        gateway.journal = gateway.journal.with_name(f"{run}.jsonl")
        await gateway.start("--seed", seed)
        await gateway.faults(**faults)
        keys = [f"k-{n}" for n in (range(30) if run else reversed(range(30)))]
        runs.append(dict(zip(keys, await asyncio.gather(*(story(key, gateway.client) for key in keys)), strict=True)))
        executed.append({(line["key"], line["approved"]) for line in gateway.lines()})
        assert len(executed[-1]) == len(gateway.lines()) == 30
        await gateway.end(signal.SIGTERM)
    assert runs[0] == runs[1] != runs[2]
    assert executed[0] == executed[1] != executed[2]
    assert max(map(len, runs[0].values())) > 2, "some were struck again and again"


def test_a_rate_is_a_share_and_a_higher_one_strikes_the_same_and_more() -> None:
    calls = [Call(1, f"k-{n}", attempt) for n in range(500) for attempt in (1, 2)]
    few = {call for call in calls if call.strikes("drop", 0.1)}
    many = {call for call in calls if call.strikes("drop", 0.4)}
    assert 60 < len(few) < 140
    assert 340 < len(many) < 460
    assert few < many
    assert few != {call for call in calls if call.strikes("error", 0.1)}
    assert not any(call.strikes("drop", 0.0) for call in calls)
    assert all(call.strikes("drop", 1.0) for call in calls)


async def test_a_stored_5xx_lasts_as_long_as_keys_do(gateway: GatewayProcess) -> None:
    await gateway.start("--key-ttl-seconds", "0.5")
    await gateway.faults(error_rate=1.0)
    with pytest.raises(ChargeUnknown):
        await charge(gateway.client)
    await gateway.faults()
    answer = await until_answered(lambda: charge(gateway.client))
    assert answer.approved


async def test_a_hanging_gateway_answers_no_call_at_all(gateway: GatewayProcess) -> None:
    await gateway.start()
    paid = await charge(gateway.client)
    await gateway.faults(hang=True)
    impatient = gateway.connect_impatient()
    for call in (impatient.find("k-1"), impatient.close("k-1")):
        with pytest.raises(GatewayUnavailable, match="no answer"):
            await call
    with pytest.raises(ChargeUnknown):
        await charge(impatient)
    await gateway.faults()
    assert await gateway.client.find("k-1") == paid
    assert [line["kind"] for line in gateway.lines()] == ["charge"], "the key is not closed"


@pytest.mark.parametrize("kind", ["refuse", "hang"])
async def test_an_outage_ends_by_itself(gateway: GatewayProcess, kind: str) -> None:
    await gateway.start()
    paid = await charge(gateway.client)
    await gateway.faults(outages=[{"kind": kind, "duration_seconds": 4.0}])
    client = gateway.connect_impatient()
    with pytest.raises(GatewayUnavailable, match="not connected" if kind == "refuse" else "no answer"):
        await client.find("k-1")
    assert await until_answered(lambda: client.find("k-1")) == paid


class DoorBell:
    """Notes what happens to a door."""

    def __init__(self) -> None:
        self.moves: list[str] = []

    async def open(self) -> None:
        self.moves.append("open")

    async def shut(self) -> None:
        self.moves.append("shut")


async def test_a_window_begins_and_ends_by_itself() -> None:
    door = DoorBell()
    outages = Outages(door)  # type: ignore[arg-type]
    following = asyncio.create_task(outages.follow())
    window = {"kind": "refuse", "start_seconds": 0.2, "duration_seconds": 1.0}
    await outages.put(Faults.parse({"outages": [window]}))
    await eventually(lambda: "shut" in door.moves, "the window has begun")
    assert door.moves[: door.moves.index("shut")] == ["open"] * door.moves.index("shut")
    await eventually(lambda: door.moves[-1] == "open", "the window is over")
    await outages.put(Faults(refuse=True))
    assert door.moves[-1] == "shut", "at once"
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following


def test_windows_are_counted_from_the_put() -> None:
    faults = Faults.parse(
        {
            "outages": [
                {"kind": "refuse", "start_seconds": 5, "duration_seconds": 10},
                {"kind": "hang", "start_seconds": 12, "duration_seconds": 8},
            ]
        }
    )
    seen = {at: (faults.outage("refuse", at), faults.outage("hang", at)) for at in (0, 4.9, 5, 12, 14.9, 15, 19.9, 20)}
    assert seen == {
        0: (False, False),
        4.9: (False, False),
        5: (True, False),
        12: (True, True),
        14.9: (True, True),
        15: (False, True),
        19.9: (False, True),
        20: (False, False),
    }
    assert [faults.next_change(at) for at in (0, 5, 12, 15, 20)] == [5, 7, 3, 5, None]
    assert Faults(refuse=True).outage("refuse", 1e9)


async def test_a_new_set_of_faults_takes_the_windows_away(gateway: GatewayProcess) -> None:
    await gateway.start()
    await gateway.faults(outages=[{"kind": "refuse", "duration_seconds": 60}])
    with pytest.raises(GatewayUnavailable):
        await gateway.client.find("k-1")
    await gateway.faults(latency_seconds=0.01)
    assert await gateway.client.find("k-1") is None


async def test_all_faults_are_shown(gateway: GatewayProcess) -> None:
    await gateway.start()
    off = await gateway.shown_faults()
    assert off == json.loads(json.dumps(asdict(Faults())))
    window = {"kind": "hang", "start_seconds": 50, "duration_seconds": 2}
    await gateway.faults(time_out_rate=0.5, outages=[window])
    assert await gateway.shown_faults() == {**off, "time_out_rate": 0.5, "outages": [window]}
    await gateway.faults(refuse=True)
    assert await gateway.shown_faults() == {**off, "refuse": True}


@pytest.mark.parametrize(
    "faults",
    [
        {"error_rate": 2},
        {"error_rate": True},
        {"refuse": 1},
        {"latency_seconds": "1"},
        {"latency_seconds": -1},
        {"typo": 1},
        {"outages": {}},
        {"outages": [{"kind": "refuse"}]},
        {"outages": [{"kind": "typo", "duration_seconds": 1}]},
        {"outages": [{"kind": "hang", "duration_seconds": 1, "typo": 1}]},
        {"outages": [{"kind": "hang", "duration_seconds": 1, "start_seconds": None}]},
    ],
    ids=str,
)
def test_wrong_faults_are_refused(faults: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|is not a|out of range|an outage|the kind"):
        Faults.parse(faults)


async def test_what_is_refused_changes_nothing(gateway: GatewayProcess) -> None:
    await gateway.start()
    await gateway.faults(slow_rate=0.5)
    before = await gateway.shown_faults()
    for body in ({"typo": 1}, {"error_rate": float("nan")}, {"outages": 1}):
        assert await gateway.put_faults(json.dumps(body)) == 400
    assert await gateway.put_faults("not JSON") == 400
    assert await gateway.shown_faults() == before
