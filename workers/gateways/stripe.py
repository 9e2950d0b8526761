"""Stripe, through its own SDK. A charge is a PaymentIntent: made unconfirmed, its id stored, then confirmed.

Nothing can be charged before the confirmation, so that whoever asks later knows the id to retrieve: Stripe's search
sees a PaymentIntent only after a while, and a retrieve at once. The id is stored under the charge's key, by
`References`, which also keeps the mark that a key is closed. A process that was frozen between making a PaymentIntent
and confirming it can then do neither: storing fails where the mark was first, and confirming where the PaymentIntent
was cancelled, which is what closing does to the one that is stored.

A PaymentIntent is made with its payment method and confirmed without one, so that one that was declined cannot be
charged by another confirmation, not even past Stripe's window of keys.

Answers of Stripe, and what they mean here:

    confirmed, status succeeded             an approved charge
    402, type card_error                    a declined one; the reason is Stripe's decline code in UPPER_SNAKE
    401, 403, 429, not connected            GatewayUnavailable
    making: no answer, 5xx, 409             GatewayUnavailable, too: nothing can be charged
    confirming: no answer, 5xx, 409,
      another status, a lock time-out       ChargeUnknown
    other 4xx                               GatewayRefused
    confirming: status canceled             KeyClosed
"""

import asyncio
import datetime
import json
import math
import re
import uuid
from collections.abc import Awaitable, Mapping
from typing import Any, Final, Protocol

import httpx
import stripe

from domain.identifiers import is_canonical_uuid
from domain.reconciliation import FoundCharge, Movement
from workers.gateways.gateway import (
    Charge,
    ChargeUnderWay,
    ChargeUnknown,
    GatewayRefused,
    GatewayUnavailable,
    KeyClosed,
    MovementPage,
    NotGenuine,
    Refund,
    RefundFailed,
    Report,
)
from workers.gateways.pools import PooledTransport

API: Final = "https://api.stripe.com"
SIGNATURE_HEADER: Final = "Stripe-Signature"

_ANSWER_LIMIT: Final = 8 * 1024 * 1024  # of a page of charges, to each of which others may add 50 texts
_KEEPALIVE_SECONDS: Final = 15.0
_TURNED_AWAY: Final = (401, 403, 429)
_PAGE: Final = 100
_MOST_RETRY_AFTER: Final = 60.0
# Their minor units are others at Stripe than in ISO 4217: the same number is a hundred times as much, or as little.
_OTHER_MINOR_UNITS: Final = frozenset({"ISK", "UGX", "MGA"})
_NO_MONEY_MOVED: Final = frozenset({"failed", "canceled"})
_REPORTED: Final = frozenset({"payment_intent.succeeded", "payment_intent.payment_failed"})
_UNDER_WAY: Final = 3
_WORD: Final = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")

_Json = dict[str, Any]

# It sends what machine this is, and how long the last call took.
stripe.enable_telemetry = False


class References(Protocol):
    """Remembers which PaymentIntent stands for a key. Every method raises DependencyDown."""

    async def find(self, key: str) -> str | None:
        """Returns the id that is stored under the key, closed or not."""
        ...

    async def store(self, key: str, intent_id: str) -> str | None:
        """Stores an id if none is, and returns the one that is. None: the key was closed before."""
        ...

    async def close(self, key: str) -> str | None:
        """Closes the key for good, so that no id is stored under it from now on. Returns the one that is."""
        ...


class StripeGateway:
    """A PaymentGateway that is Stripe. It makes each call once: repeating is the caller's decision.

    Args:
        api_key: the account's secret or restricted key. It is in no error, log or repr of this class.
        references: where the PaymentIntents' ids are kept.
        base_url: where the API is.
        connect_timeout: seconds to get a connection; past it nothing was sent.
        total_timeout: seconds for one call of the API; a charge takes two, at most three.
        keepalive_connections: idle connections to keep; the number of concurrent calls is not limited here.
    """

    def __init__(
        self,
        api_key: str,
        *,
        references: References,
        base_url: str = API,
        connect_timeout: float = 2.0,
        total_timeout: float = 10.0,
        keepalive_connections: int = 512,
    ) -> None:
        if not 0 < connect_timeout < total_timeout:
            raise ValueError("connect_timeout must be positive and shorter than total_timeout")
        self._references = references
        self._total_timeout = total_timeout
        self._http = _HttpClient(
            timeout=httpx.Timeout(total_timeout, connect=connect_timeout), keepalive_connections=keepalive_connections
        )
        self._stripe = stripe.StripeClient(
            api_key,
            base_addresses={"api": base_url.rstrip("/")},
            http_client=self._http,
            max_network_retries=0,
        ).v1

    async def charge(
        self, key: str, *, order_id: str, amount_minor: int, currency_code: str, payment_method: str
    ) -> Charge:
        """See PaymentGateway."""
        if currency_code in _OTHER_MINOR_UNITS:
            raise GatewayRefused("GATEWAY_CURRENCY_UNSUPPORTED", f"{currency_code} has other minor units at Stripe")
        intent_id = await self._references.find(key)
        if intent_id is None:
            intent_id = await self._made(
                key,
                {
                    "amount": amount_minor,
                    "currency": currency_code.lower(),
                    "payment_method": payment_method,
                    # Nobody is there to be sent to a bank's page.
                    "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
                    "metadata": {"order_id": order_id, "key": key},
                },
            )
        try:
            charge = await self._confirmed(key, intent_id)
        except _Refusal as refusal:
            if refusal.status != 402:
                raise refusal.for_good() from None
            charge = Charge(intent_id, key, False, refusal.decline_reason, amount_minor, currency_code)
        if (charge.amount_minor, charge.currency_code) != (amount_minor, currency_code):
            raise ChargeUnknown("the answer is about another amount")
        return charge

    async def _made(self, key: str, parameters: Any) -> str:
        """Makes a PaymentIntent and returns the id that is stored under the key.

        Raises:
            GatewayUnavailable, GatewayRefused, KeyClosed: nothing was charged, and nothing can be by this call.
        """
        try:
            try:
                intent = await self._create(key, parameters)
            except _StoredFailureError:
                # Stripe answers so under this key for a day. One PaymentIntent more costs nothing: none is confirmed
                # but the one whose id is stored.
                intent = await self._create(f"{key}-{uuid.uuid4().hex}", parameters)
            intent_id = _verified(intent, key)["id"]
        except ChargeUnknown as unknown:
            raise GatewayUnavailable(f"no PaymentIntent was made: {unknown.message}") from None
        except _Refusal as refusal:
            raise refusal.for_good() from None
        stored = await self._references.store(key, intent_id)
        if stored is None:
            raise KeyClosed("the key was closed before the charge")
        return stored

    async def _create(self, idempotency_key: str, parameters: Any) -> _Json:
        return await self._ask(
            self._stripe.payment_intents.create_async(parameters, {"idempotency_key": idempotency_key})
        )

    async def _confirmed(self, key: str, intent_id: str) -> Charge:
        """Confirms, and returns what that came to.

        Raises:
            _Refusal: a decline among others.
            GatewayUnavailable, ChargeUnknown, KeyClosed: see PaymentGateway.charge.
        """
        try:
            intent = await self._ask(
                self._stripe.payment_intents.confirm_async(
                    intent_id, {"error_on_requires_action": True}, {"idempotency_key": f"{key}-confirm"}
                )
            )
        except _Refusal as refusal:
            if refusal.code != "payment_intent_unexpected_state":
                raise
            # It was confirmed or cancelled before; Stripe has forgotten the key, or another one did it.
            try:
                intent = await self._ask(self._stripe.payment_intents.retrieve_async(intent_id))
            except (_Refusal, GatewayUnavailable) as error:
                raise ChargeUnknown("confirmed before, and the look-up got no answer") from error
        charge = _charge(_verified(intent, key, intent_id), key)
        if charge is not None:
            return charge
        if intent["status"] == "canceled":
            raise KeyClosed("the PaymentIntent was cancelled")
        raise ChargeUnknown(f"the PaymentIntent is {_word(intent['status'])}")

    async def find(self, key: str) -> Charge | None:
        """See PaymentGateway. Without a stored id nothing was ever confirmed."""
        intent_id = await self._references.find(key)
        return None if intent_id is None else _charge(await self._retrieved(intent_id), key)

    async def close(self, key: str) -> Charge | None:
        """See PaymentGateway. The mark is stored first, so that no other PaymentIntent can take the key's place."""
        intent_id = await self._references.close(key)
        if intent_id is None:
            return None
        try:
            # Under a key of its own each time: Stripe would repeat a failure, and cancelling twice does no harm.
            intent = _stored(await self._ask(self._stripe.payment_intents.cancel_async(intent_id)), intent_id)
        except ChargeUnknown as unknown:
            raise GatewayUnavailable(f"cancelling got no answer: {unknown.message}") from None
        except _Refusal as refusal:
            if refusal.code != "payment_intent_unexpected_state":
                raise refusal.for_good() from None
            intent = await self._retrieved(intent_id)
        if intent["status"] == "canceled":
            return None
        if intent["status"] == "succeeded":
            return _charge(intent, key)
        raise ChargeUnderWay(f"the PaymentIntent is {_word(intent['status'])} and cannot be cancelled now")

    async def refund(self, key: str, *, charge_reference: str, amount_minor: int) -> Refund:
        """See PaymentGateway. A refund that Stripe has taken and not paid out yet counts as made."""
        try:
            answer = await self._ask(
                self._stripe.refunds.create_async(
                    {"payment_intent": charge_reference, "amount": amount_minor, "metadata": {"key": key}},
                    {"idempotency_key": key},
                )
            )
        except _Refusal as refusal:
            raise refusal.for_good() from None
        refund = _refund(answer)
        if (refund.key, refund.charge_reference, refund.amount_minor) != (key, charge_reference, amount_minor):
            raise ChargeUnknown("the answer is about another refund")
        if answer["status"] in _NO_MONEY_MOVED:
            raise GatewayRefused("GATEWAY_REFUND_FAILED", f"the refund is {_word(answer['status'])}")
        return refund

    async def find_refund(self, key: str, *, charge_reference: str) -> Refund | None:
        """See PaymentGateway. One that failed is none."""
        after = ""
        while True:
            parameters: Any = {"payment_intent": charge_reference, "limit": _PAGE}
            if after:
                parameters["starting_after"] = after
            page = await self._look_up(self._stripe.refunds.list_async(parameters))
            try:
                refunds = [each for each in page["data"] if each["status"] not in _NO_MONEY_MOVED]
                mine = next((each for each in refunds if (each.get("metadata") or {}).get("key") == key), None)
                if mine is not None:
                    return _refund(mine)
                if not page["has_more"]:
                    return None
                after = page["data"][-1]["id"]
            except (ChargeUnknown, KeyError, TypeError, AttributeError, IndexError):
                raise GatewayUnavailable("the look-up got no valid answer") from None

    async def movements(self, since: datetime.datetime, until: datetime.datetime, cursor: str = "") -> MovementPage:
        """See PaymentGateway. First the charges, then the refunds; both only of PaymentIntents of ours.

        A charge stands under the time at which it was begun, for a card that of its end.
        """
        kind, _, after = (cursor or "charges:").partition(":")
        # Stripe's times are whole seconds.
        created = {"gte": math.ceil(since.timestamp()), "lt": math.ceil(until.timestamp())}
        parameters: Any = {"created": created, "limit": _PAGE} | ({"starting_after": after} if after else {})
        if kind == "charges":
            page = await self._look_up(self._stripe.charges.list_async(parameters))
        elif kind == "refunds":
            parameters["expand"] = ["data.charge"]
            page = await self._look_up(self._stripe.refunds.list_async(parameters))
        else:
            raise GatewayRefused("GATEWAY_INVALID_REQUEST", "the cursor is none of this gateway's")
        try:
            listed = [_movement(kind, each) for each in page["data"]]
            more = f"{kind}:{page['data'][-1]['id']}" if page["has_more"] else ""
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError):
            raise GatewayUnavailable("the listing got no valid answer") from None
        next_cursor = more or ("refunds:" if kind == "charges" else "")
        return MovementPage(tuple(each for each in listed if each is not None), next_cursor)

    async def made(self, since: datetime.datetime, until: datetime.datetime) -> list[FoundCharge]:
        """Return the PaymentIntents of ours that were made from `since` until before `until`, one for each key.

        Of several under one key that which has come furthest: only one can have been confirmed. A listing by time has
        all of them at once, unlike a search. For who has lost what `References` keep.

        Raises:
            GatewayUnavailable, GatewayRefused: as `movements`.
        """
        created = {"gte": math.floor(since.timestamp()), "lt": math.ceil(until.timestamp())}
        furthest: dict[str, tuple[int, str]] = {}
        after: dict[str, str] = {}
        while True:
            parameters: Any = {"created": created, "limit": _PAGE} | after
            page = await self._look_up(self._stripe.payment_intents.list_async(parameters))
            try:
                for intent in page["data"]:
                    if key := intent["metadata"].get("key"):
                        furthest[key] = max(furthest.get(key, (0, "")), (_way(intent), intent["id"]))
                if not page["has_more"]:
                    break
                after = {"starting_after": page["data"][-1]["id"]}
            except (KeyError, TypeError, AttributeError, IndexError):
                raise GatewayUnavailable("the listing got no valid answer") from None
        return [FoundCharge(key, way >= _UNDER_WAY, intent_id) for key, (way, intent_id) in furthest.items()]

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.close_async()

    async def _retrieved(self, intent_id: str) -> _Json:
        intent = await self._look_up(self._stripe.payment_intents.retrieve_async(intent_id))
        try:
            return _stored(intent, intent_id)
        except ChargeUnknown as unknown:
            raise GatewayUnavailable(f"the look-up got no valid answer: {unknown.message}") from None

    async def _look_up(self, call: Awaitable[stripe.StripeObject]) -> _Json:
        """Asks for something that moves no money.

        Raises:
            GatewayUnavailable: there was no answer.
            GatewayRefused: Stripe does not know of it, for one.
        """
        try:
            return await self._ask(call)
        except ChargeUnknown as unknown:
            raise GatewayUnavailable(f"the look-up got no answer: {unknown.message}") from None
        except _Refusal as refusal:
            raise refusal.for_good() from None

    async def _ask(self, call: Awaitable[stripe.StripeObject]) -> _Json:
        """Returns what Stripe answered.

        Raises:
            GatewayUnavailable: nothing was sent, or it was turned away unread.
            ChargeUnknown: no answer came back, or one that does not tell whether it was done.
            _Refusal: Stripe said no.
        """
        try:
            async with asyncio.timeout(self._total_timeout):
                return (await call).to_dict()
        except TimeoutError:
            raise ChargeUnknown("no answer in time") from None
        except stripe.StripeError as error:
            # The SDK's error holds the answer's body and headers: it goes no further than here.
            raise _failure(error) from None


class _StoredFailureError(ChargeUnknown):
    """An answer that Stripe gives again to every call under the same key."""


class _Refusal(Exception):
    """Stripe said no: 400, 402 or 404 with an error of its own."""

    def __init__(self, status: int, error: Mapping[str, Any], request_id: str | None) -> None:
        self.status = status
        self.kind = _word(error.get("type"))
        self.code = _word(error.get("code"))
        self._parameter = _word(error.get("param"))
        self._decline_code = _word(error.get("decline_code"))
        self._request_id = _word(request_id)
        super().__init__(f"{status} {self.kind} {self.code}")

    @property
    def decline_reason(self) -> str:
        return _decline_reason(self.code, self._decline_code)

    def for_good(self) -> GatewayRefused:
        """Returns the failure that it is for the caller."""
        if self.kind == "idempotency_error":
            return GatewayRefused("GATEWAY_KEY_REUSED", "the key was used with other parameters")
        told = " ".join(filter(None, (str(self.status), self.code or self.kind, self._parameter, self._request_id)))
        if self.code == "resource_missing" and self._parameter == "payment_method":
            return GatewayRefused("GATEWAY_PAYMENT_METHOD_UNKNOWN", f"Stripe refused: {told}")
        if self.code == "charge_already_refunded":
            return GatewayRefused("GATEWAY_REFUND_TOO_LARGE", f"Stripe refused: {told}")
        return GatewayRefused("GATEWAY_INVALID_REQUEST", f"Stripe refused: {told}")


def _failure(error: stripe.StripeError) -> Exception:
    body = error.json_body
    told = body.get("error") if isinstance(body, dict) else None
    told, status = (told if isinstance(told, dict) else {}), error.http_status or 0
    if isinstance(error, stripe.RateLimitError):
        if told.get("code") == "lock_timeout":  # another call has hold of the PaymentIntent: the first one, perhaps
            return ChargeUnknown("another call has hold of it")
        return GatewayUnavailable("too many calls", retry_after=_retry_after(error.headers))
    if status in _TURNED_AWAY:
        return GatewayUnavailable(f"turned away with status {status}")
    is_refusal = isinstance(error, stripe.CardError | stripe.InvalidRequestError | stripe.IdempotencyError)
    if is_refusal and (status != 402 or told.get("type") == "card_error"):
        return _Refusal(status, told, error.request_id)
    kind = _StoredFailureError if status >= 500 or status == 409 else ChargeUnknown
    return kind(f"no answer that tells, status {status}")


def _retry_after(headers: Mapping[str, str] | None) -> float | None:
    text = (headers or {}).get("retry-after", "")
    return min(float(text), _MOST_RETRY_AFTER) if text.isascii() and text.isdigit() else None


def _charge(intent: _Json, key: str) -> Charge | None:
    """Returns the charge that a PaymentIntent has come to, None if it has come to none so far."""
    if intent["status"] == "succeeded":
        reason = ""
    elif intent["status"] == "requires_payment_method" and isinstance(intent.get("last_payment_error"), dict):
        error = intent["last_payment_error"]
        reason = _decline_reason(_word(error.get("code")), _word(error.get("decline_code")))
    else:
        return None
    return Charge(intent["id"], key, not reason, reason, intent["amount"], intent["currency"].upper())


def _way(intent: _Json) -> int:
    """Returns how far a PaymentIntent has come: money moved, or may still, or did not, or none was asked for."""
    if intent["status"] == "succeeded":
        return _UNDER_WAY + 1
    if intent["status"] in ("processing", "requires_action", "requires_capture"):
        return _UNDER_WAY
    if intent.get("last_payment_error"):
        return 2
    return 0 if intent["status"] == "canceled" else 1


def _verified(intent: _Json, key: str, intent_id: str | None = None) -> _Json:
    """Returns the PaymentIntent if it is the one that stands for the key. Raises ChargeUnknown."""
    intent = _stored(intent, intent_id)
    if intent["metadata"].get("key") != key:
        raise ChargeUnknown("the answer is about another PaymentIntent")
    return intent


def _stored(intent: _Json, intent_id: str | None) -> _Json:
    """Returns the PaymentIntent if it is the one of which the id was stored. Raises ChargeUnknown.

    Whatever its metadata say by now: a person can change them at Stripe, and it would never again be found or closed.
    """
    wanted = {"id": str, "status": str, "amount": int, "currency": str, "metadata": dict}
    if any(type(intent.get(name)) is not kind for name, kind in wanted.items()):
        raise ChargeUnknown("the answer holds no PaymentIntent")
    if intent_id not in (None, intent["id"]):
        raise ChargeUnknown("the answer is about another PaymentIntent")
    return intent


def _refund(answer: _Json) -> Refund:
    wanted = {"id": str, "status": str, "amount": int, "currency": str, "payment_intent": str, "metadata": dict}
    if any(type(answer.get(name)) is not kind for name, kind in wanted.items()):
        raise ChargeUnknown("the answer holds no refund")
    return Refund(
        reference=answer["id"],
        key=str(answer["metadata"].get("key", "")),
        charge_reference=answer["payment_intent"],
        amount_minor=answer["amount"],
        currency_code=answer["currency"].upper(),
    )


def _movement(kind: str, listed: _Json) -> Movement | None:
    """Returns what a charge or a refund of the listing moved; None: nothing, or it is none of ours."""
    charge = listed if kind == "charges" else listed["charge"]
    if charge is None:  # paid out of a customer's balance
        return None
    moved = listed["status"] == "succeeded" and listed["captured"] if kind == "charges" else True
    order_id = charge["metadata"].get("order_id")
    if not moved or listed["status"] in _NO_MONEY_MOVED or not order_id or not charge["payment_intent"]:
        return None
    return Movement(
        kind="charge" if kind == "charges" else "refund",
        time=datetime.datetime.fromtimestamp(listed["created"], datetime.UTC),
        reference=charge["payment_intent"] if kind == "charges" else listed["id"],
        charge_reference=charge["payment_intent"],
        order_id=order_id,
        amount_minor=listed["amount"],
        currency_code=listed["currency"].upper(),
    )


def _decline_reason(code: str, decline_code: str) -> str:
    """Returns Stripe's most telling word, as all our gateways spell it; `generic_decline` tells less than the code."""
    word = decline_code if decline_code not in ("", "generic_decline") else code
    return re.sub(r"[^A-Z0-9]", "_", word.upper()) or "CARD_DECLINED"


def _word(value: object) -> str:
    """Returns an identifier of Stripe's as it is; nothing else of an answer goes into a message of ours."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else ""


class _HttpClient(stripe.HTTPClient):
    """httpx under the SDK: many small pools, no proxies of the environment, and answers of a limited size.

    Raises our own failures where there was no answer of Stripe's: the SDK passes them on.
    """

    name = "httpx"

    def __init__(self, *, timeout: httpx.Timeout, keepalive_connections: int) -> None:
        super().__init__()
        self._client = httpx.AsyncClient(
            timeout=timeout,
            transport=PooledTransport(
                keepalive_connections=keepalive_connections, keepalive_seconds=_KEEPALIVE_SECONDS
            ),
            follow_redirects=False,
            trust_env=False,
        )

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        """Send once. Raises GatewayUnavailable, ChargeUnknown."""
        try:
            async with self._client.stream(method, url, headers=dict(headers), content=post_data) as response:
                content = b""
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > _ANSWER_LIMIT:
                        raise ChargeUnknown("the answer is too long")
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise GatewayUnavailable(f"not connected: {type(error).__name__}") from None
        except httpx.HTTPError as error:
            raise ChargeUnknown(f"no answer: {type(error).__name__}") from None
        if not _is_answer(response.status_code, content):
            if response.status_code in _TURNED_AWAY:
                raise GatewayUnavailable(f"turned away with status {response.status_code}")
            raise ChargeUnknown(f"no answer of Stripe, status {response.status_code}")
        return content, response.status_code, response.headers

    async def close_async(self) -> None:
        """Close all connections."""
        await self._client.aclose()


def _is_answer(status: int, content: bytes) -> bool:
    try:
        answer = json.loads(content)
    except ValueError:
        return False
    if not isinstance(answer, dict):
        return False
    return status == 200 or (status >= 400 and isinstance(answer.get("error"), dict))


def read_report(body: bytes, signature: str, *, secret: str, tolerance_seconds: int) -> Report | RefundFailed | None:
    """Returns what a webhook of Stripe reports, None if that is nothing to us.

    Raises:
        NotGenuine: it is not signed with the secret, or was longer ago than the tolerance.
    """
    try:
        event = stripe.Webhook.construct_event(body, signature, secret, tolerance_seconds).to_dict()
    except (stripe.StripeError, ValueError, AttributeError, TypeError) as error:
        raise NotGenuine(type(error).__name__) from None
    kind, about = event.get("type"), (event.get("data") or {}).get("object") or {}
    if kind == "refund.failed":
        return RefundFailed(_word(about.get("id")))
    order_id = (about.get("metadata") or {}).get("order_id") or ""
    if kind not in _REPORTED or not is_canonical_uuid(order_id):
        return None
    return Report(report_id=_word(event.get("id")), order_id=order_id)
