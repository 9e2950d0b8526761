"""What the bench takes for a result: nothing lost, doubled or wrong; medians, spreads and ratios; tables and plots."""

import types
import uuid
from typing import Any

import pytest

from bench import table
from bench.orders import ends_as, is_declined
from bench.results import Figure, Measured, Ratio, Workload, WrongResultError, report
from bench.topics import Ends, Notifications
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType

MACHINE = dict.fromkeys(
    "time commit processor cores memory_gib system python kafka postgresql aiokafka grpcio asyncpg".split(), "?"
) | {"load": 0.5}


def a_record(order_id: str, event_type: OrderEventType, event_id: str = "") -> Any:
    value = OrderEvent(type=event_type).SerializeToString()
    return types.SimpleNamespace(key=order_id.encode(), value=value, headers=(("ce_id", event_id.encode()),))


def some_ends(ids: list[str]) -> Ends:
    ends = Ends(None)
    for number, order_id in enumerate(ids):
        ends.take(a_record(order_id, ends_as(order_id)), float(number))
    return ends


IDS = [str(uuid.uuid5(uuid.NAMESPACE_OID, str(number))) for number in range(200)]


def test_orders_that_all_ended_as_they_had_to() -> None:
    assert 0 < sum(map(is_declined, IDS)) < 20
    some_ends(IDS).check(IDS)


def test_lost_doubled_strange_and_wrong_ends_are_no_result() -> None:
    with pytest.raises(WrongResultError, match="1 lost, 0 that nobody placed, -1 records more"):
        some_ends(IDS[1:]).check(IDS)
    with pytest.raises(WrongResultError, match="0 lost, 0 that nobody placed, 1 records more"):
        some_ends([*IDS, IDS[0]]).check(IDS)
    with pytest.raises(WrongResultError, match="0 lost, 1 that nobody placed"):
        some_ends(IDS).check(IDS[1:])
    ends = some_ends(IDS[1:])
    ends.take(a_record(IDS[0], OrderEventType.ORDER_EVENT_TYPE_PAYMENT_REFUNDED), 0.0)
    with pytest.raises(WrongResultError, match="1 ended otherwise"):
        ends.check(IDS)


def test_a_notification_that_is_told_twice_is_no_result() -> None:
    told = Notifications(None)
    sent = OrderEventType.ORDER_EVENT_TYPE_NOTIFICATION_SENT
    for event_id in ("a", "b", "b"):
        told.take(a_record(IDS[0], sent, event_id), 0.0)
    with pytest.raises(WrongResultError):
        told.check(IDS[:1], each=3)


def test_the_steady_rate_leaves_out_start_and_end() -> None:
    ends = Ends(None)
    moments = [
        *(100.0 * n for n in range(10)),
        *(1000.0 + n / 10 for n in range(80)),
        *(5000.0 * n for n in range(1, 11)),
    ]
    ends.arrived = dict(zip(map(str, range(100)), moments, strict=True))
    assert ends.steady_rate() == pytest.approx(10, rel=0.02)


async def _measure(*_: Any) -> Measured:
    raise NotImplementedError


def a_workload(**bounds: float) -> Workload[None]:
    return Workload(
        name="some",
        about="Some.",
        measure=_measure,
        full=None,
        short=None,
        figures=(Figure("fast", "fast one", "1/s"), Figure("slow", "slow one", "1/s")),
        ratios=(Ratio("r", "slow over fast", "slow", "fast", **bounds),),
    )


@pytest.mark.parametrize(
    ("bounds", "verdict"),
    [
        ({}, ""),
        ({"least": 0.2}, "met"),
        ({"least": 0.2, "aim": 0.3}, "aim"),
        ({"least": 0.35}, "MISSED"),
        ({"most": 0.35}, "met"),
        ({"most": 0.35, "aim": 0.3}, "aim"),
        ({"most": 0.2}, "MISSED"),
    ],
)
def test_median_spread_and_verdict(bounds: dict[str, float], verdict: str) -> None:
    runs = [Measured({"fast": 10, "slow": slow}) for slow in (2, 3, 5)]
    part = report(a_workload(**bounds), runs)
    assert part["figures"]["slow"]["median"] == 3
    assert part["figures"]["slow"]["spread"] == pytest.approx(1.0)
    assert part["ratios"]["r"]["values"] == [0.2, 0.3, 0.5]
    told = table.text({"machine": MACHINE, "size": "full", "runs": 3, "workloads": {"some": part}})
    [row] = [line for line in told.splitlines() if "slow over fast" in line]
    cells = [cell.strip() for cell in row.split("|")]
    assert (cells[3], cells[4], cells[6]) == ("0.30", "100%", verdict)


def test_a_workload_that_failed_is_told() -> None:
    results = {"machine": MACHINE, "size": "full", "runs": 3, "workloads": {"some": {"error": "WrongResultError('x')"}}}
    assert "some FAILED: WrongResultError('x')" in table.text(results)
