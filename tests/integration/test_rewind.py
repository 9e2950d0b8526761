"""Taking groups back after a restore: never forward, never while one works, and as far as effects may be lost."""

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import NewTopic, RecordsToDelete

from messaging import clients, rewind, topics
from messaging.rewind import GroupRunsError, Rewound
from messaging.window import MAX_SPAN
from settings import KafkaSettings
from tests import engines
from tests.builders import a_group

FIRST = TopicPartition(topics.ORDERS.name, 0)
FAR = 10 * MAX_SPAN


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> str:
    """The only group there is."""
    group = a_group()
    monkeypatch.setattr(rewind, "GROUPS", (group,))
    return group


async def gone_back(
    kafka: KafkaSettings, group: str, *, before: int, last: int | None, at: TopicPartition = FIRST
) -> Rewound:
    """Has the group stand somewhere, with a bitmap, and takes it back."""
    await engines.commit(kafka, group, {at: before}, metadata="1:AQ==")
    handled = {} if last is None else {(group, at.topic, at.partition): last}
    [done] = await rewind.rewind(kafka, handled)
    assert await engines.committed(kafka, group, at) == (done.now, ""), "what is done past it is not told"
    return done


async def test_a_group_goes_back_by_two_spans_before_its_last_outcome(kafka: KafkaSettings, group: str) -> None:
    done = await gone_back(kafka, group, before=FAR, last=FAR - 10)
    assert done == Rewound(group, "orders", 0, FAR, FAR - 10 - 2 * MAX_SPAN, 0)


async def test_no_further_than_the_beginning_and_without_an_outcome_to_it(kafka: KafkaSettings, group: str) -> None:
    assert (await gone_back(kafka, group, before=100, last=90)).now == 0
    assert (await gone_back(kafka, group, before=FAR, last=None)).now == 0


async def test_never_forward(kafka: KafkaSettings, group: str) -> None:
    """A group that was taken back before, or did not get far, stays where it is."""
    done = await gone_back(kafka, group, before=5, last=FAR)
    assert (done.before, done.now, done.gone) == (5, 5, 0)


async def make_topic(kafka: KafkaSettings, name: str, *, records: int = 0, deleted: int = 0) -> TopicPartition:
    """Makes a topic of one partition, of whose records Kafka has deleted some."""
    at = TopicPartition(name, 0)
    async with engines.started(clients.admin(kafka, client_id="tests")) as admin:
        await admin.create_topics([NewTopic(name, 1, 1)])
        async with engines.started(clients.idempotent_producer(kafka, client_id="tests")) as producer:
            for _ in range(records):
                await producer.send_and_wait(name, b"x", partition=0)
        if deleted:
            await admin.delete_records({at: RecordsToDelete(deleted)})
    return at


async def test_a_retry_topic_is_read_from_its_beginning(kafka: KafkaSettings, group: str) -> None:
    own = topics.retry_topics(group, kafka.retry_delay_seconds)[0].name
    at = await make_topic(kafka, own)
    assert (await gone_back(kafka, group, before=FAR, last=FAR, at=at)).now == 0


async def test_what_kafka_has_deleted_is_told(kafka: KafkaSettings, group: str) -> None:
    at = await make_topic(kafka, a_group(), records=20, deleted=15)
    done = await gone_back(kafka, group, before=20, last=9, at=at)
    assert (done.now, done.gone) == (15, 5)


async def test_a_group_that_works_is_told_and_left(kafka: KafkaSettings, group: str) -> None:
    await rewind.require_stopped(kafka)
    await engines.commit(kafka, group, {FIRST: 7})
    await rewind.require_stopped(kafka)
    consumer = clients.consumer(kafka, client_id="tests", group=group)
    consumer.subscribe([topics.ORDERS.name])
    async with engines.started(consumer):
        await engines.eventually(consumer.assignment, "a member with a partition")
        with pytest.raises(GroupRunsError, match=f"{group} has 1 members"):
            await rewind.require_stopped(kafka)
