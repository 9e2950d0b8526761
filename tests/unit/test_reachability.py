"""Whether the brokers that answer are enough for an acknowledgement."""

import pytest

from messaging import clients
from messaging.reachability import Replicas, ask_brokers, can_acknowledge
from settings import KafkaSettings

THREE = frozenset({1, 2, 3})


@pytest.mark.parametrize(
    ("in_sync", "answering", "enough"),
    [
        ({1, 2, 3}, {1, 2, 3}, True),
        ({1, 2, 3}, {2, 3}, True),
        ({1, 2, 3}, {3}, False),  # the one that is left still takes the others for alive
        ({1, 3}, {2, 3}, False),  # one is back, and has not caught up
        ({2, 3}, {2, 3}, True),
        ({3}, {1, 2, 3}, False),
        ({1, 2, 3}, set(), False),
    ],
)
def test_two_of_three_have_to_be_in_sync_and_to_answer(in_sync: set[int], answering: set[int], enough: bool) -> None:
    assert can_acknowledge(Replicas(THREE, frozenset(in_sync)), answering, min_insync=2) is enough


def test_a_topic_of_one_replica_needs_that_one_only() -> None:
    alone = Replicas(frozenset({2}), frozenset({2}))
    assert can_acknowledge(alone, {2}, min_insync=2)
    assert not can_acknowledge(alone, {1, 3}, min_insync=2)


async def test_a_broker_that_names_no_brokers_yet_is_away() -> None:
    client = clients.bare(KafkaSettings(bootstrap="127.0.0.1:1"), client_id="tests", request_timeout=1)
    try:
        assert not client.cluster.brokers()
        assert await ask_brokers(client, ["orders"]) == {}
    finally:
        await client.close()
