"""Stock: nothing lost, nothing sold twice (I8)."""

import collections
from collections.abc import Iterator

from chaos.oracle import rules
from chaos.oracle.facts import Facts
from chaos.oracle.violations import Violation
from orderflow.orders.v1.order_pb2 import OrderStatus


def stock(facts: Facts) -> Iterator[Violation]:
    """I8: per SKU the initial stock is what is left, held by open orders, and sold; nothing is below zero.

    Orders that were rejected, declined, cancelled or have expired hold nothing; a refunded one's goods stay sold.
    """
    held: collections.Counter[str] = collections.Counter()
    sold: collections.Counter[str] = collections.Counter()
    for life in facts.lives.values():
        last = life[-1].order
        for item in last.items:
            if last.status == OrderStatus.ORDER_STATUS_PROCESSING:
                held[item.sku] += item.quantity
            elif last.status in rules.SOLD:
                sold[item.sku] += item.quantity
    rows = {row["sku"]: row for row in facts.run.table("stock")}
    for sku, initial in facts.run.info["initial_stock"].items():
        row = rows.get(sku, {"available": 0, "held": 0, "sold": 0})
        found = (row["available"], row["held"], row["sold"])
        if min(found) < 0:
            yield Violation("I8", f"below zero: {found}", {"sku": sku})
        wanted = (initial - held[sku] - sold[sku], held[sku], sold[sku])
        if found != wanted:
            yield Violation("I8", f"left, held, sold are {found}; by the orders {wanted}", {"sku": sku})
