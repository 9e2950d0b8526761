"""A flash sale: all want one SKU at once. It is sold to the last unit and not beyond, and holds nobody up."""

import asyncio
import collections
import dataclasses
import time
import uuid
from collections.abc import Iterator, Sequence

import pytest

from orderflow.operations.v1.stock_service_pb2 import GetStockRequest, SetStockRequest, StockLevel
from orderflow.operations.v1.stock_service_pb2_grpc import StockServiceStub
from orderflow.orders.v1.order_pb2 import OrderStatus
from orderflow_client import NewOrder, OrdersClient, item
from tests.builders import a_sku
from tests.e2e import observer, orders
from tests.guarantees.fronted import FrontedSystem

DECIDED = "select count(*) from outcomes where group_name = 'order-processor'"


@dataclasses.dataclass
class Sale:
    """SKUs on sale, one unit an order, and whom the orders are for."""

    skus: list[str]
    user_id: str = dataclasses.field(default_factory=lambda: f"sale-{uuid.uuid4().hex[:8]}")

    async def open(self, client: OrdersClient, *, units: int) -> None:
        """Puts so many units on sale, in equal parts."""
        stock = StockServiceStub(client.channel)
        for sku in self.skus:
            await stock.SetStock(SetStockRequest(sku=sku, available=units // len(self.skus), reason="flash sale"))

    async def levels(self, client: OrdersClient) -> list[StockLevel]:
        stock = StockServiceStub(client.channel)
        return [(await stock.GetStock(GetStockRequest(sku=sku))).level for sku in self.skus]

    def buyers(self, count: int) -> Iterator[NewOrder]:
        """Yields so many orders, the SKUs in turns. Nobody is told by e-mail: how fast that goes is another matter."""
        for number in range(count):
            yield {
                "user_id": self.user_id,
                "email": "customer@example.com",
                "payment_method": "pm_card_visa",
                "items": [item(self.skus[number % len(self.skus)], 1, 999, "EUR")],
                "muted_channels": ["NOTIFICATION_CHANNEL_EMAIL"],
            }

    async def until_settled(self, system: FrontedSystem, count: int, *, within: float) -> None:
        """Waits until so many of its orders are settled and readable."""
        query = f"select count(*) from order_views where user_id = '{self.user_id}' and status not in (1, 2)"

        async def all_settled() -> bool:
            return await system.count(query) == count

        await observer.eventually(all_settled, within=within, what=f"{count} orders are settled")

    async def results(self, client: OrdersClient) -> collections.Counter[tuple[str, str]]:
        """Returns how many orders ended in which state, and why."""
        return collections.Counter(
            [
                (OrderStatus.Name(order.status).removeprefix("ORDER_STATUS_"), order.failure_reason)
                async for order in client.list_orders(user_id=self.user_id, page_size=1_000)
            ]
        )


async def test_50_units_among_400_buyers(healthy: FrontedSystem, client: OrdersClient) -> None:
    sale = Sale([a_sku()])
    await sale.open(client, units=50)
    placed = await asyncio.gather(*(orders.place(client, **buyer) for buyer in sale.buyers(400)))
    assert len({each.order.order_id for each in placed}) == 400, "all were accepted: who is served is decided later"
    await sale.until_settled(healthy, 400, within=60)
    assert await sale.results(client) == {("PAID", ""): 50, ("REJECTED", "OUT_OF_STOCK"): 350}
    assert await sale.levels(client) == [StockLevel(sku=sale.skus[0], available=0, held=0, sold=50)]


@pytest.mark.heavy
@pytest.mark.timeout(1800)
async def test_1_000_units_among_20_000_buyers(healthy: FrontedSystem, client: OrdersClient) -> None:
    one = await rate_of_sale(healthy, client, [a_sku()], units=1_000, count=20_000)
    many = await rate_of_sale(healthy, client, [a_sku() for _ in range(100)], units=1_000, count=20_000)
    print(f"orders decided a second: {one:.0f} for one SKU, {many:.0f} for 100 SKUs")
    assert one > many / 2, "one SKU's row is updated once for many orders"


async def rate_of_sale(
    system: FrontedSystem, client: OrdersClient, skus: Sequence[str], *, units: int, count: int
) -> float:
    """Returns how many orders a second are decided while all of them wait, the time of the charges included."""
    sale = Sale(list(skus))
    await sale.open(client, units=units)
    await system.stop_role("order-processor")
    try:
        failed = [result.error async for result in client.create_orders(sale.buyers(count)) if result.error]
        assert not failed, failed[:3]
        before = await system.count(DECIDED)
    finally:
        system.start_role("order-processor")

    async def has_begun() -> int:
        return await system.count(DECIDED) - before

    async def is_through() -> bool:
        return await system.count(DECIDED) - before >= count

    already = await observer.eventually(has_begun, within=60, what="the first order is decided")
    began = time.monotonic()
    await observer.eventually(is_through, within=600, what="all orders are decided")
    seconds = time.monotonic() - began
    await sale.until_settled(system, count, within=300)
    assert await sale.results(client) == {("PAID", ""): units, ("REJECTED", "OUT_OF_STOCK"): count - units}
    each = units // len(sale.skus)
    assert await sale.levels(client) == [StockLevel(sku=sku, available=0, held=0, sold=each) for sku in sale.skus]
    await system.all_caught_up(within=300)
    return (count - already) / seconds
