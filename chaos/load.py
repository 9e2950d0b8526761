"""The clients: place orders, ask things of them, repeat some calls, follow some orders, and write down all answers."""

import asyncio
import base64
import dataclasses
import itertools
import pathlib
import random
import time
from collections.abc import Iterator
from typing import Any, Final

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from chaos.journal import Journal
from chaos.lives import Command, Life, a_life
from orderflow.orders.v1.order_service_pb2 import CreateOrderRequest
from orderflow.orders.v1.order_service_pb2_grpc import OrderServiceStub
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
_SETTLE_SECONDS: Final = 15.0
"""How long a client waits for an order to be settled before it goes on: one of unknown payment never is."""
_ANSWER_SECONDS: Final = 20.0
"""How long a client asks for a command's outcome: a refund that the gateway does not answer for has none."""
_REPEAT_AFTER: Final = 6.0
_FINAL: Final = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED, grpc.StatusCode.INVALID_ARGUMENT)
"""What a command is refused with; anything else is worth another call."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """One order that somebody wants. `repeat`: none, at once, later, or other content under the same request_id."""

    number: int
    order: dict[str, Any]
    repeat: str
    follow: bool
    life: Life


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
    total = sum(each["quantity"] * each["unit_price"]["amount_minor"] for each in order["items"])
    life = a_life(dice, request_id=order["request_id"], total=total)
    return Wish(number, order, repeat, dice.random() < 0.1, life)


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
        if answer is not None:
            following = [self._follow(wish, client, answer)] if wish.follow else []
            await asyncio.gather(self._live(wish, answer), *following)
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

    async def _live(self, wish: Wish, answer: CreateOrderResponse) -> None:
        """Asks of an order what its life holds, each step when the one before has its answers."""
        order_id, steps = answer.order.order_id, wish.life.steps
        if wish.life.waits:
            await self._watch(wish, answer)
        for step in steps:
            await asyncio.sleep(step.pause)
            async with asyncio.TaskGroup() as tasks:
                for number, command in enumerate(step.commands, wish.number):
                    tasks.create_task(self._asked_all(number, order_id, command))

    async def _asked_all(self, number: int, order_id: str, command: Command) -> None:
        """Gives a command, and again if it is one that is repeated."""
        if command.repeat == "at once":
            await asyncio.gather(self._asked(number, order_id, command), self._asked(number + 1, order_id, command))
        else:
            await self._asked(number, order_id, command)
        if command.repeat == "later":
            await asyncio.sleep(_REPEAT_AFTER)
            await self._asked(number, order_id, command)

    async def _asked(self, number: int, order_id: str, command: Command) -> None:
        """Calls until it is done or refused, with the same request_id, as a caller should; then reads the order."""
        client = self._clients[number % self._count]
        call = getattr(OrderServiceStub(client.channel), command.method)
        request = command.of(order_id)
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            self._calls += 1
            attempt = self._calls
            text = _text(request.SerializeToString())
            self._log.write(kind="command", call=attempt, caller=_CALLER, method=command.method, request=text)
            try:
                answer = await call(request, timeout=_CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                reason, is_refused = _refusal(error)
                self._log.write(kind="refused" if is_refused else "unknown", call=attempt, reason=reason)
                # The order was acknowledged: NOT_FOUND is one that waits for the order processor.
                if error.code() in _FINAL or time.monotonic() > deadline:
                    return
                await asyncio.sleep(0.5)
            else:
                self._log.write(kind="ok", call=attempt, order=_text(answer.order.SerializeToString()))
                await self._read(client, f"of {attempt}", order_id, answer.consistency_token, answer.order.revision)
                return

    async def _watch(self, wish: Wish, answer: CreateOrderResponse) -> None:
        """Watches an order until it is settled, or for some time."""
        client, order_id, shown = self._clients[wish.number % self._count], answer.order.order_id, list[int]()
        token = answer.consistency_token
        try:
            async for response in client.watch_order(order_id, resume_token=token, timeout=_SETTLE_SECONDS):
                shown.append(response.order.revision)
        except OrderflowError:
            pass  # what it has shown counts
        self._log.write(
            kind="watched",
            order_id=order_id,
            client=str(wish.number % self._count),
            after=answer.order.revision,
            revisions=shown,
        )

    async def _follow(self, wish: Wish, client: OrdersClient, answer: CreateOrderResponse) -> None:
        token, least = answer.consistency_token, answer.order.revision
        for _ in range(6):
            reader = str(wish.number % self._count)
            token, least = await self._read(client, reader, answer.order.order_id, token, least)
            await asyncio.sleep(0.5)

    async def _read(self, client: OrdersClient, reader: str, order_id: str, token: str, least: int) -> tuple[str, int]:
        """Reads an order, no older than the token says, if it can be. Returns what to read it with the next time."""
        try:
            found = await client.get_order(order_id, consistency_token=token)
        except OrderflowError:
            return token, least
        revision = found.order.revision
        self._log.write(kind="seen", order_id=order_id, client=reader, revision=revision, least=least)
        return found.consistency_token, revision


def _refusal(error: grpc.aio.AioRpcError) -> tuple[str, bool]:
    """Returns the server's reason, and whether it says that the order did not do what was asked."""
    info = ErrorInfo()
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        detail.Unpack(info)  # does nothing for another type
    is_refused = info.metadata.get("outcome") == Outcome.NOT_ACCEPTED or error.code() in _FINAL
    return info.reason or error.code().name, is_refused


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
