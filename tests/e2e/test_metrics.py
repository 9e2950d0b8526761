"""What a scrape sees: metrics that are documented, values that add up, and no more series for more orders."""

import asyncio
import pathlib
import re
import urllib.request

from devstack.system import ROLES, System
from orderflow_client import OrdersClient
from tests.e2e import observer, orders

PAGE = (pathlib.Path(__file__).parents[2] / "docs/metrics.md").read_text()
DOCUMENTED = set(re.findall(r"^\| `([a-z_]+)` \| (?:counter|gauge|histogram) ", PAGE, re.MULTILINE))


def scrape(address: str) -> list[str]:
    """Returns the series of our own metrics, labels included."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    series = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    return [each for each in series if not each.startswith(("python_", "process_"))]


def is_documented(name: str) -> bool:
    """Whether the series is one of a documented metric, or one that the library makes beside it."""
    family = re.sub(r"_(bucket|sum|count|created)$", "", name)
    return bool({name, family, f"{family}_total"} & DOCUMENTED)


async def test_a_hundred_orders_raise_no_number_of_series_and_stand_in_no_label(
    healthy: System, client: OrdersClient
) -> None:
    first = await orders.place(client)
    await orders.settled(client, first, within=60)
    await asyncio.to_thread(lambda: [scrape(healthy.metrics_address(role)) for role in ROLES])
    created_before = observer.metric(healthy.metrics_address("server"), "orderflow_orders_total", status="CREATED")
    paid_before = observer.metric(healthy.metrics_address("payment-processor"), "orderflow_orders_total", status="PAID")
    created = await asyncio.gather(
        *(orders.place(client, user_id=f"user-{n}", email=f"customer-{n}@example.com", timeout=30) for n in range(100))
    )
    await asyncio.gather(*(orders.settled(client, each, within=60) for each in created))

    ids = {each.order.order_id for each in created}
    for role in ROLES:
        series = await asyncio.to_thread(scrape, healthy.metrics_address(role))
        assert 20 < len(series) < 1_500, role
        assert {each for each in (line.split("{")[0] for line in series) if not is_documented(each)} == set(), role
        text = "\n".join(series)
        assert not any(order_id in text for order_id in ids), role
        assert "user-" not in text, role
        assert "@" not in text, role

    async def paid() -> bool:
        address = healthy.metrics_address("payment-processor")
        return observer.metric(address, "orderflow_orders_total", status="PAID") - paid_before >= 100

    await observer.eventually(paid, within=30, what="100 more orders PAID")
    now = observer.metric(healthy.metrics_address("server"), "orderflow_orders_total", status="CREATED")
    assert now - created_before >= 100


async def test_lag_and_age_are_shown_for_each_partition_by_its_owner(healthy: System, client: OrdersClient) -> None:
    await orders.settled(client, await orders.place(client), within=60)
    address = healthy.metrics_address("order-processor")
    wanted = ("orderflow_worker_lag_records", "orderflow_worker_oldest_record_age_seconds")

    async def shown() -> bool:
        series = await asyncio.to_thread(scrape, address)
        return all(
            any(
                each.startswith(f"{name}{{") and f'partition="{number}"' in each and 'topic="orders"' in each
                for each in series
            )
            for name in wanted
            for number in range(3)
        )

    await observer.eventually(shown, within=60, what="lag and age of three partitions")
