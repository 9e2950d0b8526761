"""What the clients ask of orders, and what their log holds of the answers, against the real API in memory."""

import itertools
import json
import pathlib
import random
from collections.abc import Iterable

from chaos.lives import Command, Life, Step, a_life
from chaos.load import Load, Wish, wishes
from chaos.oracle.folder import Run
from chaos.oracle.folder import load as read_back
from orderflow.orders.v1.order_pb2 import Money, OrderStatus
from orderflow.orders.v1.order_service_pb2 import CancelOrderRequest, RefundOrderRequest, ShipOrderRequest
from server.testing import OrdersTestServer
from tests import engines

SHIP = Command("ShipOrder", ShipOrderRequest(carrier="Parcel Service", request_id="r-ship"), "at once")
CANCEL = Command("CancelOrder", CancelOrderRequest(reason="CHAOS", request_id="r-cancel"), "none")
REFUND = Command("RefundOrder", RefundOrderRequest(request_id="r-refund"), "none")


async def lived(folder: pathlib.Path, *steps: Iterable[Command], away: bool = False) -> Run:
    """Places an order, pays it, and lets one of the clients' lives happen to it. Returns what they wrote down."""
    log, order = folder / "clients.jsonl", next(wishes(1)).order
    life = Life(True, tuple(Step(0.0, tuple(step)) for step in steps))
    wish = Wish(0, order, "none", False, life)
    async with OrdersTestServer() as server, Load(server.target, log, iter([wish]), planned=1) as load:
        load.burst(1)
        await engines.eventually(lambda: server.orders, "an order")
        server.is_available = not away
        server.pay(server.orders[0].order_id)
        if away:
            await engines.eventually(lambda: "KAFKA_UNAVAILABLE" in log.read_text(), "a refusal")
            server.is_available = True
        await load.finish()
    (folder / "run.json").write_text(json.dumps({}))
    return read_back(folder)


async def test_answers_and_refusals_are_written_down(tmp_path: pathlib.Path) -> None:
    run = await lived(tmp_path, [SHIP], [CANCEL])
    ship, again, cancel = run.asked
    assert [call.outcome for call in run.asked] == ["ok", "ok", "refused"]
    assert ship.order is not None
    assert ship.request == again.request == SHIP.of(ship.order.order_id)
    assert ship.order == again.order
    assert (ship.order.status, ship.order.revision) == (OrderStatus.ORDER_STATUS_SHIPPED, 4)
    assert (cancel.method, cancel.reason) == ("CancelOrder", "ILLEGAL_TRANSITION")


async def test_the_watch_and_what_is_read_after_an_answer_are_written_down(tmp_path: pathlib.Path) -> None:
    run = await lived(tmp_path, [SHIP])
    assert [(watched.after, watched.revisions) for watched in run.watched] == [(1, [2, 3])]
    assert [(seen.revision, seen.least) for seen in run.seen if seen.client.startswith("of ")] == [(4, 4), (4, 4)]


async def test_a_command_that_is_not_taken_is_given_again(tmp_path: pathlib.Path) -> None:
    run = await lived(tmp_path, [REFUND], away=True)
    assert run.asked[-1].outcome == "ok"
    assert {call.reason for call in run.asked[:-1]} == {"KAFKA_UNAVAILABLE"}
    assert {call.request.request_id for call in run.asked} == {"r-refund"}


def test_lives_have_every_command_before_and_after_payment() -> None:
    lives = [wish.life for wish in itertools.islice(wishes(1), 2000)]
    for waits in (False, True):
        asked = {
            command.method for life in lives if life.waits == waits for step in life.steps for command in step.commands
        }
        assert asked >= {"CancelOrder", "ShipOrder", "RefundOrder"}
    assert {command.repeat for life in lives for step in life.steps for command in step.commands} == {
        "none", "at once", "later",
    }  # fmt: skip
    assert any(not life.steps for life in lives)


def test_no_two_commands_of_a_life_share_a_request_id_and_two_parts_are_more_than_the_order() -> None:
    dice = random.Random(1)
    for _ in range(500):
        commands = [command for step in a_life(dice, request_id="r", total=1000).steps for command in step.commands]
        ids = [command.request.request_id for command in commands]
        assert len(ids) == len(set(ids))
        assert all(each.startswith("r-") for each in ids)
        parts = [command.request.amount for command in commands if command.method == "RefundOrder"]
        assert set(map(str, parts)) <= {"", str(Money(currency_code="EUR", amount_minor=666))}
