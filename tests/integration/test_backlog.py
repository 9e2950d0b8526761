"""How far a group is behind, seen from outside, on a real Kafka."""

import base64

from aiokafka import TopicPartition

from messaging import backlog, clients
from messaging.backlog import Backlog
from messaging.topics import ORDERS, PAYMENTS, Topic, retry_topics
from orderflow.events.v1.order_event_pb2 import OrderEventType
from settings import KafkaSettings
from tests import engines
from tests.builders import a_group, an_order, order_event

FIRST = TopicPartition(ORDERS.name, 0)


async def look(kafka: KafkaSettings, group: str, *topics: Topic) -> dict[TopicPartition, Backlog]:
    places = await backlog.committed(kafka, group, topics)
    return {each.partition: each for each in await backlog.backlogs(kafka, topics, places)}


async def send(kafka: KafkaSettings, count: int) -> None:
    """Puts events of different orders on the first partition."""
    ids = engines.order_ids(count, ORDERS)
    kind = OrderEventType.ORDER_EVENT_TYPE_ORDER_PROCESSING
    await engines.send_events(kafka, [order_event(kind, an_order(order_id=each)) for each in ids])


async def test_of_a_group_that_never_started_nothing_is_known(kafka: KafkaSettings) -> None:
    found = await look(kafka, a_group(), ORDERS)
    assert list(found.values()) == [Backlog(each, is_known=False) for each in engines.partitions_of([ORDERS])]


async def test_the_oldest_record_that_is_not_done_counts(kafka: KafkaSettings) -> None:
    group = a_group()
    places = await engines.start_at_end(kafka, group, ORDERS, PAYMENTS)
    assert set((await look(kafka, group, ORDERS, PAYMENTS)).values()) == {Backlog(each) for each in places}
    await send(kafka, 3)
    async with engines.started(clients.consumer(kafka, client_id="tests", group=None)) as consumer:
        consumer.assign([FIRST])
        consumer.seek(FIRST, places[FIRST])
        records = []
        while len(records) < 3:
            records += (await consumer.getmany(timeout_ms=100)).get(FIRST, [])
    first, second, third = records

    found = await look(kafka, group, ORDERS, PAYMENTS)
    assert found.pop(FIRST) == Backlog(FIRST, records=3, since=first.timestamp / 1000)
    assert not any(each.records for each in found.values())

    # The second is done before the first; once the first is done too, the third is the oldest.
    done = "1:" + base64.b64encode(bytes([0b01])).decode()
    await engines.commit(kafka, group, {FIRST: second.offset}, metadata=done)
    found = await look(kafka, group, ORDERS, PAYMENTS)
    assert found[FIRST] == Backlog(FIRST, records=1, since=third.timestamp / 1000)


async def test_a_marker_behind_the_last_record_is_no_backlog(kafka: KafkaSettings) -> None:
    group = a_group()
    places = await engines.start_at_end(kafka, group, ORDERS)
    producer = clients.transactional_producer(kafka, client_id="tests", transactional_id=a_group(), timeout_ms=5_000)
    async with engines.started(producer), producer.transaction():
        await producer.send_and_wait(ORDERS.name, b"whatever", partition=0)
    ends = await engines.ends(kafka, ORDERS)
    assert ends[FIRST] >= places[FIRST] + 2, "a record and its marker"
    await engines.commit(kafka, group, {FIRST: places[FIRST] + 1})
    assert (await look(kafka, group, ORDERS))[FIRST] == Backlog(FIRST)


async def test_a_record_on_a_retry_topic_waits_from_when_it_is_due(kafka: KafkaSettings) -> None:
    topic, *_ = retry_topics("notification-sms", (10, 300))
    (at,) = engines.partitions_of([topic])
    places = await engines.ends(kafka, topic)
    async with engines.started(clients.idempotent_producer(kafka, client_id="tests")) as producer:
        written = await producer.send_and_wait(topic.name, b"parked")
    (found,) = await backlog.backlogs(kafka, [topic], {at: (places[at], "")})
    assert found == Backlog(at, records=1, since=written.timestamp / 1000 + 10)


async def test_a_place_outside_of_what_kafka_has_is_lost(kafka: KafkaSettings) -> None:
    ends = await engines.ends(kafka, PAYMENTS)
    at = TopicPartition(PAYMENTS.name, 1)
    places = dict.fromkeys(ends, (0, "")) | {at: (ends[at] + 1_000, "")}
    found = {each.partition: each for each in await backlog.backlogs(kafka, [PAYMENTS], places)}
    assert found[at] == Backlog(at, is_lost=True)
    assert not any(each.is_lost for partition, each in found.items() if partition != at)
