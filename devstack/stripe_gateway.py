"""The gateway as Stripe shows itself: `python -m devstack.gateway --dialect stripe`.

It is that part of Stripe's API which workers.gateways.stripe uses, with the memory that stripe-mock does not have:

    POST /v1/payment_intents               unconfirmed; the payment methods are those of the book
    GET  /v1/payment_intents               of a time
    GET  /v1/payment_intents/{id}
    POST /v1/payment_intents/{id}/confirm  moves money
    POST /v1/payment_intents/{id}/cancel
    POST /v1/refunds                       moves money
    GET  /v1/refunds?payment_intent=...    or of a time, created[gte] and created[lt], with expand[]=data.charge
    GET  /v1/charges                       of a time

Requests are form-encoded, errors have Stripe's form. An idempotency key replays its first answer, a decline, a refusal
or a 500 included, for as long as keys last; with other parameters it is refused, and 409 while the first call is under
way. Faults strike what moves money, by the idempotency key of the call. Restarted, it knows all objects, and of the
answers only those that follow from them.

With --webhook-url charges are reported there, signed, until the report is answered with 2xx: --webhook-copies times,
and out of order with --webhook-disorder-seconds.
"""

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import json
import random
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler

from devstack.gateway_calls import Calls
from devstack.gateway_faults import Call
from devstack.gateway_journal import Journal
from devstack.stripe_account import Account, IntentMade, decline
from workers.gateways.book import Book
from workers.gateways.gateway import GatewayRefused

_METADATA = re.compile(r"metadata\[([^\]]{1,40})\]")
_CREATE = {
    "amount",
    "currency",
    "payment_method",
    "automatic_payment_methods[enabled]",
    "automatic_payment_methods[allow_redirects]",
}
_CONFIRM = {"error_on_requires_action", "payment_method", "off_session", "return_url"}
_REFUND = {"payment_intent", "amount"}
_PAGING = {"created[gte]", "created[lt]", "limit", "starting_after"}
_DELIVERY_SECONDS = 5.0
_MOST_BACKOFF_SECONDS = 2.0

_Form = dict[str, str]


@dataclass(frozen=True)
class _Answer:
    status: int
    body: dict[str, Any]
    asked: tuple[str, _Form]
    time: float


class StripeServer:
    """The API over an account.

    Args:
        account: the objects.
        journal: of the book's executions; synced before each answer.
        calls: how they go.
        key_ttl: seconds for which an idempotency key replays its answer.
        report: told of a charge's event, when it is on disk.
    """

    def __init__(
        self,
        account: Account,
        journal: Journal,
        calls: Calls,
        *,
        key_ttl: float,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self._account = account
        self._journal = journal
        self._calls = calls
        self._key_ttl = key_ttl
        self._report = report
        self._answers: dict[str, _Answer] = {}
        self._under_way: set[str] = set()

    def routes(self) -> list[web.RouteDef]:
        """What callers see."""
        return [
            web.post("/v1/payment_intents", _served(self._create)),
            web.get("/v1/payment_intents", _served(self._intents)),
            web.get("/v1/payment_intents/{id}", _served(self._retrieve)),
            web.post("/v1/payment_intents/{id}/confirm", _served(self._confirm)),
            web.post("/v1/payment_intents/{id}/cancel", _served(self._cancel)),
            web.post("/v1/refunds", _served(self._refund)),
            web.get("/v1/refunds", _served(self._refunds)),
            web.get("/v1/charges", _served(self._charges)),
        ]

    # -- what moves no money -----------------------------------------------------------------------------------------

    async def _create(self, request: web.Request) -> web.StreamResponse:
        async def decide(form: _Form) -> tuple[int, dict[str, Any]]:
            _allow(form, _CREATE)
            amount = _positive(form, "amount")
            if not re.fullmatch(r"[a-z]{3}", form.get("currency", "")):
                _refuse(400, message="Invalid currency", param="currency")
            key = _key(request)
            made = self._account.made_under(key)  # before a restart
            if made is None or time.time() >= made.time + self._key_ttl:
                made = self._account.make(
                    key,
                    amount=amount,
                    currency=form["currency"],
                    payment_method=form.get("payment_method", ""),
                    metadata=_metadata(form),
                )
            return 200, self._account.show(made)

        await self._calls.take_time(request)
        return await self._idempotent(request, decide)

    async def _retrieve(self, request: web.Request) -> web.StreamResponse:
        await self._calls.take_time(request)
        _authenticated(request)
        return await self._answered(200, self._account.show(self._intent(request.match_info["id"])))

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        async def decide(form: _Form) -> tuple[int, dict[str, Any]]:
            _allow(form, set())
            intent = self._intent(request.match_info["id"])
            key = await self._take_key(intent)
            status = self._account.status(intent)
            # Of one that has succeeded too: nothing more is charged under the key, and the journal tells who asked.
            self._account.book.close(key)
            if status in ("succeeded", "canceled"):
                self._refuse_state(intent)
            return 200, self._account.show(intent)

        await self._calls.take_time(request)
        return await self._idempotent(request, decide)

    async def _refunds(self, request: web.Request) -> web.StreamResponse:
        await self._calls.take_time(request)
        asked = _asked(request, _PAGING | {"payment_intent", "expand[0]"})
        if intent_id := asked.get("payment_intent"):
            return await self._page(request, self._account.refunds(self._intent(intent_id)))
        since, until = _created(asked)
        whole = asked.get("expand[0]") == "data.charge"
        return await self._page(request, self._account.refunds_of_time(since, until, with_charge=whole))

    async def _charges(self, request: web.Request) -> web.StreamResponse:
        await self._calls.take_time(request)
        since, until = _created(_asked(request, _PAGING))
        return await self._page(request, self._account.charges_of_time(since, until))

    async def _intents(self, request: web.Request) -> web.StreamResponse:
        await self._calls.take_time(request)
        since, until = _created(_asked(request, _PAGING))
        return await self._page(request, self._account.intents_of_time(since, until))

    async def _page(self, request: web.Request, found: list[dict[str, Any]]) -> web.StreamResponse:
        if after := request.query.get("starting_after"):
            found = found[[each["id"] for each in found].index(after) + 1 :]
        limit = int(request.query.get("limit", "10"))
        page = {"object": "list", "url": request.path, "data": found[:limit], "has_more": len(found) > limit}
        return await self._answered(200, page)

    # -- what does ---------------------------------------------------------------------------------------------------

    async def _confirm(self, request: web.Request) -> web.StreamResponse:
        async def decide(form: _Form, call: Call) -> tuple[int, dict[str, Any]]:
            _allow(form, _CONFIRM)
            intent = self._intent(request.match_info["id"])
            key = await self._take_key(intent)
            if self._account.status(intent) != "requires_confirmation":
                self._refuse_state(intent)
            charge = self._account.book.charge(
                key,
                order_id=intent.metadata.get("order_id", ""),
                amount_minor=intent.amount,
                currency_code=intent.currency.upper(),
                payment_method=intent.payment_method,
                declined=call.strikes_key("decline", self._calls.faults.decline_rate),
            )
            shown = self._account.show(intent)
            await self._on_disk()
            event = self._account.event(intent)
            assert event is not None
            self._report(event)
            return (200, shown) if charge.approved else (402, {"error": {**decline(charge), "payment_intent": shown}})

        def is_known() -> bool:
            intent = self._account.intent(request.match_info["id"])
            return intent is not None and self._account.status(intent) != "requires_confirmation"

        return await self._execute(request, decide, is_known)

    async def _refund(self, request: web.Request) -> web.StreamResponse:
        async def decide(form: _Form, _: Call) -> tuple[int, dict[str, Any]]:
            _allow(form, _REFUND)
            intent = self._intent(form.get("payment_intent", ""))
            charge = self._account.charge(intent)
            key = _key(request)
            try:
                refund = self._account.book.refund(
                    key,
                    charge_reference="" if charge is None else charge.reference,
                    amount_minor=_positive(form, "amount"),
                )
            except GatewayRefused as refused:
                if refused.error_class == "GATEWAY_KEY_REUSED":
                    _refuse_reuse()
                code = "charge_already_refunded" if refused.error_class == "GATEWAY_REFUND_TOO_LARGE" else None
                _refuse(400, code=code, message=refused.message)
            self._account.label(key, _metadata(form))
            return 200, self._account.show_refund(refund, intent)

        return await self._execute(request, decide, lambda: self._account.book.knows(_key(request)))

    async def _execute(
        self,
        request: web.Request,
        decide: Callable[[_Form, Call], Awaitable[tuple[int, dict[str, Any]]]],
        is_known: Callable[[], bool],
    ) -> web.StreamResponse:
        key = _key(request)
        if key in self._under_way:
            _refuse_conflict()
        self._under_way.add(key)

        async def decided(call: Call) -> web.StreamResponse:
            try:
                return await self._remembered(request, lambda form: decide(form, call))
            finally:
                self._under_way.discard(key)

        try:
            return await self._calls.execute(
                request, key, decided, is_known=lambda: key in self._answers or is_known(), fail=_fail
            )
        finally:
            self._under_way.discard(key)

    # -- answers -----------------------------------------------------------------------------------------------------

    async def _idempotent(
        self, request: web.Request, decide: Callable[[_Form], Awaitable[tuple[int, dict[str, Any]]]]
    ) -> web.StreamResponse:
        key = _key(request)
        if key in self._under_way:
            _refuse_conflict()
        self._under_way.add(key)
        try:
            return await self._remembered(request, decide)
        finally:
            self._under_way.discard(key)

    async def _remembered(
        self, request: web.Request, decide: Callable[[_Form], Awaitable[tuple[int, dict[str, Any]]]]
    ) -> web.StreamResponse:
        """Decides, or answers again what stands under the key."""
        _authenticated(request)
        form = {name: str(value) for name, value in (await request.post()).items()}
        key, asked = _key(request), (request.path, form)
        stored = self._answers.get(key)
        if stored is None or time.time() >= stored.time + self._key_ttl:
            try:
                status, body = await decide(form)
            except _RefusedError as refused:
                if not refused.is_stored:
                    raise
                status, body = refused.status, refused.body
            stored = self._answers[key] = _Answer(status, body, asked, time.time())
        elif stored.asked != asked:
            _refuse_reuse()
        return await self._answered(stored.status, stored.body)

    async def _answered(self, status: int, body: dict[str, Any]) -> web.StreamResponse:
        await self._on_disk()
        return _response(status, body)

    async def _on_disk(self) -> None:
        await self._account.sync()
        await self._journal.sync()

    async def _take_key(self, intent: IntentMade) -> str:
        # On disk before the journal tells of the charge: restarted, it knows which PaymentIntent it was.
        key = self._account.take_key(intent)
        await self._account.sync()
        return key

    def _intent(self, intent_id: str) -> IntentMade:
        intent = self._account.intent(intent_id)
        if intent is None:
            _refuse(404, code="resource_missing", message="No such payment_intent", param="intent")
        return intent

    def _refuse_state(self, intent: IntentMade) -> NoReturn:
        body = {
            "type": "invalid_request_error",
            "code": "payment_intent_unexpected_state",
            "message": f"This PaymentIntent's status is {self._account.status(intent)}.",
            "payment_intent": self._account.show(intent),
        }
        raise _RefusedError(400, body, is_stored=True)


class Reports:
    """Delivers events to a webhook.

    Args:
        account: remembers what was delivered.
        url: where they go; None: nowhere.
        secret: what they are signed with.
        copies: how often each is delivered.
        disorder: each delivery waits for up to so many seconds.
        seed: of the waits.
    """

    def __init__(
        self, account: Account, *, url: str | None, secret: str, copies: int, disorder: float, seed: int
    ) -> None:
        self._account = account
        self._url = url
        self._secret = secret.encode()
        self._copies = copies
        self._disorder = disorder
        self._dice = random.Random(seed)  # noqa: S311 - chooses waits, guards nothing
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Begin, with what was left over when it ended."""
        if self._url is not None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_DELIVERY_SECONDS))
            for event in list(self._account.undelivered()):
                self.send(event)

    def send(self, event: dict[str, Any]) -> None:
        """Deliver the event, now or when the webhook answers."""
        if self._session is not None:
            task = asyncio.create_task(self._deliver(self._session, event))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Leave the rest for the next time."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _deliver(self, session: aiohttp.ClientSession, event: dict[str, Any]) -> None:
        await asyncio.gather(*(self._deliver_once(session, event) for _ in range(self._copies)))
        self._account.delivered(event["id"])
        await self._account.sync()

    async def _deliver_once(self, session: aiohttp.ClientSession, event: dict[str, Any]) -> None:
        assert self._url is not None
        await asyncio.sleep(self._dice.uniform(0, self._disorder))
        payload, backoff = json.dumps(event).encode(), 0.1
        while True:
            headers = {"Stripe-Signature": signature(payload, self._secret), "Content-Type": "application/json"}
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.post(self._url, data=payload, headers=headers) as response:
                    if 200 <= response.status < 300:
                        return
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, _MOST_BACKOFF_SECONDS)


def signature(payload: bytes, secret: bytes, *, at: float | None = None) -> str:
    """The header Stripe-Signature of a payload that is signed now, or at a time."""
    moment = int(time.time() if at is None else at)
    digest = hmac.new(secret, f"{moment}.".encode() + payload, hashlib.sha256).hexdigest()
    return f"t={moment},v1={digest}"


@contextlib.asynccontextmanager
async def opened(
    book: Book, journal: Journal, calls: Calls, arguments: argparse.Namespace
) -> AsyncIterator[list[web.RouteDef]]:
    """The routes of a gateway that speaks like this, over the journal's file and one beside it."""
    account = Account(book, arguments.journal.with_suffix(".stripe.jsonl"))
    reports = Reports(
        account,
        url=arguments.webhook_url,
        secret=arguments.webhook_secret,
        copies=arguments.webhook_copies,
        disorder=arguments.webhook_disorder_seconds,
        seed=arguments.seed,
    )
    try:
        await reports.open()
        server = StripeServer(account, journal, calls, key_ttl=arguments.key_ttl_seconds, report=reports.send)
        yield server.routes()
    finally:
        await reports.aclose()
        account.close()


class _RefusedError(Exception):
    """An answer with an error. It stands under the key if the call was begun."""

    def __init__(self, status: int, error: dict[str, Any], *, is_stored: bool = False) -> None:
        super().__init__(status)
        self.status = status
        self.body = {"error": error}
        self.is_stored = is_stored


def _served(handler: Handler) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        await request.post()  # kept: a caller that has gone before the call is decided cannot be asked any more
        try:
            return await handler(request)
        except _RefusedError as refused:
            return _response(refused.status, refused.body)

    return answer


def _key(request: web.Request) -> str:
    return request.headers.get("Idempotency-Key", "")


def _metadata(form: _Form) -> dict[str, str]:
    return {match[1]: value for name, value in form.items() if (match := _METADATA.fullmatch(name))}


def _positive(form: _Form, name: str) -> int:
    text = form.get(name, "")
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        _refuse(400, code="parameter_invalid_integer" if text else "parameter_missing", message=name, param=name)
    return int(text)


def _allow(form: _Form, names: set[str]) -> None:
    for name in form:
        if name not in names and not _METADATA.fullmatch(name):
            _refuse(400, code="parameter_unknown", message=f"Received unknown parameter: {name}", param=name)


def _asked(request: web.Request, names: set[str]) -> _Form:
    _authenticated(request)
    asked = dict(request.query)
    _allow(asked, names)
    return asked


def _created(asked: _Form) -> tuple[int, int]:
    return int(asked.get("created[gte]", "0")), int(asked.get("created[lt]", str(2**40)))


def _authenticated(request: web.Request) -> None:
    if not request.headers.get("Authorization", "").startswith("Bearer sk_"):
        raise _RefusedError(401, {"type": "invalid_request_error", "message": "Invalid API Key provided"})


def _refuse(status: int, *, message: str, code: str | None = None, param: str | None = None) -> NoReturn:
    error = {"type": "invalid_request_error", "message": message, "code": code, "param": param}
    raise _RefusedError(status, {name: value for name, value in error.items() if value is not None})


def _refuse_reuse() -> NoReturn:
    message = "Keys for idempotent requests can only be used with the same parameters they were first used with."
    raise _RefusedError(400, {"type": "idempotency_error", "message": message})


def _refuse_conflict() -> NoReturn:
    message = "There is currently another in-progress request using this Idempotent Key."
    raise _RefusedError(409, {"type": "idempotency_error", "code": "idempotency_key_in_use", "message": message})


def _fail(status: int) -> NoReturn:
    raise _RefusedError(status, {"type": "api_error", "message": "An unknown error occurred"})


def _response(status: int, body: dict[str, Any]) -> web.Response:
    return web.json_response(body, status=status, headers={"Request-Id": f"req_{uuid.uuid4().hex[:14]}"})
