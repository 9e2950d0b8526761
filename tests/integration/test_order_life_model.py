"""Every command at every moment of an order's life, with every fault at every step: it ends, and the equations hold.

The decisions, the repositories and the gateway's rules are the real ones; time and topics are a list (tests/lives.py).
"""

import datetime
import itertools
import random
from collections.abc import Iterator
from typing import Any, Final

import pytest

from orderflow.orders.v1.order_pb2 import Money
from storage.database import Database
from tests.lives import ORDER_PROCESSOR, PAYMENT_PROCESSOR, CallFault, Life

DECLINED: Final = "pm_card_chargeDeclined"
CALL_FAULTS: Final[tuple[CallFault, ...]] = ("away", "lost", "late", "dies before", "dies after")
COMMANDS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "nothing": ("", {}),
    "cancel": ("cancel", {}),
    "ship": ("ship", {}),
    "complete": ("complete", {}),
    "expire": ("expire", {"caller": ""}),
    "refund": ("refund", {}),
    "refund a part": ("refund", {"amount": Money(currency_code="EUR", amount_minor=400)}),
    "report": ("report", {}),
}
MOMENTS: Final = ("first", "before the charge", "after the charge", "paid", "shipped", "completed")
"""First: before the payment processor sees the order. Before and after the charge: while it is under way."""


class Script:
    """What happens to an order: commands at moments, and one fault."""

    def __init__(
        self,
        *commands: tuple[str, str],
        calls: dict[int, CallFault] | None = None,
        dies_at: int | None = None,
        copied_at: int | None = None,
        payment_method: str = "pm_card_visa",
        has_operator: bool = True,
    ) -> None:
        self.commands = commands
        self.calls = calls or {}
        self.dies_at = dies_at
        self.copied_at = copied_at
        self.payment_method = payment_method
        self.has_operator = has_operator

    def __repr__(self) -> str:
        faults = {"calls": self.calls, "dies_at": self.dies_at, "copied_at": self.copied_at}
        return f"{self.commands} {faults} {self.payment_method}"

    async def play(self, database: Database) -> bool:
        """Plays it to its end and checks it. False: the fault did not come to happen."""
        life = await Life(database).begin(payment_method=self.payment_method)
        life.gateway.faults = dict(self.calls)
        life.dies_at, life.copied_at = self.dies_at, self.copied_at
        life.gateway.before_charge = lambda: self._give(life, "before the charge")
        life.gateway.after_charge = lambda: self._give(life, "after the charge")
        await self._give(life, "first")
        await life.drain()
        await self._give(life, "paid")
        await life.drain()
        for name, moment in (("ship", "shipped"), ("complete", "completed")):
            if any(given in MOMENTS[MOMENTS.index(moment) :] for given, _ in self.commands):
                life.command(name)
                await life.drain()
            await self._give(life, moment)
            await life.drain()
        await self._end(life)
        assert (await life.stands())[0] not in ("CREATED", "PROCESSING"), "it ends"
        await life.check()
        never_called = any(number >= life.gateway.calls for number in self.calls)
        never_handled = any(at is not None and at >= life.handlings for at in (self.dies_at, self.copied_at))
        return not (never_called or never_handled)

    async def _give(self, life: Life, moment: str) -> None:
        """Gives the commands of the moment, and has those decided at once that do not wait for their turn."""
        for given, name in self.commands:
            command, fields = COMMANDS[name]
            if given == moment and command:
                if command == "expire":
                    life.now += datetime.timedelta(hours=2)
                life.report() if command == "report" else life.command(command, **fields)
                await life.drain(ORDER_PROCESSOR)

    async def _end(self, life: Life) -> None:
        """What was given up executes after all; operators replay what is dead; what is due is asked for."""
        await life.gateway.execute_late()
        for _ in range(3):
            if self.has_operator:
                await life.replay_dead()
                await life.drain()
            life.now += datetime.timedelta(hours=2 if self.has_operator else 24)
            await life.sweep()
            await life.drain(ORDER_PROCESSOR)
            await life.drain(PAYMENT_PROCESSOR)
        if self.has_operator:
            assert life.dead == []


async def every(database: Database, *commands: tuple[str, str], payment_method: str = "pm_card_visa") -> int:
    """Plays the commands without a fault, and with each fault at each place where it can happen."""
    fields: dict[str, Any] = {"payment_method": payment_method}
    played = [await _played(Script(*commands, **fields), database)]
    for kind in ("dies_at", "copied_at"):
        for number in itertools.count():
            if not await _played(Script(*commands, **{kind: number}, **fields), database):
                break
            played.append(True)
    for fault in CALL_FAULTS:
        for number in itertools.count():
            if not await _played(Script(*commands, calls={number: fault}, **fields), database):
                break
            played.append(True)
    # Both sends of a call, so that it is not known what became of it.
    for fault in ("lost", "late"):
        for number in range(3):
            await _played(Script(*commands, calls={number: fault, number + 1: fault}, **fields), database)
            played.append(True)
    return len(played)


async def _played(script: Script, database: Database) -> bool:
    try:
        return await script.play(database)
    except Exception as error:
        raise AssertionError(f"{script}: {error!r}") from error


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", COMMANDS)
async def test_one_command_at_every_moment_with_every_fault(own_database: Database, name: str, moment: str) -> None:
    if name == "nothing" and moment != "completed":
        pytest.skip("nothing is the same at every moment")
    played = await every(own_database, (moment, name))
    assert played > 10, "faults came to happen"


@pytest.mark.parametrize("moment", ["first", "before the charge", "after the charge", "paid"])
async def test_a_declined_order_with_a_cancellation_and_every_fault(own_database: Database, moment: str) -> None:
    await every(own_database, (moment, "cancel"), payment_method=DECLINED)


@pytest.mark.parametrize("fault", ["lost", "late"])
@pytest.mark.parametrize(("name", "first"), [("cancel", 0), ("cancel", 1), ("refund", 1), ("refund a part", 1)])
async def test_money_is_given_back_without_an_operator(
    own_database: Database, name: str, first: int, fault: CallFault
) -> None:
    """Both sends of a charge or a refund are given up, and nobody replays anything: a sweep settles it in the end."""
    assert await _played(
        Script(("paid", name), calls={first: fault, first + 1: fault}, has_operator=False), own_database
    )


def pairs() -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    names = [name for name in COMMANDS if name not in ("nothing", "report")]
    for (first, name), (second, other) in itertools.product(itertools.product(MOMENTS, names), repeat=2):
        if MOMENTS.index(first) <= MOMENTS.index(second):
            yield (first, name), (second, other)


async def test_a_report_and_a_cancellation_at_every_two_moments(own_database: Database) -> None:
    faults: list[dict[int, CallFault]] = [{}, {0: "lost", 1: "lost"}, {0: "late", 1: "late"}]
    for reported, cancelled in itertools.product(MOMENTS, repeat=2):
        for calls in faults:
            await _played(Script((reported, "report"), (cancelled, "cancel"), calls=calls), own_database)


@pytest.mark.heavy
@pytest.mark.timeout(3600)
async def test_two_commands_at_every_two_moments_with_random_faults(own_database: Database) -> None:
    dice = random.Random(26)
    for commands in pairs():
        await _played(Script(*commands), own_database)
        for _ in range(4):
            calls = {dice.randrange(5): dice.choice(CALL_FAULTS) for _ in range(dice.randrange(3))}
            script = Script(
                *commands,
                calls=calls,
                dies_at=dice.choice([None, dice.randrange(8)]),
                copied_at=dice.choice([None, dice.randrange(8)]),
                payment_method=dice.choice(["pm_card_visa", "pm_card_visa", DECLINED]),
            )
            await _played(script, own_database)
