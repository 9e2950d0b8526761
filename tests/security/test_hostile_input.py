"""Requests that nobody sends by accident: refused at the edge, and never INTERNAL or UNKNOWN."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from messaging import topics
from orderflow.orders.v1.order_service_pb2 import CreateOrderRequest
from settings import KafkaSettings
from storage.database import Database
from tests import engines
from tests.builders import a_request, an_item
from tests.security import messages
from tests.security.issuer import Issuer, bearer
from tests.security.methods import THERE, Answer, Method, call, named

BY_METHOD = pytest.mark.parametrize("method", THERE, ids=lambda method: method.name)
BUGS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
CREATE = named("CreateOrder")


@pytest.fixture
def admin(issuer: Issuer) -> tuple[tuple[str, str], ...]:
    return bearer(issuer.token("admin", "orders:admin"))


async def places_an_order(placing: grpc.aio.Channel, admin: tuple[tuple[str, str], ...]) -> None:
    """A good order passes still."""
    assert (await call(placing, CREATE, a_request(), admin)).code is grpc.StatusCode.OK


async def schema(database: Database) -> list[dict[str, object]]:
    columns = "select table_name, column_name, data_type from information_schema.columns"
    return await engines.fetch(database, f"{columns} where table_schema = 'public' order by 1, 2")


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [256 * 1024 + 1, 1024 * 1024 + 1, 4 * 1024 * 1024 + 1])
async def test_a_huge_message_is_refused_and_the_next_order_passes(
    placing: grpc.aio.Channel, admin: tuple[tuple[str, str], ...], size: int
) -> None:
    request = a_request(user_id="x" * size)
    answer = await call(placing, CREATE, request, admin)
    too_large_for_grpc = size > 4 * 1024 * 1024
    assert answer.code is (
        grpc.StatusCode.RESOURCE_EXHAUSTED if too_large_for_grpc else grpc.StatusCode.INVALID_ARGUMENT
    )
    for _ in range(6):  # some of them on the same partition
        await places_an_order(placing, admin)


@pytest.mark.parametrize(
    "fields",
    [
        {"items": [an_item(f"SKU-{number}") for number in range(5_000)]},
        {"labels": {f"k{number}": "v" for number in range(5_000)}},
        {"user_id": "x" * 200_000},
        {"request_id": "x" * 200_000},
        {"items": [an_item("x" * 200_000)]},
        {"muted_channels": [1] * 100_000},
    ],
    ids=["items", "labels", "user_id", "request_id", "sku", "muted_channels"],
)
async def test_what_fits_a_message_and_no_order_is_invalid(
    placing: grpc.aio.Channel, admin: tuple[tuple[str, str], ...], fields: dict[str, Any]
) -> None:
    answer = await call(placing, CREATE, a_request(**fields), admin)
    assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS")
    assert len(answer.status) < 8 * 1024


async def test_what_is_small_when_compressed_is_measured_when_it_is_not(
    placing: grpc.aio.Channel, admin: tuple[tuple[str, str], ...]
) -> None:
    bomb = a_request(user_id="x" * 16 * 1024 * 1024).SerializeToString()
    bombs = [call(placing, CREATE, bomb, admin, compression=grpc.Compression.Gzip) for _ in range(4)]
    assert {answer.code for answer in await asyncio.gather(*bombs)} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    await places_an_order(placing, admin)


# -- shapes ------------------------------------------------------------------------------------------------------------


@BY_METHOD
async def test_ten_thousand_levels_are_refused(
    placing: grpc.aio.Channel, admin: tuple[tuple[str, str], ...], method: Method
) -> None:
    start_group, end_group = b"\x9b\x06", b"\x9c\x06"  # field 99
    answer = await call(placing, method, start_group * 10_000 + end_group * 10_000, admin)
    assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNDECODABLE")


async def test_unknown_fields_go_no_further(
    placing: grpc.aio.Channel, kafka: KafkaSettings, admin: tuple[tuple[str, str], ...]
) -> None:
    canary = b"unknown-canary"
    unknown = b"\x9a\x06" + b"\xa0\x8d\x06" + (canary * 7143)[:100_000]  # field 99, 100,000 bytes
    async with engines.tail(kafka, topics.ORDERS) as tail:
        request = a_request()
        # In an item, too: an item of the request with nothing but unknown bytes in its first line.
        line = request.items[0].SerializeToString() + b"\x9a\x06\x0e" + canary
        del request.items[0]
        items = bytes([CreateOrderRequest.ITEMS_FIELD_NUMBER << 3 | 2, len(line)]) + line
        answer = await call(placing, CREATE, request.SerializeToString() + items + unknown, admin)
        assert answer.code is grpc.StatusCode.OK, answer
        await tail.to_end()
    (record,) = [each for each in tail.records if each.key == answer.response.order.order_id.encode()]
    assert canary not in record.value


async def test_what_only_the_server_sets_cannot_be_set(
    placing: grpc.aio.Channel, admin: tuple[tuple[str, str], ...]
) -> None:
    """The request has no such fields; what it has, put in as fields of an order, is ignored."""
    forbidden = {"order_id", "status", "payment_status", "total", "revision", "create_time", "etag", "name", "caller"}
    assert not forbidden & set(CreateOrderRequest.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize(
    "item",
    [
        {"amount_minor": -1},
        {"amount_minor": 2**63 - 1},
        {"quantity": 0},
        {"quantity": -1},
        {"quantity": 2**31 - 1},
        {"currency_code": "usd"},
        {"currency_code": "XXXX"},
        {"currency_code": ""},
    ],
    ids=str,
)
async def test_amounts_that_are_none(
    placing: grpc.aio.Channel, admin: tuple[tuple[str, str], ...], item: dict[str, Any]
) -> None:
    answer = await call(placing, CREATE, a_request(items=[an_item(**item)]), admin)
    assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS")


# -- texts -------------------------------------------------------------------------------------------------------------


@BY_METHOD
async def test_injected_sql_is_a_text_as_any_other(
    placing: grpc.aio.Channel, admin: tuple[tuple[str, str], ...], database: Database, method: Method
) -> None:
    before = await schema(database)
    for name, put in messages.string_fields(method):
        for text in messages.TEXTS:
            seen = []
            for each in (text, messages.shuffled(text)):
                request = messages.base(method)
                put(request, each)
                seen.append(comparable(await call(placing, method, request, admin)))
            assert seen[0] == seen[1], f"{name} = {text}"
            assert seen[0][0] not in BUGS, f"{name} = {text}"
    assert await schema(database) == before


def comparable(answer: Answer) -> tuple[object, ...]:
    """Returns what of an answer does not depend on ids that were made up for it."""
    if answer.response is None:
        return answer.code, answer.text, answer.status
    sizes = [len(value) for field, value in answer.response.ListFields() if field.is_repeated]
    return answer.code, sorted(field.name for field, _ in answer.response.ListFields()), sizes


@BY_METHOD
async def test_what_cannot_be_stored_is_refused_at_the_edge(
    placing: grpc.aio.Channel, admin: tuple[tuple[str, str], ...], method: Method
) -> None:
    for name, put in messages.string_fields(method):
        request = messages.base(method)
        put(request, "a\x00b")
        answer = await call(placing, method, request, admin)
        if method.name == "BatchCreateOrders" and answer.code is grpc.StatusCode.OK:
            assert answer.response.results[0].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0], name
        else:
            assert answer.code is grpc.StatusCode.INVALID_ARGUMENT or is_not_there(answer), name
        request = messages.base(method)
        put(request, "REPLACEHERE")
        surrogate = request.SerializeToString().replace(b"REPLACEHERE", b"REPLACE\xed\xa0\x80X")
        if b"\xed\xa0\x80" in surrogate:
            answer = await call(placing, method, surrogate, admin)
            assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNDECODABLE"), name


def is_not_there(answer: Answer) -> bool:
    """An id that is none may be told as one that is not there: nothing was looked up."""
    return answer.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("text", ["\r\nBcc: x@y.z", "a\u202eb", "\u2028", "\x1b[2J", "a\x85b", "\u2066x"])
async def test_control_and_direction_characters_are_refused(
    placing: grpc.aio.Channel, admin: tuple[tuple[str, str], ...], text: str
) -> None:
    for name, put in messages.string_fields(CREATE):
        request = messages.base(CREATE)
        put(request, text)
        answer = await call(placing, CREATE, request, admin)
        assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS"), name


@pytest.mark.parametrize("text", ["{{7*7}}", "<script>alert(1)</script>", "😀", "e\u0301" * 20, "{0}", "%n"])
async def test_text_that_is_only_odd_is_text(
    placing: grpc.aio.Channel, admin: tuple[tuple[str, str], ...], text: str
) -> None:
    answer = await call(placing, CREATE, a_request(user_id=text), admin)
    assert answer.response.order.user_id == text


# -- headers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metadata",
    [
        (("x-long", "x" * 17 * 1024),),
        tuple((f"x-{number}", "v") for number in range(10_000)),
        (("x-long-bin", b"\xff" * 17 * 1024),),
    ],
    ids=["17 KiB", "10,000 keys", "17 KiB of bytes"],
)
async def test_a_header_bomb_is_refused_and_a_neighbour_is_served(
    placing: grpc.aio.Channel, admin: tuple[tuple[str, str], ...], metadata: tuple[tuple[str, str | bytes], ...]
) -> None:
    answer = await call(placing, CREATE, a_request(), (*admin, *metadata))
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    await places_an_order(placing, admin)


@pytest.mark.parametrize(
    "metadata",
    [
        (("traceparent", "x" * 5000),),
        (("traceparent", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"), ("tracestate", "=,;" * 300)),
        (("x-correlation-id", 'x" , "level":"error'),),
        (("grpc-previous-rpc-attempts", "-1"),),
        (("grpc-previous-rpc-attempts", "not a number"),),
    ],
)
async def test_headers_that_we_read_may_be_anything(
    placing: grpc.aio.Channel, admin: tuple[tuple[str, str], ...], metadata: tuple[tuple[str, str], ...]
) -> None:
    assert (await call(placing, CREATE, a_request(), (*admin, *metadata))).code is grpc.StatusCode.OK


# -- anything ----------------------------------------------------------------------------------------------------------


@BY_METHOD
async def test_no_fields_of_any_value_are_a_bug(
    placing: grpc.aio.Channel, admin: tuple[tuple[str, str], ...], database: Database, method: Method
) -> None:
    before = await schema(database)

    @hypothesis_settings(
        max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
    )
    @given(request=messages.messages(method.request))
    def collect(request: Any) -> None:
        requests.append(request)

    requests: list[Any] = []
    collect()
    for request in requests:
        answer = await call(placing, method, request, admin)
        assert answer.code not in BUGS, request
    assert await schema(database) == before
    await places_an_order(placing, admin)


@BY_METHOD
async def test_no_bytes_are_a_bug(
    placing: grpc.aio.Channel, admin: tuple[tuple[str, str], ...], method: Method
) -> None:
    @hypothesis_settings(max_examples=40, deadline=None, database=None, derandomize=True)
    @given(data=st.binary(max_size=200))
    def collect(data: bytes) -> None:
        collected.append(data)

    collected: list[bytes] = []
    collect()
    for data in collected:
        answer = await call(placing, method, data, admin)
        assert answer.code not in BUGS, data
