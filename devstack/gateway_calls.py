"""How a call of the gateway goes: the time that it takes, and what goes wrong with it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

from aiohttp import web
from aiohttp.typedefs import Handler

from devstack.gateway_door import Outages, reset
from devstack.gateway_faults import Call, Faults

_GIVEN_UP_POLL_SECONDS = 0.25


class Calls:
    """Applies the faults in force to the calls that move money, and their latencies to all.

    Args:
        latency: seconds that each call takes.
        seed: of the faults; see `Call`.
        key_ttl: seconds for which a key replays a stored 500.
    """

    def __init__(self, *, latency: float, seed: int, key_ttl: float) -> None:
        self.outages: Outages
        self._latency = latency
        self._seed = seed
        self._key_ttl = key_ttl
        self._attempts: dict[str, int] = {}
        self._stored_errors: dict[str, float] = {}

    @property
    def faults(self) -> Faults:
        """The faults in force."""
        return self.outages.faults

    async def execute(
        self,
        request: web.Request,
        key: str,
        decide: Callable[[Call], Awaitable[web.StreamResponse]],
        *,
        is_known: Callable[[], bool],
        fail: Callable[[int], NoReturn],
    ) -> web.StreamResponse:
        """A call that moves money.

        Args:
            request: the call.
            key: its idempotency key.
            decide: executes, and returns the answer once it may be told.
            is_known: whether something has executed under the key.
            fail: answers with the status 500 or 503.
        """
        attempt = self._attempts[key] = self._attempts.get(key, 0) + 1
        call = Call(self._seed, key, attempt)
        slow = call.strikes("slow", self.faults.slow_rate)
        await self.take_time(request, self.faults.slow_seconds if slow else 0.0)
        faults = self.faults

        if call.strikes("hang", faults.hang_rate):
            await _never_answer(request)
        if call.strikes("reset_before", faults.reset_before_rate):
            _cut_off(request)
        if call.strikes("transient_error", faults.transient_error_rate):
            fail(503)
        if self._is_error_stored(call, is_known):
            fail(500)
        answer = await decide(call)
        if call.strikes("time_out", faults.time_out_rate):
            await _never_answer(request)
        if call.strikes("reset_after", faults.reset_after_rate):
            _cut_off(request)
        if call.strikes("drop", faults.drop_reply_rate):
            _hang_up(request)
        return answer

    def _is_error_stored(self, call: Call, is_known: Callable[[], bool]) -> bool:
        """Whether a 500 stands under the key, from now on or from before."""
        stored_at = self._stored_errors.get(call.key)
        if stored_at is not None and time.time() < stored_at + self._key_ttl:
            return True
        if is_known() or not call.strikes("error", self.faults.error_rate):
            return False
        self._stored_errors[call.key] = time.time()
        return True

    async def take_time(self, request: web.Request, longer: float = 0.0) -> None:
        """Wait as long as the call takes; for ever in an outage that hangs."""
        if self.outages.is_hanging:
            await _never_answer(request)
        seconds = self._latency + self.faults.latency_seconds + longer
        if seconds > 0:
            await asyncio.sleep(seconds)
            if self.outages.is_hanging:
                await _never_answer(request)


class _NoAnswerError(Exception):
    """The caller gets no answer to this call."""


@web.middleware
async def without_answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Ends calls that get no answer."""
    try:
        return await handler(request)
    except _NoAnswerError:
        return web.Response()  # goes nowhere: the connection is closed


def _cut_off(request: web.Request) -> NoReturn:
    reset(request.transport)
    raise _NoAnswerError


def _hang_up(request: web.Request) -> NoReturn:
    if request.transport is not None:
        request.transport.abort()
    raise _NoAnswerError


async def _never_answer(request: web.Request) -> NoReturn:
    """Wait until the caller gives up."""
    while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(_GIVEN_UP_POLL_SECONDS)
    raise _NoAnswerError
