"""`orderflow dlq discard` with many at once, as after a flood of records that are no events."""

import asyncio

import grpc
from typer.testing import CliRunner, Result

from cli.main import app
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from tests.console.system import System, system


async def discard(of: System, *ids: str) -> Result:
    arguments = ["dlq", "discard", *ids, "--reason", "junk", "--target", of.target]
    return await asyncio.to_thread(CliRunner().invoke, app, arguments)


def placed(of: System, count: int) -> list[str]:
    return [
        of.letters.add(DeadLetter(group="order-processor", error_class="UNDECODABLE", key=b"k")) for _ in range(count)
    ]


async def test_many_are_discarded_and_one_that_may_not_be_keeps_none_from_it() -> None:
    async with system() as of:
        first, second, third = placed(of, 3)
        assert (await discard(of, second)).exit_code == 0
        result = await discard(of, first, second, "0-999", third)
        assert result.exit_code == 64 + grpc.StatusCode.NOT_FOUND.value[0]
        assert result.stderr.splitlines()[0] == f"{first}: discarded"
        assert f"orderflow: {second}: FAILED_PRECONDITION" in result.stderr
        assert await of.letters.summary() == []


async def test_what_does_not_answer_ends_it_at_once() -> None:
    async with system() as of:
        ids = placed(of, 2)
        await of.stop_server()
        result = await discard(of, *ids)
        assert result.exit_code == 64 + grpc.StatusCode.UNAVAILABLE.value[0]
        assert ids[1] not in result.stderr
