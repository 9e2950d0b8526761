"""Operator calls leave who, when and what: in the answer, in the database and in the log."""

from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog

from domain.projection import ProjectionBatch
from domain.records import Coordinates
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.operations.v1 import dead_letter_service_pb2 as pb
from orderflow.operations.v1 import stock_service_pb2
from storage.database import Database
from storage.projection import Projection
from tests import engines
from tests.builders import a_group, a_sku, an_id
from tests.security.issuer import Issuer, bearer
from tests.security.methods import call, named


@pytest.fixture
def log() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


async def test_who_did_what_is_kept_and_logged(
    channel: grpc.aio.Channel, issuer: Issuer, database: Database, log: list[Any]
) -> None:
    projection, topic, group = Projection(database), a_group(), a_group()
    letter = DeadLetter(group=group, error_class="UNDECODABLE", key=an_id().encode(), value=b"x")
    await projection.begin(topic, 0, 0)
    offset = int.from_bytes(group[-6:].encode(), "big")
    await projection.apply(ProjectionBatch(topic, 0, 0, 1, dead_letters=[(Coordinates(topic, 0, offset), letter)]))
    admin = bearer(issuer.token("olga", "orders:operate"))
    forged = (("x-operator", "somebody"), ("by", "somebody"))

    plan = await call(
        channel, named("CreateReplayPlan"), pb.CreateReplayPlanRequest(filter=pb.DeadLetterFilter(group=group)), admin
    )
    assert plan.response.plan.created_by == "olga"
    plan_id = plan.response.plan.plan_id
    assert (await call(channel, named("AbortReplayPlan"), pb.AbortReplayPlanRequest(plan_id=plan_id), admin)).response

    request = pb.DiscardDeadLetterRequest(dead_letter_id=f"0-{offset}", reason="cannot be read")
    answer = await call(channel, named("DiscardDeadLetter"), request, admin + forged)
    assert answer.code is grpc.StatusCode.OK, answer
    entry = answer.response.dead_letter
    assert (entry.resolved_by, entry.resolution_reason) == ("olga", "cannot be read")
    assert entry.HasField("resolve_time")

    told = [(each["event"], each["by"]) for each in log if "by" in each]
    assert told == [("replay_plan.created", "olga"), ("replay_plan.aborted", "olga"), ("dead_letter.discarded", "olga")]
    assert [each["dead_letter_id"] for each in log if each["event"] == "dead_letter.discarded"] == [f"0-{offset}"]


async def test_who_changed_stock_is_kept_and_logged(
    channel: grpc.aio.Channel, issuer: Issuer, database: Database, log: list[Any]
) -> None:
    sku, request_id = a_sku(), an_id()
    admin = bearer(issuer.token("olga", "orders:operate"))
    forged = (("x-operator", "somebody"), ("by", "somebody"))
    requests = {
        "SetStock": stock_service_pb2.SetStockRequest(sku=sku, available=5, reason="counted"),
        "AdjustStock": stock_service_pb2.AdjustStockRequest(sku=sku, delta=-1, request_id=request_id),
        "SetPrice": stock_service_pb2.SetPriceRequest(sku=sku, price={"currency_code": "EUR", "amount_minor": 100}),
        "RemovePrice": stock_service_pb2.RemovePriceRequest(sku=sku, currency_code="EUR"),
    }
    for name, request in requests.items():
        answer = await call(channel, named(name), request, admin + forged)
        assert answer.code is grpc.StatusCode.OK, answer
    assert (await call(channel, named("AdjustStock"), requests["AdjustStock"], admin)).response.level.available == 4
    kinds = ["set_stock", "adjust_stock", "set_price", "remove_price"]
    kept = await engines.fetch(
        database, "select kind, changed_by from stock_changes where sku = $1 order by change_id", sku
    )
    assert kept == [{"kind": kind, "changed_by": "olga"} for kind in kinds]
    told = [(each["event"], each["kind"], each["sku"], each["by"]) for each in log if "by" in each]
    assert told == [("stock.changed", kind, sku, "olga") for kind in kinds], "a repeat is no change"
