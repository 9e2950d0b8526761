"""The ingress's producer: durable, not handed over, or unknown; and it recovers by itself."""

import asyncio
from collections.abc import AsyncIterator, Awaitable

import pytest

from devstack import KafkaBroker, free_ports
from messaging import envelope, topics
from messaging.envelope import OutgoingRecord
from messaging.publisher import NotHandedOver, OutcomeUnknown, Publisher, TooManyWaiting
from messaging.topics import MAX_MESSAGE_BYTES
from settings import KafkaSettings
from tests import engines
from tests.builders import an_id, order_created


def a_record_of(value: bytes) -> OutgoingRecord:
    return OutgoingRecord(topics.ORDERS, an_id().encode(), value, [])


async def ready(publisher: Publisher) -> Publisher:
    publisher.start()
    await engines.eventually(lambda: publisher.is_ready, "a producer is there")
    return publisher


@pytest.fixture
async def publisher(kafka: KafkaSettings) -> AsyncIterator[Publisher]:
    publisher = Publisher(kafka, client_id="tests")
    yield await ready(publisher)
    await publisher.close()


async def test_what_is_acknowledged_is_there(publisher: Publisher, kafka: KafkaSettings) -> None:
    records = [envelope.encode(order_created()) for _ in range(50)]
    async with engines.tail(kafka, topics.ORDERS) as tail:
        await asyncio.gather(*(publisher.publish(record, timeout=10) for record in records))
        await tail.to_end()
    assert {each.key: (each.value, list(each.headers)) for each in tail.records} == {
        each.key: (each.value, each.headers) for each in records
    }


async def test_without_a_producer_nothing_is_handed_over(kafka: KafkaSettings) -> None:
    with pytest.raises(NotHandedOver):
        await Publisher(kafka, client_id="tests").publish(envelope.encode(order_created()), timeout=1)


@pytest.mark.parametrize("size", [MAX_MESSAGE_BYTES + 1, 2**20], ids=["refused by the broker", "refused by the client"])
async def test_a_record_that_is_too_large_is_not_handed_over_and_harms_no_other(
    publisher: Publisher, kafka: KafkaSettings, size: int
) -> None:
    good = [envelope.encode(order_created()) for _ in range(40)]
    async with engines.tail(kafka, topics.ORDERS) as tail:
        for record in good[:20]:  # only then has each partition a sequence to keep
            await publisher.publish(record, timeout=10)
        with pytest.raises(NotHandedOver, match="TooLarge"):
            await publisher.publish(a_record_of(bytes(size)), timeout=10)
        await engines.eventually(lambda: publisher.is_ready, "the producer was replaced")
        for record in good[20:]:
            await publisher.publish(record, timeout=10)
        await tail.to_end()
    assert {each.key for each in tail.records} == {each.key for each in good}


async def test_neighbours_of_a_refused_record_are_durable_or_said_not_to_be(
    publisher: Publisher, kafka: KafkaSettings
) -> None:
    good = [envelope.encode(order_created()) for _ in range(40)]

    async def outcome(publishing: Awaitable[None]) -> type[BaseException] | None:
        try:
            await publishing
        except (NotHandedOver, OutcomeUnknown) as error:
            return type(error)
        return None

    async with engines.tail(kafka, topics.ORDERS) as tail:
        large = outcome(publisher.publish(a_record_of(bytes(MAX_MESSAGE_BYTES + 1)), timeout=10))
        outcomes = await asyncio.gather(large, *(outcome(publisher.publish(each, timeout=10)) for each in good))
        await engines.eventually(lambda: publisher.is_ready, "the producer was replaced")
        await tail.to_end()
    there = {each.key for each in tail.records}
    assert outcomes[0] is NotHandedOver
    for record, how in zip(good, outcomes[1:], strict=True):
        assert record.key in there or how is not None, "acknowledged and lost"
        assert record.key not in there or how is not NotHandedOver, "said not to exist, and does"
    keys = [each.key for each in tail.records]
    assert len(set(keys)) == len(keys)


async def test_a_broker_that_hangs_makes_the_outcome_unknown_within_the_time_given(kafka_broker: KafkaBroker) -> None:
    kafka = engines.kafka_settings(kafka_broker)
    publisher = await ready(Publisher(kafka, client_id="tests"))
    record = envelope.encode(order_created())
    async with engines.tail(kafka, topics.ORDERS) as tail:
        await publisher.publish(envelope.encode(order_created()), timeout=10)  # it knows the partitions now
        kafka_broker.suspend()
        try:
            loop = asyncio.get_running_loop()
            began = loop.time()
            with pytest.raises(OutcomeUnknown):
                await publisher.publish(record, timeout=0.5)
            assert loop.time() - began < 5
        finally:
            kafka_broker.resume()
        await publisher.publish(envelope.encode(order_created()), timeout=10)
        await tail.until(lambda: len(tail.records) == 3, "unknown may exist later: here it does")
    assert record.key in {each.key for each in tail.records}
    await publisher.close()


async def test_what_waits_for_a_broker_that_hangs_is_bounded_in_records_and_bytes(
    kafka_broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messaging.publisher._MOST_WAITING_BYTES", 150_000)
    publisher = await ready(Publisher(engines.kafka_settings(kafka_broker), client_id="tests", most_waiting=5))
    await publisher.publish_all([envelope.encode(order_created()) for _ in range(5)], timeout=10)
    kafka_broker.suspend()
    try:
        large = [a_record_of(bytes(100_000)) for _ in range(3)]
        kinds = [type(each) for each in await publisher.publish_all(large, timeout=0.3)]
        assert kinds == [OutcomeUnknown, OutcomeUnknown, TooManyWaiting]
        assert publisher.waiting_records == 2, "they wait on"
        monkeypatch.undo()
        small = [a_record_of(b"small") for _ in range(4)]
        kinds = [type(each) for each in await publisher.publish_all(small, timeout=0.3)]
        assert kinds == [OutcomeUnknown, OutcomeUnknown, OutcomeUnknown, TooManyWaiting]
    finally:
        kafka_broker.resume()
    await engines.eventually(lambda: publisher.waiting_records == 0, "Kafka has caught up")
    await publisher.publish(envelope.encode(order_created()), timeout=10)
    await publisher.close()


async def test_a_caller_that_is_cancelled_leaves_no_error_and_no_gap_in_the_count(kafka_broker: KafkaBroker) -> None:
    publisher = await ready(Publisher(engines.kafka_settings(kafka_broker), client_id="tests"))
    await publisher.publish_all([envelope.encode(order_created()) for _ in range(20)], timeout=10)
    kafka_broker.suspend()
    try:
        # More than the producer has room for: some are handed over, one waits for room, the rest has not begun.
        records = [a_record_of(bytes(200_000)) for _ in range(12)]
        publishing = asyncio.create_task(publisher.publish_all(records, timeout=10))
        await engines.eventually(lambda: publisher.waiting_records >= 2, "some are handed over")
        publishing.cancel()
        await asyncio.wait([publishing])
        assert publishing.cancelled()
    finally:
        kafka_broker.resume()
    await engines.eventually(lambda: publisher.waiting_records == 0, "Kafka has caught up")
    await publisher.close()


async def test_a_broker_that_was_stopped_and_is_back(spare_broker: KafkaBroker) -> None:
    kafka = engines.kafka_settings(spare_broker)
    publisher = await ready(Publisher(kafka, client_id="tests"))
    await publisher.publish(envelope.encode(order_created()), timeout=10)
    await spare_broker.stop()
    try:
        for _ in range(3):
            with pytest.raises((OutcomeUnknown, NotHandedOver)):
                await publisher.publish(envelope.encode(order_created()), timeout=0.3)
    finally:
        spare_broker.start()
        await spare_broker.wait_ready()
    record = envelope.encode(order_created())
    async with engines.tail(kafka, topics.ORDERS) as tail:
        await publisher.publish(record, timeout=20)
        await tail.until(lambda: record.key in {each.key for each in tail.records}, "the record is there")
    await publisher.close()


async def test_it_goes_on_trying_to_start_and_can_be_closed_meanwhile() -> None:
    (port,) = free_ports(1)
    publisher = Publisher(KafkaSettings(bootstrap=f"127.0.0.1:{port}"), client_id="tests")
    publisher.start()
    with pytest.raises(NotHandedOver):
        await publisher.publish(envelope.encode(order_created()), timeout=0.1)
    async with asyncio.timeout(5):
        await publisher.close()
    assert not publisher.is_ready


async def test_closing_delivers_what_is_pending(kafka: KafkaSettings) -> None:
    publisher = await ready(Publisher(kafka, client_id="tests"))
    record = envelope.encode(order_created())
    await publisher.publish(envelope.encode(order_created()), timeout=10)  # it knows the partitions now
    async with engines.tail(kafka, topics.ORDERS) as tail:
        publishing = asyncio.create_task(publisher.publish(record, timeout=10))
        await asyncio.wait([publishing], timeout=0)
        await publisher.close()
        await publishing
        await tail.to_end()
    assert record.key in {each.key for each in tail.records}
