"""Dead letters through the API and the command line of the running system."""

import asyncio
import uuid
from typing import Any

import grpc
import grpc.aio
import pytest

from devstack.system import System
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.operations.v1 import dead_letter_service_pb2 as pb
from orderflow.operations.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub
from tests.e2e import letters, observer, programs
from tests.e2e.letters import bootstrap, dlq, processing


async def letters_of(system: System, key: str) -> list[dict[str, str]]:
    """Returns the `dlq_*` headers of the dead letters with a key, oldest first."""
    return [
        {name: (value or b"").decode() for name, value in record.headers if name.startswith("dlq_")}
        for record in await observer.read_topic(bootstrap(system), "dlq", partitions=1)
        if record.key == key.encode()
    ]


async def test_a_record_that_keeps_failing_is_parked_then_dead_and_replayed_once_by_two_callers(
    healthy: System,
) -> None:
    order_id = str(uuid.uuid4())
    event = processing(order_id)
    [(partition, offset)] = await observer.write(
        bootstrap(healthy), "orders", [(order_id.encode(), event.SerializeToString())]
    )

    async def dead() -> list[dict[str, str]]:
        return [each for each in await letters_of(healthy, order_id) if each["dlq_group"] == "payment-processor"]

    [letter] = await observer.eventually(dead, within=40, what="a dead letter of the payment processor")
    assert letter["dlq_error_class"] == "ORDER_UNKNOWN"
    assert (letter["dlq_origin_topic"], letter["dlq_origin_partition"], letter["dlq_origin_offset"]) == (
        "orders", str(partition), str(offset),
    )  # fmt: skip
    assert letter["dlq_attempts"] == "9", "three in place, at the origin and on each of two retry topics"
    assert letter["dlq_replay"] == "0"

    code, rows, _ = await dlq(healthy, "list", "--order", order_id, "-o", "json")
    assert code == 0
    [row] = rows
    assert (row["group"], row["error_class"], row["state"]) == ("payment-processor", "ORDER_UNKNOWN", "OPEN")

    await letters.add_row(healthy, event)

    async with grpc.aio.insecure_channel(healthy.server_address) as channel:
        stub = DeadLetterServiceStub(channel)
        request = pb.ReplayDeadLetterRequest(dead_letter_id=row["id"], reason="the row is there now")
        answers = await asyncio.gather(
            *(stub.ReplayDeadLetter(request, timeout=15) for _ in range(8)), return_exceptions=True
        )
        refused = [each for each in answers if isinstance(each, grpc.aio.AioRpcError)]
        assert len(refused) < 8
        assert {each.code() for each in refused} <= {grpc.StatusCode.FAILED_PRECONDITION}

    async def paid() -> list[OrderEvent]:
        events = await observer.read_events(bootstrap(healthy), "payments")
        return [each for each in events if each.order.order_id == order_id]

    [one] = await observer.eventually(paid, within=20, what="ORDER_PAID")
    assert one.type == OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID

    async def copies_are_consumed() -> bool:
        parked = [
            record
            for record in await observer.read_topic(bootstrap(healthy), "payment-processor.retry.1s", partitions=1)
            if record.key == order_id.encode() and dict(record.headers).get("retry_replay") == b"1"
        ]
        claims = await healthy.count(f"select count(*) from replay_claims where origin_offset = {offset}")
        ends = [record.offset for record in parked]
        return bool(ends) and claims == 1 and await committed_past(healthy, max(ends))

    await observer.eventually(copies_are_consumed, within=20, what="every copy of the replay consumed")
    assert len(await paid()) == 1
    charges = [line for line in observer.journal(healthy.gateway_journal) if line.get("order_id") == order_id]
    assert len(charges) == 1


async def committed_past(system: System, offset: int) -> bool:
    from aiokafka.admin import AIOKafkaAdminClient

    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap(system))
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets("payment-processor")
        return any(
            each.topic == "payment-processor.retry.1s" and committed.offset > offset
            for each, committed in offsets.items()
        )
    finally:
        await admin.close()


async def test_a_replay_that_fails_again_comes_back_with_its_count_raised_and_can_be_discarded(healthy: System) -> None:
    key = f"junk-{uuid.uuid4()}"
    await observer.write(bootstrap(healthy), "payments", [(key.encode(), b"\xffnot an event")])

    async def dead() -> list[dict[str, Any]]:
        _, rows, _ = await dlq(healthy, "list", "--error-class", "UNDECODABLE", "--limit", "1000", "-o", "json")
        mine = [row for row in rows or [] if row["key"] == key]
        return mine if len(mine) == 2 else []

    rows = await observer.eventually(dead, within=20, what="a dead letter of each notification group")
    assert {row["group"] for row in rows} == {"notification-email", "notification-sms"}
    email = next(row for row in rows if row["group"] == "notification-email")

    code, _, err = await dlq(healthy, "replay", email["id"], "--reason", "try again")
    assert code == 0, err

    async def again() -> list[dict[str, str]]:
        return [each for each in await letters_of(healthy, key) if each["dlq_replay"] == "1"]

    [letter] = await observer.eventually(again, within=20, what="the dead letter of the replay")
    assert letter["dlq_group"] == "notification-email", "only the group that failed sees a replay"
    assert letter["dlq_origin_topic"] == "payments"

    code, shown, _ = await dlq(healthy, "show", email["id"])
    assert code == 0
    assert (shown["state"], shown["resolution_reason"]) == ("DEAD_LETTER_STATE_REPLAYED", "try again")
    code, _, err = await dlq(healthy, "replay", email["id"], "--reason", "again")
    assert code == 64 + 9
    assert "FAILED_PRECONDITION" in err
    sms = next(row for row in rows if row["group"] == "notification-sms")
    assert (await dlq(healthy, "discard", sms["id"], "--reason", "junk"))[0] == 0
    assert (await dlq(healthy, "discard", "0-999999", "--reason", "junk"))[0] == 64 + 5


async def test_a_plan_is_frozen_then_applied_and_can_be_aborted(healthy: System) -> None:
    marker = f"plan-{uuid.uuid4()}"
    keys = [f"{marker}-{number}" for number in range(6)]
    await observer.write(bootstrap(healthy), "payments", [(key.encode(), b"\xffjunk") for key in keys])

    async def dead() -> bool:
        _, rows, _ = await dlq(healthy, "list", "--group", "notification-sms", "--limit", "1000", "-o", "json")
        return sum(row["key"].startswith(marker) for row in rows or []) == 6

    await observer.eventually(dead, within=20, what="six dead letters")
    code, [plan], _ = await dlq(healthy, "plan", "--group", "notification-sms", "-o", "json")
    assert code == 0
    assert plan["records"] >= 6
    code, [done], _ = await dlq(healthy, "apply", plan["plan"], "--reason", "drill", "--rate", "500", "-o", "json")
    assert code == 0
    assert (done["state"], done["replayed"]) == ("DONE", plan["records"])

    async def back() -> bool:
        letters = await observer.read_topic(bootstrap(healthy), "dlq", partitions=1)
        mine = [dict(each.headers) for each in letters if (each.key or b"").startswith(marker.encode())]
        return sum(each["dlq_replay"] == b"1" and each["dlq_group"] == b"notification-sms" for each in mine) == 6

    await observer.eventually(back, within=30, what="six dead letters with replay 1")

    async def planned() -> list[dict[str, Any]]:
        _, rows, _ = await dlq(healthy, "plan", "--group", "notification-sms", "-o", "json")
        return rows if rows and rows[0]["records"] >= 6 else []

    [second] = await observer.eventually(planned, within=20, what="the second plan")
    code, [aborted], _ = await dlq(healthy, "abort", second["plan"], "-o", "json")
    assert (code, aborted["state"]) == (0, "ABORTED")
    code, [after], _ = await dlq(healthy, "apply", second["plan"], "--reason", "no", "-o", "json")
    assert (after["state"], after["replayed"]) == ("ABORTED", 0)


async def test_grpcurl_lists_dead_letters_and_the_methods_of_the_service(healthy: System) -> None:
    grpcurl = programs.program("grpcurl")
    service = "orderflow.operations.v1.DeadLetterService"
    code, out, err = await programs.run(grpcurl, "-plaintext", healthy.server_address, "list", service)
    assert code == 0, err
    assert f"{service}.ApplyReplayPlan" in out.decode()
    code, out, err = await programs.run(
        grpcurl, "-plaintext", "-d", "{}", healthy.server_address, f"{service}/SummarizeDeadLetters"
    )
    assert code == 0, err


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        ("GetDeadLetter", pb.GetDeadLetterRequest(dead_letter_id="x"), grpc.StatusCode.INVALID_ARGUMENT),
        ("GetDeadLetter", pb.GetDeadLetterRequest(dead_letter_id="0-99999999"), grpc.StatusCode.NOT_FOUND),
        ("ListDeadLetters", pb.ListDeadLettersRequest(page_size=-1), grpc.StatusCode.INVALID_ARGUMENT),
        ("ListDeadLetters", pb.ListDeadLettersRequest(page_token="zz"), grpc.StatusCode.INVALID_ARGUMENT),
        ("ReplayDeadLetter", pb.ReplayDeadLetterRequest(dead_letter_id="0-0"), grpc.StatusCode.INVALID_ARGUMENT),
        ("GetReplayPlan", pb.GetReplayPlanRequest(plan_id="x"), grpc.StatusCode.NOT_FOUND),
        (
            "CreateReplayPlan",
            pb.CreateReplayPlanRequest(filter=pb.DeadLetterFilter(group="nobody")),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
    ],
)
async def test_bad_requests_have_a_clear_error(
    healthy: System, method: str, request_: object, code: grpc.StatusCode
) -> None:
    async with grpc.aio.insecure_channel(healthy.server_address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await getattr(DeadLetterServiceStub(channel), method)(request_, timeout=5)
    assert refused.value.code() == code
