"""Requests of every shape, made from the descriptors."""

import base64
import random
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from orderflow.orders.v1.order_pb2 import Money
from tests.builders import a_request, an_id
from tests.security.methods import Method

TEXTS = (
    "' or '1'='1",
    "'; drop table order_views; --",
    '" or ""="',
    "1) union select null, version()--",
    "$1",
    "%s%n{0}",
    "\\'; select pg_sleep(10); --",
    "/**/or/**/1=1#",
    "0-0' and 1=cast((select caller from order_views limit 1) as int)--",
    "x' || (select string_agg(caller, ',') from order_views) || '",
)
"""What injection would do something with."""

Put = Callable[[Message, Any], None]


def base(method: Method) -> Message:
    """Returns a request that is as good as one can be without an order of the caller's."""
    request: Any = method.request()
    names = request.DESCRIPTOR.fields_by_name
    if method.name == "CreateOrder":
        request.CopyFrom(a_request())
    elif method.name == "BatchCreateOrders":
        request.requests.append(a_request(request_id=an_id()))
    elif method.name == "FindOrders":
        request.id = an_id()
    elif method.name == "BatchGetOrders":
        request.requests.add(order_id=an_id())
    if "order_id" in names:
        request.order_id = an_id()
    if "dead_letter_id" in names:
        request.dead_letter_id = "0-999999999"
    if "plan_id" in names:
        request.plan_id = an_id()
    if "reason" in names:
        request.reason = "TEST"
    if "carrier" in names:
        request.carrier = "Parcel Service"
    if method.path.startswith("orderflow.operations.v1.StockService/"):
        _complete(request, names)
    return request


def _complete(request: Any, names: Any) -> None:
    if "sku" in names:
        request.sku = "SKU-SECURITY"
    if "request_id" in names:
        request.request_id = an_id()
    if "available" in names:
        request.available = 10
    if "delta" in names:
        request.delta = 1
    if "price" in names:
        request.price.CopyFrom(Money(currency_code="EUR", amount_minor=1))
    if "currency_code" in names:
        request.currency_code = "EUR"


def string_fields(method: Method) -> Iterator[tuple[str, Put]]:
    """Yields every string in the method's request, however deep, with what puts a text there."""
    yield from _strings(method.request.DESCRIPTOR, "", lambda message: message)


def _strings(descriptor: Any, path: str, find: Callable[[Any], Any]) -> Iterator[tuple[str, Put]]:
    for field in descriptor.fields:
        name = f"{path}{field.name}"
        if field.type == FieldDescriptor.TYPE_STRING:
            yield name, _putting(find, field)
        elif field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.GetOptions().map_entry:
            yield f"{name}.key", lambda message, text, of=field: getattr(find(message), of.name).update({text: "v"})
            yield f"{name}.value", lambda message, text, of=field: getattr(find(message), of.name).update({"k": text})
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            yield from _strings(field.message_type, f"{name}.", _stepping(find, field))


def _putting(find: Callable[[Any], Any], field: FieldDescriptor) -> Put:
    def put(message: Message, text: str) -> None:
        if field.is_repeated:
            getattr(find(message), field.name).append(text)
        else:
            setattr(find(message), field.name, text)

    return put


def _stepping(find: Callable[[Any], Any], field: FieldDescriptor) -> Callable[[Any], Any]:
    def step(message: Any) -> Any:
        inner = getattr(find(message), field.name)
        if not field.is_repeated:
            return inner
        return inner[0] if inner else inner.add()

    return step


def shuffled(text: str) -> str:
    """Returns a text of the same characters that means nothing."""
    characters = list(text)
    random.Random(text).shuffle(characters)
    return "".join(characters)


# -- fuzzing -----------------------------------------------------------------------------------------------------------

_STRINGS = st.one_of(
    st.text(max_size=300),
    st.sampled_from(TEXTS),
    st.sampled_from(["0-0", "0-999999999999999999", "999999999-0", "EUR", "en", "\x00", "\u202e", "😀", "a" * 5000]),
    st.uuids().map(str),
    st.binary(max_size=60).map(lambda raw: base64.urlsafe_b64encode(raw).decode()),
)
_BITS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_ENUM: (-(2**31), 2**31 - 1),
}


def messages(kind: Any) -> st.SearchStrategy[Any]:
    """Returns messages of the type, each field absent or anything that fits it."""
    fields = {field.name: _values(field) for field in kind.DESCRIPTOR.fields}
    return st.fixed_dictionaries({}, optional=fields).map(lambda chosen: kind(**chosen))


def _values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.GetOptions().map_entry:
        return st.dictionaries(_STRINGS, _STRINGS, max_size=3)
    one = _single(field)
    return st.lists(one, max_size=3) if field.is_repeated else one


def _single(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return messages(field.message_type._concrete_class)
    if field.type == FieldDescriptor.TYPE_STRING:
        return _STRINGS
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=200)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    low, high = _BITS[field.type]
    return st.one_of(st.integers(low, high), st.integers(max(low, -2), 5), st.sampled_from([low, high]))
