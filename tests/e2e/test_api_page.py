"""Every method of all services, called with the grpcurl lines that the docs show."""

import json
import pathlib
import re
import shlex
from typing import Any, Final

from devstack.system import System
from orderflow.operations.v1 import dead_letter_service_pb2, stock_service_pb2
from orderflow.orders.v1 import order_service_pb2
from tests.e2e import observer, programs

_ROOT: Final = pathlib.Path(__file__).resolve().parents[2]
_WRITTEN_FOR: Final = "127.0.0.1:50051"
_STEMS_FROM: Final = {"ORDER_ID": "orderId", "TOKEN": "consistencyToken", "PLAN_ID": "planId"}


def lines_of(*pages: str) -> list[list[str]]:
    """Returns the grpcurl lines of documents, as a shell splits them."""
    found = re.findall(r"^\s*(grpcurl .*)$", "\n".join((_ROOT / page).read_text() for page in pages), re.MULTILINE)
    return [shlex.split(line) for line in found]


def methods() -> set[str]:
    return {
        f"{service.full_name}/{method.name}"
        for file in (order_service_pb2.DESCRIPTOR, dead_letter_service_pb2.DESCRIPTOR, stock_service_pb2.DESCRIPTOR)
        for service in file.services_by_name.values()
        for method in service.methods
    }


def test_the_docs_have_a_line_for_every_method() -> None:
    assert {line[-1] for line in lines_of("docs/api.md")} == methods()


async def test_every_line_of_the_docs_works(healthy: System) -> None:
    bootstrap = f"127.0.0.1:{healthy.ports.kafka}"
    await observer.write(bootstrap, "payments", [(b"nobody", b"\xff not an event"), (b"nobody", b"\xff nor this")])

    async def letters() -> list[str]:
        answer = await call(healthy, ["{}"], "orderflow.operations.v1.DeadLetterService/ListDeadLetters")
        return [
            each["deadLetterId"]
            for each in answer.get("deadLetters", [])
            if each["deadLetter"]["errorClass"] == "UNDECODABLE"
        ]

    async def enough() -> bool:
        return len(await letters()) >= 4  # two records, and two groups that read the topic

    await observer.eventually(enough, within=20, what="dead letters")
    known = {"CANCELLED_ID": await placed(healthy), "PAID_ID": await paid(healthy)}
    for line in lines_of("README.md", "docs/api.md"):
        request, method = line[line.index("-d") + 1], line[-1]
        assert line[-2] == _WRITTEN_FOR
        if "DEAD_LETTER_ID" in request:
            known["DEAD_LETTER_ID"] = (await letters())[0]
        if request == '{"order_id":"..."}':
            request = '{"order_id":"ORDER_ID"}'
            token = {"order_id": known["ORDER_ID"], "consistency_token": known["TOKEN"]}
            await call(healthy, [json.dumps(token)], "orderflow.orders.v1.OrderService/GetOrder")
        for name in sorted(known, key=len, reverse=True):
            request = request.replace(name, known[name])
        answer = await call(healthy, [request], method)
        for name, field in _STEMS_FROM.items():
            for value in values(answer, field):
                known[name] = value


async def placed(system: System) -> str:
    """Places the first order of the docs, without its request_id, and returns its id."""
    request = json.loads(lines_of("docs/api.md")[0][3])
    del request["request_id"]
    answer = await call(system, [json.dumps(request)], "orderflow.orders.v1.OrderService/CreateOrder")
    return str(answer["order"]["orderId"])


async def paid(system: System) -> str:
    order_id = await placed(system)

    async def is_paid() -> bool:
        request = json.dumps({"user_id": "u-1", "statuses": ["ORDER_STATUS_PAID"]})
        answer = await call(system, [request], "orderflow.orders.v1.OrderService/ListOrders")
        return order_id in values(answer, "orderId")

    await observer.eventually(is_paid, within=20, what="a paid order")
    return order_id


def values(answer: Any, field: str) -> list[str]:
    """Returns all values that a field has anywhere in an answer."""
    if isinstance(answer, dict):
        own = [answer[field]] if isinstance(answer.get(field), str) else []
        return own + [each for inner in answer.values() for each in values(inner, field)]
    return [each for inner in answer for each in values(inner, field)] if isinstance(answer, list) else []


async def call(system: System, request: list[str], method: str) -> dict[str, Any]:
    """Calls a method with grpcurl, by reflection, and returns its answer; of a stream the last one."""
    code, out, err = await programs.run(
        programs.program("grpcurl"), "-plaintext", "-d", *request, system.server_address, method
    )
    assert code == 0, f"{method} {request}: {err}"
    text, last = out.decode().strip(), {}
    while text:
        last, end = json.JSONDecoder().raw_decode(text)
        text = text[end:].lstrip()
    return last
