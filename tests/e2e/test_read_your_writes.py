"""What was created is readable with its token: never missing, never older."""

import asyncio
import time

import pytest

from devstack.system import System
from orderflow_client import OrdersClient, Unavailable
from tests.e2e import orders

CONCURRENT = 32


async def create_and_get(client: OrdersClient, count: int) -> None:
    async def one() -> None:
        created = await orders.place(client)
        got = await client.get_order(created.order.order_id, consistency_token=created.consistency_token, timeout=30)
        assert got.order.order_id == created.order.order_id
        assert got.order.revision >= created.order.revision
        again = await client.get_order(created.order.order_id, consistency_token=got.consistency_token, timeout=30)
        assert again.order.revision >= got.order.revision

    async def some(number: int) -> None:
        for _ in range(number):
            await one()

    await asyncio.gather(*(some(count // CONCURRENT) for _ in range(CONCURRENT)))


async def test_a_created_order_is_readable_with_its_token(healthy: System, client: OrdersClient) -> None:
    await create_and_get(client, 320)


@pytest.mark.heavy
@pytest.mark.timeout(600)
async def test_2000_created_orders_are_readable_with_their_tokens(healthy: System, client: OrdersClient) -> None:
    await create_and_get(client, 2016)


async def test_without_the_projector_a_read_with_a_token_ends_inside_its_deadline(
    healthy: System, client: OrdersClient
) -> None:
    await healthy.stop_role("projector")
    try:
        created = await orders.place(client)
        began = time.monotonic()
        with pytest.raises(Unavailable) as refused:
            await client.get_order(created.order.order_id, consistency_token=created.consistency_token, timeout=4)
        assert time.monotonic() - began < 4
        assert refused.value.reason == "NOT_THERE_YET"
        assert refused.value.retry_delay is not None
    finally:
        healthy.start_role("projector")
    await orders.settled(client, created)
