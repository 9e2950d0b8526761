"""The clients: place orders, repeat some requests, follow some orders, and write down what they were told."""

import asyncio
import base64
import dataclasses
import itertools
import pathlib
import random
import time
from collections.abc import Iterator
from typing import Any, Final

from chaos.journal import Journal
from orderflow.orders.v1.order_service_pb2 import CreateOrderRequest
from orderflow_client import CreateOrderResponse, InvalidOrder, OrderflowError, OrdersClient, Outcome, RequestIdReused

STOCK: Final = {"CHAOS-HOT": (1_000_000, 1_999), "CHAOS-A": (1_000_000, 4_950), "CHAOS-B": (1_000_000, 125)}
"""SKU -> units, and the price of one in EUR cents. CHAOS-SCARCE is added, with too few for all who want it."""
SCARCE: Final = "CHAOS-SCARCE"
SCARCE_PRICE: Final = 999
CANARIES: Final = ("canary-7f3a@customers.example", "+4915799990042", "canary-request-51c0")
"""What marks the customers' data: addresses, phone numbers and requests of all orders hold one of these."""
_CALLER: Final = "local"
_CALL_SECONDS: Final = 6.0
_PATIENCE_SECONDS: Final = 60.0
_REPEAT_AFTER: Final = 6.0


@dataclasses.dataclass(frozen=True)
class Wish:
    """One order that somebody wants. `repeat`: none, at once, later, or other content under the same request_id."""

    number: int
    order: dict[str, Any]
    repeat: str
    follow: bool


def wishes(seed: int) -> Iterator[Wish]:
    """Returns the orders of a run, without end and the same for the same seed."""
    dice = random.Random(f"{seed}/orders")  # noqa: S311 - chooses orders, guards nothing
    return (_wish(dice, seed, number) for number in itertools.count())


def _wish(dice: random.Random, seed: int, number: int) -> Wish:
    prices = {sku: price for sku, (_, price) in STOCK.items()} | {SCARCE: SCARCE_PRICE}
    kind = dice.random()
    skus = ["CHAOS-HOT"]
    if kind < 0.1:
        skus = [SCARCE]
    elif kind < 0.4:
        skus = dice.sample(sorted(STOCK), dice.randint(1, 3))
    order: dict[str, Any] = {
        "user_id": f"user-{dice.randint(1, 50)}",
        "email": CANARIES[0],
        "payment_method": "pm_card_chargeDeclined" if dice.random() < 0.1 else "pm_card_visa",
        "items": [
            {
                "sku": sku,
                "quantity": dice.randint(1, 3),
                "unit_price": {"currency_code": "EUR", "amount_minor": prices[sku]},
            }
            for sku in skus
        ],
        "external_reference": f"chaos-{number}",
        "request_id": f"{CANARIES[2]}-{seed}-{number}",
    }
    if dice.random() < 0.3:
        order["phone"] = CANARIES[1]
    repeat = dice.choices(("none", "at once", "later", "other"), (0.84, 0.06, 0.07, 0.03))[0]
    return Wish(number, order, repeat, follow=dice.random() < 0.1)


class Load:
    """Places a run's orders through several clients, and keeps their log.

    So many are planned. Bursts take from them and go on when they are used up: a fault that has to strike again, on a
    machine that is slow, would otherwise wait for work that cannot come.
    """

    def __init__(
        self, address: str, log: pathlib.Path, orders: Iterator[Wish], *, planned: int, clients: int = 3
    ) -> None:
        """Connects nothing; used as a context."""
        self._address = address
        self._log = Journal(log)
        self._orders = orders
        self._left = planned
        self._count = clients
        self._clients: list[OrdersClient] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls = 0
        self.accepted = 0

    async def __aenter__(self) -> "Load":
        self._clients = [OrdersClient(self._address, timeout=_CALL_SECONDS) for _ in range(self._count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in self._clients))
        self._log.close()

    async def flow(self, seconds: float, *, reserve: int) -> None:
        """Places orders evenly over a time, open loop, and keeps `reserve` of the planned ones for bursts."""
        started, count = time.monotonic(), max(self._left - reserve, 1)
        for number in range(count):
            await asyncio.sleep(max(started + seconds * number / count - time.monotonic(), 0))
            self.burst(1)

    def burst(self, count: int) -> None:
        """Begins to place the next orders, all at once."""
        self._left -= count
        for wish in itertools.islice(self._orders, count):
            task = asyncio.create_task(self._serve(wish))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Places what is left of the planned orders and waits until every client has its answers, or gave up."""
        self.burst(max(self._left, 0))
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    async def _serve(self, wish: Wish) -> None:
        client = self._clients[wish.number % self._count]
        if wish.repeat == "at once":
            other = self._clients[(wish.number + 1) % self._count]
            answer, _ = await asyncio.gather(self._placed(client, wish.order), self._placed(other, wish.order))
        else:
            answer = await self._placed(client, wish.order)
        if wish.repeat == "other":
            await self._placed(client, wish.order | {"external_reference": "another order"})
        if answer is not None and wish.follow:
            await self._follow(wish, client, answer)
        if wish.repeat == "later":
            await asyncio.sleep(_REPEAT_AFTER)
            await self._placed(client, wish.order)

    async def _placed(self, client: OrdersClient, order: dict[str, Any]) -> CreateOrderResponse | None:
        """Calls until it is answered, with the same request_id, as a caller should."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            self._calls += 1
            number = self._calls
            request = CreateOrderRequest(**order)
            self._log.write(kind="call", call=number, caller=_CALLER, request=_text(request.SerializeToString()))
            try:
                answer = await client.create_order(**order)
            except OrderflowError as error:
                refused = error.outcome == Outcome.NOT_ACCEPTED or isinstance(error, (RequestIdReused, InvalidOrder))
                self._log.write(
                    kind="refused" if refused else "unknown", call=number, reason=error.reason or error.code.name
                )
                if not error.safe_to_repeat or time.monotonic() > deadline:
                    return None
                await asyncio.sleep(min(error.retry_delay or 0.5, 2.0))
            else:
                self._log.write(kind="ok", call=number, order=_text(answer.order.SerializeToString()))
                self.accepted += 1
                return answer

    async def _follow(self, wish: Wish, client: OrdersClient, answer: CreateOrderResponse) -> None:
        token, least = answer.consistency_token, answer.order.revision
        for _ in range(6):
            try:
                found = await client.get_order(answer.order.order_id, consistency_token=token)
            except OrderflowError:
                await asyncio.sleep(0.5)
                continue
            order = found.order
            self._log.write(
                kind="seen",
                order_id=order.order_id,
                client=str(wish.number % self._count),
                revision=order.revision,
                least=least,
            )
            token, least = found.consistency_token, order.revision
            await asyncio.sleep(0.5)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
