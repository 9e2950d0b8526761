"""What the bench takes for a result: nothing lost, doubled or wrong; medians, spreads and ratios; tables and plots."""

import dataclasses
import json
import pathlib
import types
import uuid
from typing import Any

import pytest

from bench import kept, peers, table
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
    told = table.text({"size": "full", "workloads": {"some": {**part, "machines": [MACHINE] * 3}}})
    assert "medians of 3 runs" in told
    [row] = [line for line in told.splitlines() if "slow over fast" in line]
    cells = [cell.strip() for cell in row.split("|")]
    assert (cells[3], cells[4], cells[6]) == ("0.30", "100%", verdict)


def test_a_workload_that_failed_is_told() -> None:
    results = {"size": "full", "workloads": {"some": {"errors": ["WrongResultError('x')"]}}}
    assert "some FAILED: WrongResultError('x')" in table.text(results)


# -- results that are gone on with -------------------------------------------------------------------------------------


@pytest.fixture
def one_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "ALL", {"some": a_workload(least=0.2)})


@pytest.mark.usefixtures("one_workload")
def test_the_next_start_goes_on_from_the_runs_and_errors_that_are_there(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "results.json"
    first = kept.Kept("full", file)
    first.add("some", Measured({"fast": 10, "slow": 2}, {"line": [(1.0, 2.0)]}), {**MACHINE, "commit": "one"})
    first.fail("some", "WrongResultError('x')")

    second = kept.Kept("full", file)
    assert [run.figures for run in second.runs("some")] == [{"fast": 10, "slow": 2}]
    second.add("some", Measured({"fast": 10, "slow": 4}, {"line": [(1.0, 3.0)]}), {**MACHINE, "commit": "two"})

    results = kept.Kept("full", file).results
    assert results["workloads"]["some"]["ratios"]["r"]["values"] == [0.2, 0.4]
    assert results["workloads"]["some"]["points"] == [{"line": [[1.0, 2.0]]}, {"line": [[1.0, 3.0]]}]
    told = table.text(results)
    assert "commit one, two" in told
    assert "some FAILED: WrongResultError('x')" in told


@pytest.mark.usefixtures("one_workload")
def test_results_of_another_size_or_of_other_figures_are_not_gone_on_with(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "results.json"
    kept.Kept("full", file).add("some", Measured({"fast": 10, "slow": 2}), MACHINE)
    with pytest.raises(ValueError, match="has results of size full, not short"):
        kept.Kept("short", file)
    other = dataclasses.replace(a_workload(), figures=(Figure("fast", "fast one", "1/s"),), ratios=())
    monkeypatch.setattr(kept, "ALL", {"some": other})
    assert kept.Kept("full", file).runs("some") == []


# -- other implementations ---------------------------------------------------------------------------------------------


def drained(impl: str, steady_per_s: float, cpu: float, **fields: Any) -> str:
    line = {"impl": impl, "workload": "w2", "steady_per_s": steady_per_s, "cpu_s_per_1000_orders": cpu, "errors": 0}
    return json.dumps(line | {"orders_per_s": 1.0, "p50_ms": None} | fields)


def test_each_run_is_compared_with_the_same_run_of_the_others(tmp_path: pathlib.Path) -> None:
    runs = []
    for number, (ours, tuned) in enumerate(((8_000, 10_000), (10_000, 10_000), (6_000, 12_000))):
        runs.append(tmp_path / f"{number}.jsonl")
        runs[-1].write_text(drained("go-tuned", tuned, 0.03) + "\n" + drained("orderflow", ours, 0.15) + "\n")
    part = peers.compared(runs, None)["workloads"]["peers-drain"]
    assert part["ratios"]["orderflow.steady_per_s.go-tuned"]["values"] == [0.8, 1.0, 0.5]
    assert part["ratios"]["orderflow.cpu_s_per_1000_orders.go-tuned"]["values"] == [5, 5, 5]
    assert not any("py-faststream" in name for name in (*part["ratios"], *part["figures"]))
    told = table.text({"size": "full", "workloads": {"peers-drain": part}})
    assert "| peers-drain | drain, orderflow over Go tuned | 0.80 | 62% | at least 0.8, aim 1 | met |" in told


def test_the_batches_of_the_bench_stand_against_the_single_calls_of_others(tmp_path: pathlib.Path) -> None:
    lines, batch = tmp_path / "peers.jsonl", tmp_path / "results.json"
    placed = {"impl": "go-tuned", "workload": "w1", "orders_per_s": 20_000, "errors": 0}
    lines.write_text(json.dumps(placed) + "\n")
    batch.write_text(json.dumps({"workloads": {"batch": {"figures": {"orders_per_s": {"values": [30_000, 1]}}}}}))
    part = peers.compared([lines], batch)["workloads"]["peers-ingress"]
    assert part["ratios"]["batch"]["values"] == [1.5]


def test_peers_that_fail_or_ran_more_often_than_others_are_told(tmp_path: pathlib.Path) -> None:
    lines = tmp_path / "peers.jsonl"
    lines.write_text(drained("go-tuned", 1, 1, errors=2) + "\n" + drained("orderflow", 1, 1) + "\n")
    assert peers.compared([lines], None)["workloads"]["peers-drain"]["errors"] == ["go-tuned: 2 errors"]
    lines.write_text(lines.read_text() + drained("orderflow", 1, 1) + "\n")
    with pytest.raises(ValueError, match="not as many runs of each"):
        peers.compared([lines], None)
    lines.write_text(json.dumps({"impl": "go-tuned", "workload": "w2", "orders_per_s": None, "error": "gone"}) + "\n")
    assert peers.compared([lines], None)["workloads"]["peers-drain"]["errors"] == ["go-tuned: gone"]
