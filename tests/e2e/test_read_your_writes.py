"""What was created is readable with its token: never missing, never older."""

import asyncio
import time

import pytest

from devstack.system import System
from orderflow_client import DeadlineExceeded, OrderflowError, OrdersClient, Unavailable
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

        async def refusal(timeout: float) -> OrderflowError | None:
            """Returns what the server told within the deadline, None if that passed first."""
            began = time.monotonic()
            with pytest.raises((Unavailable, DeadlineExceeded)) as refused:
                await client.get_order(
                    created.order.order_id, consistency_token=created.consistency_token, timeout=timeout
                )
            if isinstance(refused.value, DeadlineExceeded) or time.monotonic() - began > timeout:
                return None
            return refused.value

        # The server keeps a tenth of a second for its answer: a hiccup may cost some of these calls theirs, not all.
        refusals = await asyncio.gather(*(refusal(3 + number / 4) for number in range(9)))
        told = [each for each in refusals if each is not None]
        assert told, "every read with a token ran into its deadline"
        assert {each.reason for each in told} == {"NOT_THERE_YET"}
        assert all(each.retry_delay is not None for each in told)
    finally:
        healthy.start_role("projector")
    await orders.settled(client, created)
