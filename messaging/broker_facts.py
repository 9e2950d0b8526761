"""What brokers tell of themselves and of us: their release, and what we may do. aiokafka does not ask for either."""

import asyncio
import dataclasses
from collections.abc import Sequence
from io import BytesIO
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError, TopicAuthorizationFailedError, for_code
from aiokafka.protocol.admin import DescribeGroupsRequest_v3, DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request, RequestStruct, Response, ResponseHeader_v0
from aiokafka.protocol.metadata import MetadataResponse_v5
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    String,
    TaggedFields,
)

from messaging import aiokafka_internals, clients
from settings import KafkaSettings

READ: Final = "Read"
WRITE: Final = "Write"
DESCRIBE: Final = "Describe"
_OPERATIONS: Final = {READ: 3, WRITE: 4, DESCRIBE: 8}  # the codes of Kafka's AclOperation, which are bits in an answer

_REQUEST_SECONDS: Final = 5.0
_MOST_TRIES: Final = 20
_PAUSE_SECONDS: Final = 0.2
_FEATURE: Final = "metadata.version"
_RELEASES: Final = {21: "3.9", 25: "4.0", 27: "4.1", 29: "4.2", 30: "4.3", 33: "4.4"}
"""Releases by the highest metadata.version that they know, as Kafka's own `version-mapping` has them."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What they told.

    Attributes:
        releases: The release of each broker by its node id, such as `4.4`; with a `?` where it is between those known.
        topics: What we may do with each topic that was asked for: of READ, WRITE and DESCRIBE.
        groups: The same with each group.
    """

    releases: dict[int, str]
    topics: dict[str, frozenset[str]]
    groups: dict[str, frozenset[str]]


async def ask(kafka: KafkaSettings, *, topics: Sequence[str], groups: Sequence[str], client_id: str) -> Facts:
    """Asks once.

    Raises:
        KafkaError: Kafka is away, or refuses.
    """
    client = clients.bare(kafka, client_id=client_id, request_timeout=_REQUEST_SECONDS)
    admin = clients.admin(kafka, client_id=client_id)
    try:
        await client.bootstrap()
        releases = {broker.nodeId: release(await _level(client, broker.nodeId)) for broker in client.cluster.brokers()}
        may = await _may(client, topics)
        await admin.start()
        return Facts(releases, may, {group: await _may_with_group(client, admin, group) for group in groups})
    finally:
        await aiokafka_internals.close_client(client)
        await admin.close()


def release(level: int) -> str:
    """Returns the release that knows so high a metadata.version."""
    if level in _RELEASES:
        return _RELEASES[level]
    below = [known for known in _RELEASES if known < level]
    return f"{_RELEASES[max(below)]}?" if below else f"before {min(_RELEASES.values())}"


def allowed(bits: int) -> frozenset[str]:
    """Returns the operations that an answer allows."""
    return frozenset(name for name, code in _OPERATIONS.items() if bits >> code & 1)


async def _level(client: AIOKafkaClient, node_id: int) -> int:
    answer = await client.send(node_id, _VersionsRequest())
    features = answer.tags.get(0)
    if features is None:
        return 0
    known = _FEATURES.decode(BytesIO(features)) or []
    return max((highest for name, _, highest, _ in known if name == _FEATURE), default=0)


async def _may(client: AIOKafkaClient, topics: Sequence[str]) -> dict[str, frozenset[str]]:
    answer = await client.send(client.get_random_node(), _RightsRequest(topics))
    return {
        topic["topic"]: frozenset()
        if topic["error_code"] == TopicAuthorizationFailedError.errno
        else allowed(topic["authorized_operations"])
        for topic in answer.to_object()["topics"]
        if topic["error_code"] in (0, TopicAuthorizationFailedError.errno)
    }


async def _may_with_group(client: AIOKafkaClient, admin: AIOKafkaAdminClient, group: str) -> frozenset[str]:
    """Returns what we may do with a group. A cluster that never had one makes the topic for it first, and reads it."""
    for tries_left in reversed(range(_MOST_TRIES)):
        try:
            return await _told_of_group(client, int(await admin.find_coordinator(group)), group)
        except GroupAuthorizationFailedError:
            return frozenset()
        except KafkaError as error:
            if not error.retriable or not tries_left:
                raise
        await asyncio.sleep(_PAUSE_SECONDS)
    raise AssertionError


async def _told_of_group(client: AIOKafkaClient, coordinator: int, group: str) -> frozenset[str]:
    answer = await client.send(coordinator, _GroupRequest(group))
    ((code, *_, bits),) = answer.groups
    if code:
        raise for_code(code)(group)
    return allowed(bits)


_FEATURES: Final = CompactArray(
    ("name", CompactString("utf-8")), ("lowest", Int16), ("highest", Int16), ("tags", TaggedFields)
)


class _VersionsResponse(Response):  # type: ignore[misc]
    API_KEY = 18
    API_VERSION = 3
    SCHEMA = Schema(
        ("error_code", Int16),
        ("api_versions", CompactArray(("key", Int16), ("lowest", Int16), ("highest", Int16), ("tags", TaggedFields))),
        ("throttle_time_ms", Int32),
        ("tags", TaggedFields),
    )


class _VersionsStruct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 18
    API_VERSION = 3
    RESPONSE_TYPE = _VersionsResponse
    SCHEMA = Schema(
        ("software_name", CompactString("utf-8")), ("software_version", CompactString("utf-8")), ("tags", TaggedFields)
    )

    def parse_response_header(self, read_buffer: BytesIO | bytes) -> ResponseHeader_v0:
        """Reads the old header: this one response has it in every version, for clients that know no other."""
        return ResponseHeader_v0.decode(read_buffer)


class _VersionsRequest(Request[_VersionsStruct]):  # type: ignore[misc]
    API_KEY = 18

    def build(self, request_struct_class: type[_VersionsStruct]) -> _VersionsStruct:
        return request_struct_class("orderflow", "1", {})


_PARTITION: Final = Array(
    ("error_code", Int16),
    ("partition", Int32),
    ("leader", Int32),
    ("leader_epoch", Int32),
    ("replicas", Array(Int32)),
    ("isr", Array(Int32)),
    ("offline_replicas", Array(Int32)),
)


class _RightsResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        *zip(MetadataResponse_v5.SCHEMA.names[:4], MetadataResponse_v5.SCHEMA.fields[:4], strict=True),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String("utf-8")),
                ("is_internal", Boolean),
                ("partitions", _PARTITION),
                ("authorized_operations", Int32),
            ),
        ),
        ("cluster_authorized_operations", Int32),
    )


class _RightsStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _RightsResponse
    SCHEMA = Schema(
        ("topics", Array(String("utf-8"))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster", Boolean),
        ("include_topics", Boolean),
    )


class _RightsRequest(Request[_RightsStruct]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = list(topics)

    def build(self, request_struct_class: type[_RightsStruct]) -> _RightsStruct:
        return request_struct_class(self._topics, False, False, True)


class _GroupStruct(DescribeGroupsRequest_v3):  # type: ignore[misc]
    RESPONSE_TYPE = DescribeGroupsResponse_v3  # aiokafka reads the answer as that of version 2


class _GroupRequest(Request[_GroupStruct]):  # type: ignore[misc]
    API_KEY = 15

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, request_struct_class: type[_GroupStruct]) -> _GroupStruct:
        return request_struct_class([self._group], True)
