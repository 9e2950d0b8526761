"""Several servers behind one target."""

import asyncio

from clients.tests.caller import connected
from clients.tests.scripted_server import ScriptedOrders, proceed, serving


async def served(orders: ScriptedOrders, calls: int) -> None:
    """Waits until the server has had so many more calls."""
    enough = asyncio.Event()

    async def tell(_context: object) -> None:
        enough.set()

    orders.script.extend([proceed] * (calls - 1) + [tell])
    async with asyncio.timeout(20):
        await enough.wait()


async def test_calls_go_to_all_servers_in_turn(flavour):
    first, second = ScriptedOrders(), ScriptedOrders()
    async with serving(first) as one, serving(second) as other:
        caller = connected(flavour, f"ipv4:{one},{other}")
        async with asyncio.timeout(10):
            while not (first.seen and second.seen):  # until both are connected
                await caller.get("order-1")
        seen = len(first.seen), len(second.seen)
        for _ in range(10):
            await caller.get("order-1")
        assert (len(first.seen), len(second.seen)) == (seen[0] + 5, seen[1] + 5)
        await caller.close()


async def test_a_server_that_goes_away_costs_no_call(flavour):
    """It says GOAWAY, or answers UNAVAILABLE in between: the other server takes over."""
    staying = ScriptedOrders()
    leaving = ScriptedOrders()
    async with serving(staying) as one:
        async with serving(leaving) as other:
            caller = connected(flavour, f"ipv4:{one},{other}")
            async with asyncio.timeout(10):
                while not (staying.seen and leaving.seen):
                    await caller.create()
            stop = asyncio.Event()

            async def place() -> None:
                while not stop.is_set():
                    await caller.create()

            placing = [asyncio.create_task(place()) for _ in range(4)]
            await served(leaving, 20)
        await served(staying, 50)
        stop.set()
        await asyncio.gather(*placing)  # raises if any call failed
        await caller.close()
