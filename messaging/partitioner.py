"""Which partition a key belongs to: the one that Kafka's own producers choose.

aiokafka's partitioner says the same in twice the time, and every record goes through it.
"""

import struct
from collections.abc import Sequence
from typing import Final

from aiokafka.partitioner import DefaultPartitioner

_MIX: Final = 0x5BD1E995
_SEED: Final = 0x9747B28C
_32_BITS: Final = 0xFFFFFFFF


def partition_of(key: bytes | None, all_partitions: Sequence[int], available: Sequence[int]) -> int:
    """Returns one of all partitions by the key's hash; without a key any that is available."""
    if key is None:
        partition: int = DefaultPartitioner()(None, all_partitions, available)
        return partition
    return all_partitions[(murmur2(key) & 0x7FFFFFFF) % len(all_partitions)]


def murmur2(key: bytes) -> int:
    """Returns the key's 32-bit MurmurHash2, with the seed that Kafka uses."""
    words = len(key) // 4
    mixed = _SEED ^ len(key)
    for word in struct.unpack_from(f"<{words}I", key):
        word = word * _MIX & _32_BITS
        mixed = (mixed * _MIX ^ (word ^ word >> 24) * _MIX) & _32_BITS
    if rest := key[words * 4 :]:
        mixed = (mixed ^ int.from_bytes(rest, "little")) * _MIX & _32_BITS
    mixed = (mixed ^ mixed >> 13) * _MIX & _32_BITS
    return mixed ^ mixed >> 15
