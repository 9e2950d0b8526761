"""The order processor decides valid orders only: Kafka is a border."""

from collections.abc import Callable

import pytest

from domain.failures import Permanent
from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderPaidDetails
from orderflow.orders.v1.order_pb2 import OrderStatus
from tests.builders import a_command, a_delivery, an_id, order_created, order_event
from workers import order_processor


class Decisions:
    """Accepts everything."""

    def __init__(self) -> None:
        self.accepted: list[Delivery] = []
        self.answer = [order_event()]

    async def accept(self, delivery: Delivery) -> list[OrderEvent]:
        self.accepted.append(delivery)
        return self.answer


class Commands:
    """Takes every command down."""

    def __init__(self) -> None:
        self.decided: list[Delivery] = []
        self.answer = [order_event()]

    async def decide(self, delivery: Delivery) -> list[OrderEvent]:
        self.decided.append(delivery)
        return self.answer


async def test_a_valid_order_is_decided() -> None:
    decisions, delivery = Decisions(), a_delivery()
    assert await order_processor.handle(delivery, decisions=decisions, order_commands=Commands()) == decisions.answer
    assert decisions.accepted == [delivery]


def _other_details(event: OrderEvent) -> None:
    event.order_paid.CopyFrom(OrderPaidDetails())


def _no_details(event: OrderEvent) -> None:
    event.ClearField("order_created")


def _no_caller(event: OrderEvent) -> None:
    event.order_created.caller = ""


def _revision_of_the_event(event: OrderEvent) -> None:
    event.revision = 2


def _revision_of_the_order(event: OrderEvent) -> None:
    event.order.revision = 0


def _status(event: OrderEvent) -> None:
    event.order.status = OrderStatus.ORDER_STATUS_PAID


def _violation(event: OrderEvent) -> None:
    event.order.user_id = "\x00"


def _total(event: OrderEvent) -> None:
    event.order.total.amount_minor -= 1


def _currency_of_the_total(event: OrderEvent) -> None:
    event.order.total.currency_code = "USD"


def _no_total(event: OrderEvent) -> None:
    event.order.ClearField("total")


def _no_create_time(event: OrderEvent) -> None:
    event.order.ClearField("create_time")


def _update_time_before_1970(event: OrderEvent) -> None:
    event.order.update_time.seconds = -1


def _expire_time_after_9999(event: OrderEvent) -> None:
    event.order.expire_time.seconds = 253402300800


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_details, "details"),
        (_other_details, "details"),
        (_no_caller, "details"),
        (_revision_of_the_event, "revision 1"),
        (_revision_of_the_order, "revision 1"),
        (_status, "CREATED"),
        (_violation, "user_id must not have control"),
        (_total, "total"),
        (_currency_of_the_total, "total"),
        (_no_total, "total"),
        (_no_create_time, "create_time"),
        (_update_time_before_1970, "update_time"),
        (_expire_time_after_9999, "expire_time"),
    ],
)
async def test_what_the_server_never_makes_is_refused_for_good(
    spoil: Callable[[OrderEvent], None], message: str
) -> None:
    event = order_created()
    spoil(event)
    decisions = Decisions()
    with pytest.raises(Permanent, match=message) as refused:
        await order_processor.handle(a_delivery(event), decisions=decisions, order_commands=Commands())
    assert refused.value.error_class == "INVALID_ORDER"
    assert decisions.accepted == []


async def test_a_valid_command_is_decided() -> None:
    decided = Commands()
    delivery = a_delivery(a_command("cancel", an_id()))
    emitted = await order_processor.handle(delivery, decisions=Decisions(), order_commands=decided)
    assert emitted == decided.answer
    assert decided.decided == [delivery]


async def test_a_command_that_the_server_never_makes_is_refused_for_good() -> None:
    decided = Commands()
    event = a_command("cancel", an_id(), reason="\x00")
    with pytest.raises(Permanent, match="INVALID_COMMAND"):
        await order_processor.handle(a_delivery(event), decisions=Decisions(), order_commands=decided)
    assert decided.decided == []


async def test_an_order_whose_user_was_erased_is_decided_as_any_other() -> None:
    event = order_created()
    event.order.ClearField("email")
    decisions = Decisions()
    await order_processor.handle(a_delivery(event), decisions=decisions, order_commands=Commands())
    assert [each.event for each in decisions.accepted] == [event]
