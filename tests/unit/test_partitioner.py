"""A key's partition is the one that Kafka's own producers choose: orders stay where they are."""

import random

import pytest
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.partitioner import murmur2 as aiokafkas

from messaging.partitioner import murmur2, partition_of
from tests.builders import an_id


@pytest.mark.parametrize(
    ("key", "hashed"),
    [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536), (b"", 275646681)],
)
def test_it_is_the_hash_of_the_java_client(key: bytes, hashed: int) -> None:
    """The first three are from UtilsTest.java of Apache Kafka."""
    assert murmur2(key) == hashed % 2**32


def test_keys_of_every_length_go_where_aiokafka_sends_them() -> None:
    generator = random.Random(7)
    keys = [generator.randbytes(length) for length in range(100) for _ in range(5)] + [an_id().encode()]
    assert [murmur2(key) for key in keys] == [aiokafkas(key) for key in keys]
    theirs = DefaultPartitioner()
    for count in (1, 3, 12):
        partitions = list(range(count))
        assert [partition_of(key, partitions, partitions) for key in keys] == [
            theirs(key, partitions, partitions) for key in keys
        ]


def test_without_a_key_any_partition_that_is_available_will_do() -> None:
    assert {partition_of(None, [0, 1, 2], [2]) for _ in range(20)} == {2}
