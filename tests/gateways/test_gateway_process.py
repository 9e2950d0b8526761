"""HttpGateway against the gateway's own process: what is executed is in the journal first, whatever dies."""

import asyncio
import datetime
import json
import signal
from pathlib import Path

import pytest

from tests.gateways.process import GatewayProcess, charge
from workers.gateways.gateway import Charge, ChargeUnknown, GatewayRefused, GatewayUnavailable, KeyClosed


async def test_the_whole_seam_over_http_leaves_one_line_per_execution(gateway: GatewayProcess) -> None:
    await gateway.start()
    client = gateway.client
    paid = await charge(client)
    assert paid == Charge(paid.reference, "k-1", True, "", 3998, "EUR")
    assert await charge(client) == paid
    assert await client.find("k-1") == paid
    assert await client.find("k/2 ?") is None
    declined = await charge(client, "k-2", payment_method="pm_card_chargeDeclinedInsufficientFunds")
    assert (declined.approved, declined.decline_reason) == (False, "INSUFFICIENT_FUNDS")
    refund = await client.refund("r-1", charge_reference=paid.reference, amount_minor=998)
    assert (refund.charge_reference, refund.amount_minor, refund.currency_code) == (paid.reference, 998, "EUR")
    assert await client.find_refund("r-1", charge_reference=refund.charge_reference) == refund
    assert await client.find_refund("r-9", charge_reference=refund.charge_reference) is None
    with pytest.raises(GatewayRefused) as too_large:
        await client.refund("r-2", charge_reference=paid.reference, amount_minor=3001)
    assert too_large.value.error_class == "GATEWAY_REFUND_TOO_LARGE"
    with pytest.raises(GatewayRefused) as reused:
        await charge(client, amount_minor=1)
    assert reused.value.error_class == "GATEWAY_KEY_REUSED"
    assert await client.close("k-1") == paid
    assert await client.close("k-3") is None
    assert await client.close("k-3") is None
    with pytest.raises(KeyClosed):
        await charge(client, "k-3")
    assert [(line["kind"], line["key"]) for line in gateway.lines()] == [
        ("charge", "k-1"),
        ("charge", "k-2"),
        ("refund", "r-1"),
        ("close", "k-1"),
        ("close", "k-3"),
    ]
    first = gateway.lines()[0]
    del first["time"]
    assert first == {
        "kind": "charge",
        "key": "k-1",
        "reference": paid.reference,
        "order_id": "o-1",
        "amount_minor": 3998,
        "currency_code": "EUR",
        "payment_method": "pm_card_visa",
        "approved": True,
        "decline_reason": "",
    }


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_no_executed_key_is_forgotten_when_the_process_ends(gateway: GatewayProcess, how: signal.Signals) -> None:
    await gateway.start()
    answers = await asyncio.gather(*(charge(gateway.client, f"k-{n}", order_id=f"o-{n}") for n in range(50)))
    refund = await gateway.client.refund("r-0", charge_reference=answers[0].reference, amount_minor=3000)
    await gateway.client.close("closed")
    assert await gateway.end(how) == (0 if how == signal.SIGTERM else -signal.SIGKILL)
    before = gateway.lines()
    assert len(before) == 52

    await gateway.start()
    client = gateway.client
    assert await asyncio.gather(*(client.find(f"k-{n}") for n in range(50))) == answers
    assert await asyncio.gather(*(charge(client, f"k-{n}", order_id=f"o-{n}") for n in range(50))) == answers
    assert await client.refund("r-0", charge_reference=answers[0].reference, amount_minor=3000) == refund
    with pytest.raises(GatewayRefused, match="GATEWAY_REFUND_TOO_LARGE"):
        await client.refund("r-1", charge_reference=answers[0].reference, amount_minor=999)
    with pytest.raises(KeyClosed):
        await charge(client, "closed")
    assert gateway.lines() == before


async def test_kill_in_the_middle_every_answer_that_came_is_in_the_journal(gateway: GatewayProcess) -> None:
    await gateway.start()
    tasks = [asyncio.create_task(charge(gateway.client, f"k-{n}")) for n in range(300)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await gateway.end(signal.SIGKILL)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    answered = {result.key for result in results if isinstance(result, Charge)}
    assert answered
    assert all(isinstance(result, Charge | ChargeUnknown | GatewayUnavailable) for result in results)
    await gateway.start()  # cuts off a torn line
    written = [line["key"] for line in gateway.lines()]
    assert len(written) == len(set(written))
    assert answered <= set(written)
    for number, result in enumerate(results):
        if isinstance(result, GatewayUnavailable):
            assert f"k-{number}" not in written, "told that nothing was sent, yet it executed"


async def test_movements_outlive_the_process_and_a_line_that_is_planted_is_one(gateway: GatewayProcess) -> None:
    begin = datetime.datetime.now(datetime.UTC)
    await gateway.start()
    paid = [await charge(gateway.client, f"k-{number}", order_id=f"o-{number}") for number in range(120)]
    back = await gateway.client.refund("r-1", charge_reference=paid[7].reference, amount_minor=1)
    await gateway.end(signal.SIGKILL)
    planted = {**gateway.lines()[0], "reference": "ch_planted", "time": begin.timestamp() - 3600}
    with gateway.journal.open("a") as journal:
        journal.write(f"{json.dumps(planted)}\n")
    await gateway.start()
    end = datetime.datetime.now(datetime.UTC)
    first = await gateway.client.movements(begin, end)
    second = await gateway.client.movements(begin, end, first.next_cursor)
    assert (len(first.movements), len(second.movements), second.next_cursor) == (100, 21, "")
    moved = {each.reference: each for each in (*first.movements, *second.movements)}
    assert {(each.reference, moved[each.reference].order_id) for each in paid} == {
        (each.reference, f"o-{number}") for number, each in enumerate(paid)
    }
    assert (moved[back.reference].order_id, moved[back.reference].amount_minor) == ("o-7", 1)
    assert all(begin <= each.time < end for each in moved.values())
    [found] = (await gateway.client.movements(begin - datetime.timedelta(days=1), begin)).movements
    assert (found.reference, found.order_id, found.amount_minor) == ("ch_planted", "o-0", 3998)
    with pytest.raises(GatewayRefused):
        await gateway.client.movements(begin, end, "no cursor")


async def test_a_torn_last_line_is_cut_off(gateway: GatewayProcess) -> None:
    await gateway.start()
    paid = await charge(gateway.client)
    await gateway.end(signal.SIGKILL)
    with gateway.journal.open("a") as journal:
        journal.write('{"kind": "charge", "key": "k-2", "ref')
    await gateway.start()
    assert await gateway.client.find("k-1") == paid
    assert await gateway.client.find("k-2") is None
    await charge(gateway.client, "k-3")
    assert [line["key"] for line in gateway.lines()] == ["k-1", "k-3"]


async def test_nothing_listening_is_unavailable(gateway: GatewayProcess) -> None:
    await gateway.start()
    await gateway.end(signal.SIGTERM)
    with pytest.raises(GatewayUnavailable) as unavailable:
        await charge(gateway.client)
    assert unavailable.value.dependency == "gateway"


async def test_hundreds_of_concurrent_charges_share_their_syncs(gateway: GatewayProcess) -> None:
    await gateway.start("--latency-ms", "50")
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*(charge(gateway.client, f"k-{n}") for n in range(500)))
    assert len({answer.reference for answer in answers}) == len(gateway.lines()) == 500


async def test_benchmark_declines_is_an_option_of_the_process(gateway: GatewayProcess) -> None:
    await gateway.start("--benchmark-declines")
    answers = await asyncio.gather(*(charge(gateway.client, f"k-{n}", order_id=f"o-{n}") for n in range(200)))
    assert 0 < sum(not answer.approved for answer in answers) < 20


async def test_a_damaged_journal_stops_the_start(gateway: GatewayProcess, tmp_path: Path) -> None:
    gateway.journal.write_text('{"kind": "charge"\n')
    with pytest.raises(AssertionError, match="JSONDecodeError"):
        await gateway.start()
    (tmp_path / "stderr.txt").write_text("")
