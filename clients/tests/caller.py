"""Calls either client from asyncio."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from orderflow_client import NewOrder, OrderflowError, OrdersClient, SyncOrdersClient, item

ORDER: NewOrder = {"user_id": "u-1", "items": [item("SKU-1", 2, 1999, "EUR")], "payment_method": "pm_card_visa"}


class Caller:
    """Calls either client; the blocking one from a thread, since the server shares the test's loop."""

    def __init__(self, client: OrdersClient | SyncOrdersClient) -> None:
        self.client = client

    async def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        method = getattr(self.client, name)
        if isinstance(self.client, SyncOrdersClient):
            return await asyncio.to_thread(method, *args, **kwargs)
        return await method(*args, **kwargs)

    async def each(self, name: str, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Iterates over what the method yields."""
        iterator = getattr(self.client, name)(*args, **kwargs)
        if isinstance(self.client, SyncOrdersClient):
            try:
                while (value := await asyncio.to_thread(next, iterator, None)) is not None:
                    yield value
            finally:
                await asyncio.to_thread(iterator.close)
        else:
            try:
                async for value in iterator:
                    yield value
            finally:
                await iterator.aclose()

    async def all(self, name: str, *args: Any, **kwargs: Any) -> list[Any]:
        return [value async for value in self.each(name, *args, **kwargs)]

    async def create(self, **changes: Any) -> Any:
        return await self.call("create_order", **{**ORDER, **changes})

    async def get(self, *args: Any, **kwargs: Any) -> Any:
        return await self.call("get_order", *args, **kwargs)

    async def close(self) -> None:
        await self.call("close")


def connected(flavour: type[OrdersClient | SyncOrdersClient], target: str, **options: Any) -> Caller:
    return Caller(flavour(target, **options))


async def failure(call: Any) -> OrderflowError:
    """Returns the error that a call ends in."""
    with pytest.raises(OrderflowError) as caught:
        await call
    return caught.value
