"""Many watches on one server, which dies and comes back: each ends at its order's settled state, no revision twice."""

import asyncio

import pytest

from devstack.system import System
from orderflow_client import CreateOrderResponse, OrdersClient, OrderStatus, Unavailable
from tests.e2e import observer, orders


async def test_watches_outlive_their_server(healthy: System, client: OrdersClient) -> None:
    await watches_outlive_their_server(healthy, client, count=100, within=60)


@pytest.mark.heavy
@pytest.mark.timeout(900)
async def test_2000_watches_outlive_their_server(healthy: System, client: OrdersClient) -> None:
    await watches_outlive_their_server(healthy, client, count=2000, within=600)


async def watches_outlive_their_server(system: System, client: OrdersClient, *, count: int, within: float) -> None:
    revisions: dict[str, list[int]] = {}
    last: dict[str, OrderStatus] = {}
    tokens: set[str] = set()

    async def follow(created: CreateOrderResponse) -> None:
        order_id = created.order.order_id
        async for seen in client.watch_order(order_id, resume_token=created.consistency_token):
            assert seen.resume_token not in tokens
            tokens.add(seen.resume_token)
            revisions.setdefault(order_id, []).append(seen.order.revision)
            last[order_id] = seen.order.status

    # Nobody charges meanwhile, so that all are open and watched when the server dies.
    await system.stop_role("payment-processor")
    created: list[CreateOrderResponse] = []
    watches: list[asyncio.Task[None]] = []
    server = system.processes["server"]
    idle = observer.resident_mib(server.pid), observer.cpu_seconds(server.pid)
    try:
        for batch in batches(count, 50):
            placed = await asyncio.gather(*(placed_at_last(client) for _ in batch))
            created += placed
            watches += [asyncio.create_task(follow(each)) for each in placed]

        async def all_watched() -> bool:
            return len(revisions) == count  # each has shown ORDER_PROCESSING

        await observer.eventually(all_watched, within=within / 2, what="every watch is open")
        grown, spent = observer.resident_mib(server.pid), observer.cpu_seconds(server.pid) - idle[1]
        print(f"{count} orders placed and watched: {idle[0]} to {grown} MiB, {spent:.1f} s of CPU")
        server.kill()
        system.start_role("payment-processor")
        system.start_role("server")
        async with asyncio.timeout(within):
            await asyncio.gather(*watches)
        print(f"all taken up again and ended: {observer.cpu_seconds(system.processes['server'].pid):.1f} s of CPU")
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        for role in ("payment-processor", "server"):
            if role not in system.processes or not system.processes[role].running:
                system.start_role(role)
    assert revisions == {each.order.order_id: [2, 3] for each in created}, "a revision is missing or doubled"
    assert set(last.values()) == {OrderStatus.ORDER_STATUS_PAID}


def batches(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


async def placed_at_last(client: OrdersClient) -> CreateOrderResponse:
    while True:
        try:
            return await orders.place(client)
        except Unavailable as refused:
            await asyncio.sleep(refused.retry_delay or 0.1)
