"""What becomes of orders after they were placed: who asks what of them, and when. Made from dice, for the clients."""

import copy
import dataclasses
import random
from typing import Final

from orderflow.orders.v1.order_service_pb2 import (
    CancelOrderRequest,
    CompleteOrderRequest,
    RefundOrderRequest,
    ShipOrderRequest,
)

Request = CancelOrderRequest | ShipOrderRequest | CompleteOrderRequest | RefundOrderRequest


@dataclasses.dataclass(frozen=True)
class Command:
    """A call of OrderService. `repeat` with the same request_id: none, at once by another client, or later."""

    method: str
    request: Request
    repeat: str

    def of(self, order_id: str) -> Request:
        """Returns the request for an order."""
        request = copy.deepcopy(self.request)
        request.order_id = order_id
        return request


@dataclasses.dataclass(frozen=True)
class Step:
    """Commands that are given at once, each by another client, `pause` seconds after the last step."""

    pause: float
    commands: tuple[Command, ...]


@dataclasses.dataclass(frozen=True)
class Life:
    """What is asked of an order. `waits`: until it is settled, so that it is most often paid by then."""

    waits: bool
    steps: tuple[Step, ...]


_SOON_SECONDS: Final = 0.5
_LIVES: Final[tuple[tuple[float, bool, tuple[tuple[str, ...], ...]], ...]] = (
    (0.55, False, ()),
    # Before and during the payment.
    (0.10, False, (("cancel",),)),
    (0.03, False, (("cancel", "cancel"),)),
    (0.01, False, (("ship", "refund"),)),
    # After it.
    (0.05, True, (("cancel",),)),
    (0.05, True, (("ship",), ("complete",))),
    (0.04, True, (("refund part",), ("refund",))),
    (0.03, True, (("ship",), ("complete",), ("refund part",), ("cancel", "refund"))),
    # Two at once, of which one wins.
    (0.03, True, (("ship", "cancel"),)),
    (0.03, True, (("refund part", "refund part"), ("refund",))),
    (0.03, True, (("refund", "refund"),)),
    (0.03, True, (("refund part", "cancel"),)),
    (0.02, True, (("refund", "cancel"),)),
)
"""Share of the orders, whether it waits, and what is asked step by step."""


def a_life(dice: random.Random, *, request_id: str, total: int) -> Life:
    """Returns what becomes of an order. The commands' request_ids are made of its own; `total` is in minor units."""
    _, waits, steps = dice.choices(_LIVES, [share for share, _, _ in _LIVES])[0]
    return Life(
        waits,
        tuple(
            Step(
                round(dice.uniform(0.0, _SOON_SECONDS), 3),
                tuple(
                    _command(dice, kind, f"{request_id}-{number}-{place}", total) for place, kind in enumerate(kinds)
                ),
            )
            for number, kinds in enumerate(steps)
        ),
    )


def _command(dice: random.Random, kind: str, request_id: str, total: int) -> Command:
    repeat = dice.choices(("none", "at once", "later"), (0.8, 0.1, 0.1))[0]
    match kind:
        case "cancel":
            return Command("CancelOrder", CancelOrderRequest(reason="CHAOS", request_id=request_id), repeat)
        case "ship":
            return Command("ShipOrder", ShipOrderRequest(carrier="Parcel Service", request_id=request_id), repeat)
        case "complete":
            return Command("CompleteOrder", CompleteOrderRequest(request_id=request_id), repeat)
    refund = RefundOrderRequest(reason="CHAOS", request_id=request_id)
    if kind == "refund part":  # two of them are more than there is
        refund.amount.currency_code, refund.amount.amount_minor = "EUR", total * 2 // 3
    return Command("RefundOrder", refund, repeat)
