"""Orders taken in over gRPC, with Kafka and PostgreSQL: one, many, only checked, too large, and when Kafka is slow."""

import asyncio
import contextlib
import datetime
import time
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from devstack import KafkaBroker
from domain.identifiers import order_id_for, request_fingerprint
from messaging import topics
from messaging.publisher import Publisher
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1 import order_service_pb2_grpc
from orderflow.orders.v1.order_pb2 import LineItem, OrderStatus
from orderflow.orders.v1.order_service_pb2 import (
    BatchCreateOrdersRequest,
    BatchCreateOrdersResponse,
    CreateOrderRequest,
)
from orderflow.orders.v1.order_service_pb2_grpc import OrderServiceStub
from server.admission import Admission
from server.channel_options import channel_options
from server.interceptors import CallInterceptor
from server.order_commands import OrderCommands
from server.order_intake import MAX_BATCH, MAX_ORDER_BYTES, OrderIntake
from server.order_queries import OrderQueries
from server.order_service import OrderService
from server.order_watches import OrderWatches
from settings import DatabaseSettings, KafkaSettings, ServerSettings
from storage.database import Database
from storage.known_requests import KnownRequests
from storage.order_decisions import OrderDecisions
from storage.order_history import OrderHistory
from storage.order_notices import OrderNotices
from storage.order_views import OrderViews
from telemetry import metrics
from tests import engines
from tests.builders import NOW, a_delivery, a_request, an_id, an_item

LOOPBACK = (("grpc.enable_http_proxy", 0),)


class Counting(KnownRequests):
    """Counts the look-ups."""

    asked = 0
    cancels_itself = False

    async def find(self, requests: Collection[tuple[str, str]]) -> Any:
        self.asked += 1
        if self.cancels_itself:
            raise asyncio.CancelledError
        return await super().find(requests)


class Ingress:
    def __init__(self, stub: OrderServiceStub, publisher: Publisher, known: Counting) -> None:
        self.stub = stub
        self.publisher = publisher
        self.known = known

    async def batch(self, *requests: CreateOrderRequest, timeout: float | None = None) -> BatchCreateOrdersResponse:
        return await self.stub.BatchCreateOrders(BatchCreateOrdersRequest(requests=requests), timeout=timeout)


@contextlib.asynccontextmanager
async def ingress(kafka: KafkaSettings, database: Database, **fields: Any) -> AsyncIterator[Ingress]:
    """The server's own parts, put together as server/app.py does."""
    settings = ServerSettings(**{"request_lookup_timeout": 10, **fields})
    publisher = Publisher(kafka, client_id="tests", most_waiting=settings.max_unacknowledged_orders)
    known = Counting(database)
    intake = OrderIntake(
        publisher=publisher,
        is_kafka_reachable=lambda: True,
        known_requests=known,
        settings=settings,
        now=lambda: datetime.datetime.now(datetime.UTC),
    )
    views, history = OrderViews(database), OrderHistory(database)
    queries = OrderQueries(views=views, history=history, settings=settings)
    notices = OrderNotices(DatabaseSettings(), application="tests")  # nobody watches here
    watches = OrderWatches(views=views, history=history, notices=notices, settings=settings)
    server = grpc.aio.server(interceptors=(CallInterceptor(), Admission(settings)), options=channel_options(settings))
    service = OrderService(intake=intake, order_commands=cast(OrderCommands, None), queries=queries, watches=watches)
    order_service_pb2_grpc.add_OrderServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    publisher.start()
    try:
        await engines.eventually(lambda: publisher.is_ready, "a producer is there")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=LOOPBACK) as channel:
            yield Ingress(OrderServiceStub(channel), publisher, known)
    finally:
        await server.stop(1)
        await publisher.close()


@pytest.fixture
async def server(kafka: KafkaSettings, database: Database) -> AsyncIterator[Ingress]:
    async with ingress(kafka, database) as running:
        yield running


async def refused(call: Any) -> status_pb2.Status:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    assert status is not None
    return status


def detail(status: status_pb2.Status, kind: type[Message]) -> Any:
    for packed in status.details:
        found = kind()
        if packed.Unpack(found):
            return found
    return None


def reason(status: status_pb2.Status) -> tuple[str, str]:
    info = detail(status, error_details_pb2.ErrorInfo)
    return info.reason, info.metadata.get("outcome", "")


def violated(status: status_pb2.Status) -> list[str]:
    return [each.field for each in detail(status, error_details_pb2.BadRequest).field_violations]


async def process(database: Database, events: Sequence[OrderEvent]) -> None:
    """Does what the order processor would do with them."""
    decisions = OrderDecisions(database, now=lambda: NOW)
    for event in events:
        await decisions.accept(a_delivery(event, group="order-processor"))


def of(tail: engines.Tail, request_ids: set[str]) -> list[OrderEvent]:
    return [event for event in tail.events if event.order_created.request_id in request_ids]


# -- batches -----------------------------------------------------------------------------------------------------------


async def test_each_order_of_a_batch_has_its_own_result_and_is_on_kafka_once(
    server: Ingress, kafka: KafkaSettings
) -> None:
    requests = [a_request(request_id=an_id(), user_id=f"user-{number}") for number in range(MAX_BATCH)]
    requests[7].email = "nobody"
    requests[499].ClearField("items")
    async with engines.tail(kafka, topics.ORDERS) as tail:
        response = await server.batch(*requests)
        await tail.to_end()

    assert len(response.results) == MAX_BATCH
    for number, result in enumerate(response.results):
        assert result.WhichOneof("result") == ("error" if number in (7, 499) else "created"), number
        if number not in (7, 499):
            assert result.created.order.user_id == f"user-{number}"
            assert result.created.order.status == OrderStatus.ORDER_STATUS_CREATED
            assert result.created.consistency_token
    written = of(tail, {each.request_id for each in requests})
    assert sorted(event.order.order_id for event in written) == sorted(
        result.created.order.order_id for result in response.results if result.HasField("created")
    )
    assert server.known.asked == 1, "one look-up for the batch"


async def test_an_error_in_a_batch_is_the_one_that_the_order_alone_gets(server: Ingress, database: Database) -> None:
    bad = a_request(email="nobody", items=[an_item("?")])
    response = await server.batch(bad, a_request())
    alone = await refused(server.stub.CreateOrder(bad, timeout=10))
    assert response.results[0].error == alone
    assert violated(alone) == ["email", "items[0].sku"]
    assert reason(alone) == ("INVALID_FIELDS", "NOT_ACCEPTED")
    assert response.results[1].HasField("created")


async def test_request_ids_of_a_batch_are_looked_up_and_agree_with_single_calls(
    server: Ingress, kafka: KafkaSettings, database: Database
) -> None:
    first, second, new = (a_request(request_id=an_id()) for _ in range(3))
    async with engines.tail(kafka, topics.ORDERS) as tail:
        alone = await server.stub.CreateOrder(first, timeout=10)
        await server.batch(second)
        await tail.to_end()
        await process(database, of(tail, {first.request_id, second.request_id}))
        changed = a_request(request_id=second.request_id, user_id="another")
        response = await server.batch(new, first, changed)
        await tail.to_end()

    assert response.results[1].created.order.order_id == alone.order.order_id
    assert response.results[1].created.order.revision == 2, "as it stands by now"
    assert reason(response.results[2].error) == ("REQUEST_ID_REUSED", "NOT_ACCEPTED")
    assert response.results[2].error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    [violation] = detail(response.results[2].error, error_details_pb2.PreconditionFailure).violations
    assert violation.subject == "request_id"
    assert response.results[0].created.order.revision == 1
    again = of(tail, {first.request_id, second.request_id, new.request_id})
    assert len(again) == 3, "neither the repeat nor the refused one is published"


async def test_a_look_up_that_is_cancelled_inside_holds_no_order_up(server: Ingress) -> None:
    server.known.cancels_itself = True
    created = await server.stub.CreateOrder(a_request(request_id=an_id()), timeout=10)
    assert created.order.revision == 1
    assert server.known.asked == 1


async def test_a_batch_that_is_wrong_as_such_is_refused_whole(server: Ingress, kafka: KafkaSettings) -> None:
    twice = an_id()
    async with engines.tail(kafka, topics.ORDERS) as tail:
        for requests, fields in [
            ([], ["requests"]),
            ([a_request()] * (MAX_BATCH + 1), ["requests"]),
            (
                [a_request(request_id=twice), a_request(), a_request(request_id=twice), a_request()],
                ["requests[2].request_id"],
            ),
            ([a_request(), a_request(validate_only=True)], ["requests[1].validate_only"]),
        ]:
            status = await refused(server.batch(*requests))
            assert violated(status) == fields
            assert reason(status) == ("INVALID_FIELDS", "NOT_ACCEPTED")
        await tail.to_end()
    assert not of(tail, {twice, ""})


async def test_a_batch_fills_few_kafka_batches(server: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    await server.batch(*(a_request() for _ in range(20)))  # it knows the partitions now
    requests = []
    client = server.publisher._producer.client  # type: ignore[union-attr]
    send = client.send

    async def counted(node_id: int, request: Any, **arguments: Any) -> Any:
        requests.append(type(request).__name__)
        return await send(node_id, request, **arguments)

    monkeypatch.setattr(client, "send", counted)
    response = await server.batch(*(a_request() for _ in range(200)))
    assert all(each.HasField("created") for each in response.results)
    assert 1 <= len([each for each in requests if each.startswith("Produce")]) <= 10


# -- only checked ------------------------------------------------------------------------------------------------------


async def test_validate_only_answers_as_it_would_and_accepts_nothing(
    server: Ingress, kafka: KafkaSettings, database: Database
) -> None:
    request = a_request(request_id=an_id())
    dry = a_request(request_id=request.request_id, validate_only=True)
    async with engines.tail(kafka, topics.ORDERS) as tail:
        checked = await server.stub.CreateOrder(dry, timeout=10)
        assert checked.order.total.amount_minor == 3998
        assert checked.order.status == OrderStatus.ORDER_STATUS_CREATED
        assert (checked.order.order_id, checked.order.etag, checked.consistency_token) == ("", "", "")
        in_batch = await server.batch(dry, a_request(validate_only=True, email="nobody"))
        assert in_batch.results[0].created.order.total == checked.order.total
        assert violated(in_batch.results[1].error) == ["email"]
        await tail.to_end()
        assert not of(tail, {request.request_id, ""})

        created = await server.stub.CreateOrder(request, timeout=10)
        await tail.to_end()
        await process(database, of(tail, {request.request_id}))
    repeated = await server.stub.CreateOrder(dry, timeout=10)
    assert (repeated.order.order_id, repeated.consistency_token) == ("", "")
    assert repeated.order.create_time == created.order.create_time
    dry.user_id = "another"
    assert reason(await refused(server.stub.CreateOrder(dry, timeout=10))) == ("REQUEST_ID_REUSED", "NOT_ACCEPTED")


# -- sizes -------------------------------------------------------------------------------------------------------------


def a_large_request(size: int, **fields: Any) -> CreateOrderRequest:
    """A valid request of exactly that size. Only fields that this version does not know can be so large."""
    request = a_request(**fields)
    filled = CreateOrderRequest()
    filled.CopyFrom(request)
    filler = size - request.ByteSize()
    for _ in range(10):  # until the lengths, which are bytes themselves, fit
        item = request.items[0].SerializeToString() + b"\xa2\x06" + _varint(filler) + bytes(filler)
        filled.items[0].CopyFrom(LineItem.FromString(item))
        if filled.ByteSize() == size:
            return filled
        filler += size - filled.ByteSize()
    raise AssertionError("no such size")


def _varint(number: int) -> bytes:
    encoded = b""
    while number > 0x7F:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


def request_id_for(partition: int, request: CreateOrderRequest) -> str:
    """Returns a request_id under which the request's order goes to the partition."""
    fingerprint = request_fingerprint(request)
    while True:
        request_id = an_id()
        order_id = order_id_for("local", request_id, fingerprint)
        if engines.partition_of(order_id.encode(), topics.ORDERS) == partition:
            return request_id


async def test_the_largest_request_is_taken_and_its_partition_goes_on(server: Ingress, kafka: KafkaSettings) -> None:
    size = MAX_ORDER_BYTES
    large = a_large_request(size, request_id=an_id())
    too_large = a_large_request(size + 1, request_id=an_id())
    trace = (
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("tracestate", "a=" + "b" * 8000),
    )
    async with engines.tail(kafka, topics.ORDERS) as tail:
        status = await refused(server.stub.CreateOrder(too_large, timeout=10))
        assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert violated(status) == [""]
        assert reason(status) == ("INVALID_FIELDS", "NOT_ACCEPTED")
        created = await server.stub.CreateOrder(large, timeout=10, metadata=trace)
        partition = engines.partition_of(created.order.order_id.encode(), topics.ORDERS)
        for _ in range(3):
            after = a_request()
            after.request_id = request_id_for(partition, after)
            answer = await server.stub.CreateOrder(after, timeout=10)
            assert engines.partition_of(answer.order.order_id.encode(), topics.ORDERS) == partition
        await tail.to_end()
    assert server.publisher.is_ready
    [record] = [each for each in tail.records if each.key == created.order.order_id.encode()]
    assert len(record.value) < 1024, "what this version does not know goes no further"
    assert not of(tail, {too_large.request_id})


async def test_a_batch_refuses_the_order_that_is_too_large_and_takes_its_neighbours(
    server: Ingress, kafka: KafkaSettings
) -> None:
    large = [a_large_request(MAX_ORDER_BYTES + number) for number in (0, 1, 0)]
    response = await server.batch(a_request(), *large, a_request())
    assert [each.WhichOneof("result") for each in response.results] == [
        "created", "created", "error", "created", "created",
    ]  # fmt: skip
    assert violated(response.results[2].error) == [""]


async def test_a_message_over_4_mib_is_not_even_read(server: Ingress) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await server.batch(*(a_large_request(MAX_ORDER_BYTES) for _ in range(17)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await server.batch(a_request())


# -- when Kafka is slow ------------------------------------------------------------------------------------------------


async def test_a_frozen_broker_fills_the_bound_and_the_rest_is_refused_at_once(
    spare_broker: KafkaBroker, database: Database
) -> None:
    kafka = engines.kafka_settings(spare_broker)
    async with ingress(kafka, database, max_unacknowledged_orders=100, default_deadline=8) as server:
        await server.batch(*(a_request() for _ in range(20)))  # it knows the partitions now
        shed = metrics.SHED.labels("TOO_MANY_UNACKNOWLEDGED")._value.get()
        spare_broker.suspend()
        try:
            waiting = [asyncio.ensure_future(refused(server.stub.CreateOrder(a_request()))) for _ in range(80)]
            await engines.eventually(lambda: server.publisher.waiting_records == 80, "80 orders wait for Kafka")
            batch = await server.batch(*(a_request() for _ in range(30)))
            # What had room was handed over; what had none says so, and has cost the others nothing.
            reasons = [reason(each.error) for each in batch.results]
            assert reasons == [("OUTCOME_UNKNOWN", "UNKNOWN")] * 20 + [("TOO_MANY_UNACKNOWLEDGED", "NOT_ACCEPTED")] * 10
            took = []
            for _ in range(20):
                began = time.perf_counter()
                status = await refused(server.stub.CreateOrder(a_request()))
                took.append(time.perf_counter() - began)
                assert status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
                assert reason(status) == ("TOO_MANY_UNACKNOWLEDGED", "NOT_ACCEPTED")
            assert sorted(took)[10] < 1, "they wait for nothing"
            assert metrics.SHED.labels("TOO_MANY_UNACKNOWLEDGED")._value.get() == shed + 30
            assert {reason(each) for each in await asyncio.gather(*waiting)} == {("OUTCOME_UNKNOWN", "UNKNOWN")}
            assert server.publisher.waiting_records == 100, "what nobody waits for any more still takes room"
        finally:
            spare_broker.resume()
        await engines.eventually(lambda: server.publisher.waiting_records == 0, "Kafka has caught up")
        await server.stub.CreateOrder(a_request(), timeout=10)


async def test_a_caller_that_gives_up_stops_its_call_and_what_was_handed_over_stays(
    spare_broker: KafkaBroker, database: Database
) -> None:
    kafka = engines.kafka_settings(spare_broker)
    request = a_request(request_id=an_id())
    async with ingress(kafka, database) as server, engines.tail(kafka, topics.ORDERS) as tail:
        await server.batch(*(a_request() for _ in range(20)))
        spare_broker.suspend()
        try:
            call = server.stub.CreateOrder(request)
            await engines.eventually(lambda: server.publisher.waiting_records == 1, "the order waits for Kafka")
            in_flight = metrics.RPC_IN_FLIGHT.labels("orderflow.orders.v1.OrderService/CreateOrder")
            call.cancel()
            await engines.eventually(lambda: in_flight._value.get() == 0, "the call has ended")
        finally:
            spare_broker.resume()
        await tail.until(lambda: of(tail, {request.request_id}), "the order is there")
