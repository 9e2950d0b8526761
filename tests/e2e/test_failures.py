"""Parts of the running system die, or are fed garbage; nothing acknowledged is lost, nothing is done twice."""

import asyncio
import collections
import json
import os
import time

import pytest

from devstack import postgres_home
from devstack.system import ROLES, System, is_serving
from orderflow_client import OrderflowError, OrdersClient, OrderStatus, Unavailable
from tests.e2e import observer, orders, programs
from tests.gateways.process import put_faults


async def test_kill_of_the_payment_processor_amid_200_orders_charges_each_once(
    healthy: System, client: OrdersClient
) -> None:
    before = len(observer.journal(healthy.gateway_journal))
    # So that about half of the charges are under way when the other half is done.
    await faults(healthy, slow_rate=0.5, slow_seconds=3)
    try:
        created = await asyncio.gather(*(orders.place(client, request_id=f"kill-{number}") for number in range(200)))

        async def under_way() -> bool:
            return len(observer.journal(healthy.gateway_journal)) - before >= 60

        await observer.eventually(under_way, within=20, what="60 charges")
        healthy.processes["payment-processor"].kill()
        charged = len(observer.journal(healthy.gateway_journal)) - before
    finally:
        await faults(healthy)
    assert charged < 200, "the kill came too late to prove anything"
    healthy.start_role("payment-processor")

    settled = await asyncio.gather(*(orders.settled(client, each, within=60) for each in created))

    assert {order.status for order in settled} == {OrderStatus.ORDER_STATUS_PAID}
    ids = {order.order_id for order in settled}
    assert len(ids) == 200
    charges = collections.Counter(
        line["order_id"] for line in observer.journal(healthy.gateway_journal) if line.get("order_id") in ids
    )
    assert charges == dict.fromkeys(ids, 1)

    events = await observer.read_events(f"127.0.0.1:{healthy.ports.kafka}", "orders", "payments")
    mine = [event for event in events if event.order.order_id in ids and event.revision]
    by_order = collections.defaultdict(list)
    for event in mine:
        by_order[event.order.order_id].append(event)
    for order_id, life in by_order.items():
        assert len({event.event_id for event in life}) == len(life), order_id
        assert sorted(event.revision for event in life) == [1, 2, 3], order_id
        assert len({event.type for event in life}) == 3, order_id


async def faults(system: System, **chosen: float) -> None:
    """Has the gateway's calls go wrong like this; without any, like none."""
    assert await put_faults(f"http://127.0.0.1:{system.ports.gateway_admin}", json.dumps(chosen)) == 200


async def test_random_bytes_become_dead_letters_once_per_group_and_harm_no_neighbour(
    healthy: System, client: OrdersClient
) -> None:
    bootstrap = f"127.0.0.1:{healthy.ports.kafka}"
    first = await orders.place(client)
    garbage = [os.urandom(1 + 37 * number) for number in range(10)]
    keys: list[bytes | None] = [None, b"not-a-uuid", first.order.order_id.encode()]
    places = await observer.write(bootstrap, "orders", [(keys[n % 3], value) for n, value in enumerate(garbage)])
    second = await orders.place(client)

    assert (await orders.settled(client, first)).status == OrderStatus.ORDER_STATUS_PAID
    assert (await orders.settled(client, second)).status == OrderStatus.ORDER_STATUS_PAID

    groups = {"order-processor", "payment-processor", "notification-email", "notification-sms"}
    expected = {
        (group, partition, offset, keys[n % 3], garbage[n])
        for group in groups
        for n, (partition, offset) in enumerate(places)
    }

    async def letters() -> list[tuple[str, int, int, bytes | None, bytes]]:
        found = []
        for record in await observer.read_topic(bootstrap, "dlq", partitions=1):
            headers = dict(record.headers)
            if record.value in garbage:
                assert headers["dlq_origin_topic"] == b"orders"
                assert headers["dlq_error_class"] in (b"UNDECODABLE", b"INVALID_EVENT")
                at = int(headers["dlq_origin_partition"]), int(headers["dlq_origin_offset"])
                found.append((headers["dlq_group"].decode(), *at, record.key, record.value))
        return found if len(found) >= len(expected) else []

    found = await observer.eventually(letters, within=20, what="40 dead letters")
    assert len(found) == len(expected)
    assert set(found) == expected

    async def recorded() -> int:
        where = " or ".join(f"(partition = {partition} and record_offset = {offset})" for partition, offset in places)
        return await healthy.count(f"select count(*) from projection_failures where topic = 'orders' and ({where})")

    async def all_recorded() -> bool:
        return await recorded() >= len(garbage)

    await observer.eventually(all_recorded, within=10, what="the projector's own dead letters")
    assert await recorded() == len(garbage)


async def note_lag(lags: list[float]) -> None:
    """Notes, until cancelled, how late this process comes to do what is due."""
    while True:
        due = time.monotonic() + 0.05
        await asyncio.sleep(0.05)
        lags.append(time.monotonic() - due)


async def test_kafka_away_is_told_and_healed(healthy: System, client: OrdersClient) -> None:
    assert healthy.kafka is not None
    outcomes: list[str] = []
    took: list[float] = []
    lags = [0.0]
    accepted = []
    stop = asyncio.Event()

    async def caller() -> None:
        while not stop.is_set():
            started = time.monotonic()
            try:
                accepted.append(await orders.place(client, timeout=3))
                outcomes.append("OK")
            except OrderflowError as error:
                outcomes.append(f"{type(error).__name__} {error.outcome}")
            took.append(time.monotonic() - started)

    lag = asyncio.create_task(note_lag(lags))
    callers = [asyncio.create_task(caller()) for _ in range(8)]
    try:

        async def flowing() -> bool:
            return outcomes.count("OK") > 20

        await observer.eventually(flowing, within=20, what="20 orders")
        stopped = time.monotonic()
        healthy.kafka.kill()

        async def told() -> bool:
            return await programs.probe(healthy.server_address) == programs.UNHEALTHY

        await observer.eventually(told, within=15, what="a failing health probe")
        assert time.monotonic() - stopped < 15
        stop.set()
        await asyncio.gather(*callers)
        refusals = {"Unavailable NOT_ACCEPTED", "Unavailable UNKNOWN", "DeadlineExceeded UNKNOWN"}
        assert set(outcomes) - {"OK"} <= refusals
        assert max(took) < 3.5 + max(lags), "an answer past its deadline of 3 s"

        async with OrdersClient(healthy.server_address) as fresh:
            started = time.monotonic()
            with pytest.raises(Unavailable):
                await orders.place(fresh, timeout=5)
            assert time.monotonic() - started < 5
    finally:
        stop.set()
        lag.cancel()
        await asyncio.gather(lag, *callers, return_exceptions=True)
        healthy.kafka.start()
        await healthy.kafka.wait_ready()
    await healthy.wait_healthy(ROLES, deadline_seconds=60)

    for created in accepted:
        assert (await orders.settled(client, created, within=60)).status == OrderStatus.ORDER_STATUS_PAID


async def test_orders_are_accepted_while_postgres_is_away(healthy: System, client: OrdersClient) -> None:
    healthy.postgres.kill()
    try:

        async def gone() -> bool:
            return not postgres_home.processes_in(healthy.postgres.data_directory)

        await observer.eventually(gone, within=20, what="no process of PostgreSQL that still answers")
        created = [await orders.place(client, timeout=5) for _ in range(3)]
        await observer.eventually(lambda: is_serving(healthy.server_address), within=10, what="a server that serves")
        with pytest.raises(Unavailable) as refused:
            await client.get_order(created[0].order.order_id, timeout=10)
        assert refused.value.reason == "STORE_UNAVAILABLE"
    finally:
        healthy.postgres.start()
        await healthy.postgres.wait_ready()
    await healthy.wait_healthy(ROLES)
    for each in created:
        assert (await orders.settled(client, each, within=30)).status == OrderStatus.ORDER_STATUS_PAID
    letters = await observer.read_topic(f"127.0.0.1:{healthy.ports.kafka}", "dlq", partitions=1)
    ids = {each.order.order_id.encode() for each in created}
    assert not [letter for letter in letters if letter.key in ids], "an outage filled the dead letters"


async def test_gateway_away_pauses_and_loses_nothing(healthy: System, client: OrdersClient) -> None:
    await healthy.stop_role("gateway")
    try:
        created = await asyncio.gather(*(orders.place(client) for _ in range(20)))
        metrics = healthy.metrics_address("payment-processor")

        async def paused() -> bool:
            return (
                observer.metric(metrics, "orderflow_worker_paused_partitions", reason="dependency_down") > 0
                and observer.metric(metrics, "orderflow_breaker_state", state="closed") == 0
            )

        await observer.eventually(paused, within=20, what="paused partitions and a breaker that is not closed")
    finally:
        healthy.start_stand_in("gateway")
    settled = await asyncio.gather(*(orders.settled(client, each, within=40) for each in created))
    assert {order.status for order in settled} == {OrderStatus.ORDER_STATUS_PAID}
    ids = {order.order_id for order in settled}
    charges = collections.Counter(
        line["order_id"] for line in observer.journal(healthy.gateway_journal) if line.get("order_id") in ids
    )
    assert charges == dict.fromkeys(ids, 1)
    letters = await observer.read_topic(f"127.0.0.1:{healthy.ports.kafka}", "dlq", partitions=1)
    assert not [letter for letter in letters if letter.key and letter.key.decode() in ids]
