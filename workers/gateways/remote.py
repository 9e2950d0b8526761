"""Client of a payment gateway that speaks devstack's JSON API over HTTP.

Only an answer in the gateway's own form counts as one. A bare 404 from a proxy, an HTML page or another key's charge
tells nothing about the money, and is treated like no answer.
"""

import asyncio
import datetime
import json
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import httpx

from domain.reconciliation import Movement
from workers.gateways.gateway import (
    Charge,
    ChargeUnknown,
    GatewayRefused,
    GatewayUnavailable,
    KeyClosed,
    MovementPage,
    Refund,
)
from workers.gateways.pools import PooledTransport

_NOT_FOUND = "GATEWAY_CHARGE_NOT_FOUND"
_REFUND_NOT_FOUND = "GATEWAY_REFUND_NOT_FOUND"
_REFUSALS = {_NOT_FOUND, _REFUND_NOT_FOUND, "GATEWAY_INVALID_REQUEST", "GATEWAY_KEY_REUSED", "GATEWAY_REFUND_TOO_LARGE"}
# Our credentials or our rate are at fault, not the order; the request was turned away at the door.
_TURNED_AWAY = {401, 403, 429}
_ANSWER_LIMIT = 64 * 1024
# Shorter than servers keep an idle connection, so that a request seldom meets one that is being closed.
_KEEPALIVE_SECONDS = 15.0

_Json = dict[str, Any]
_Value = TypeVar("_Value", str, bool, int, float)


class HttpGateway:
    """A PaymentGateway behind HTTP. It makes each call once: repeating is the caller's decision.

    Args:
        base_url: where the gateway listens, "http://127.0.0.1:8080".
        connect_timeout: seconds to get a connection; past it nothing was sent.
        total_timeout: seconds for the whole call; past it the outcome is unknown.
        keepalive_connections: idle connections to keep; the number of concurrent calls is not limited here.
    """

    def __init__(
        self,
        base_url: str,
        *,
        connect_timeout: float = 2.0,
        total_timeout: float = 10.0,
        keepalive_connections: int = 512,
    ) -> None:
        if not 0 < connect_timeout < total_timeout:
            raise ValueError("connect_timeout must be positive and shorter than total_timeout")
        self._total_timeout = total_timeout
        self._client = httpx.AsyncClient(
            base_url=base_url,
            timeout=httpx.Timeout(total_timeout, connect=connect_timeout),
            transport=PooledTransport(
                keepalive_connections=keepalive_connections, keepalive_seconds=_KEEPALIVE_SECONDS
            ),
            follow_redirects=False,
            trust_env=False,
        )

    async def charge(
        self, key: str, *, order_id: str, amount_minor: int, currency_code: str, payment_method: str
    ) -> Charge:
        """See PaymentGateway."""
        answer = await self._exchange(
            "POST",
            "/charges",
            key,
            {
                "order_id": order_id,
                "amount_minor": amount_minor,
                "currency_code": currency_code,
                "payment_method": payment_method,
            },
        )
        charge = _read_charge(answer, key)
        if charge is None or (charge.amount_minor, charge.currency_code) != (amount_minor, currency_code):
            raise ChargeUnknown("the answer is about another charge")
        return charge

    async def find(self, key: str) -> Charge | None:
        """See PaymentGateway."""
        try:
            return _read_charge(await self._exchange("GET", f"/charges/{quote(key, safe='')}", key), key)
        except ChargeUnknown as unknown:
            raise GatewayUnavailable(f"the look-up got no answer: {unknown.message}") from unknown
        except GatewayRefused as refused:
            if refused.error_class == _NOT_FOUND:
                return None
            raise

    async def refund(self, key: str, *, charge_reference: str, amount_minor: int) -> Refund:
        """See PaymentGateway."""
        answer = await self._exchange(
            "POST", "/refunds", key, {"charge_reference": charge_reference, "amount_minor": amount_minor}
        )
        refund = _read_refund(answer, key)
        if (refund.charge_reference, refund.amount_minor) != (charge_reference, amount_minor):
            raise ChargeUnknown("the answer is about another refund")
        return refund

    async def find_refund(self, key: str, *, charge_reference: str) -> Refund | None:  # noqa: ARG002 - the key says it
        """See PaymentGateway."""
        try:
            return _read_refund(await self._exchange("GET", f"/refunds/{quote(key, safe='')}", key), key)
        except ChargeUnknown as unknown:
            raise GatewayUnavailable(f"the look-up got no answer: {unknown.message}") from unknown
        except GatewayRefused as refused:
            if refused.error_class == _REFUND_NOT_FOUND:
                return None
            raise

    async def close(self, key: str) -> Charge | None:
        """See PaymentGateway."""
        try:
            return _read_charge(await self._exchange("POST", f"/charges/{quote(key, safe='')}/close", key, {}), key)
        except ChargeUnknown as unknown:
            raise GatewayUnavailable(f"closing the key got no answer: {unknown.message}") from unknown

    async def movements(self, since: datetime.datetime, until: datetime.datetime, cursor: str = "") -> MovementPage:
        """See PaymentGateway."""
        asked = urlencode({"since": since.timestamp(), "until": until.timestamp(), "after": cursor})
        try:
            page = _read_movements(await self._exchange("GET", f"/movements?{asked}"))
        except ChargeUnknown as unknown:
            raise GatewayUnavailable(f"the listing got no answer: {unknown.message}") from unknown
        if cursor and page.next_cursor == cursor:
            raise GatewayUnavailable("the listing does not come to its end")
        return page

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _exchange(self, method: str, path: str, key: str | None = None, body: _Json | None = None) -> _Json:
        """Send once and return the gateway's answer.

        Raises:
            GatewayUnavailable: nothing was sent, or it was turned away unread.
            ChargeUnknown: no answer of the gateway came back.
            GatewayRefused: the gateway said no.
        """
        headers = {} if key is None else {"Idempotency-Key": key}
        try:
            async with (
                asyncio.timeout(self._total_timeout),
                self._client.stream(method, path, json=body, headers=headers) as response,
            ):
                status, content = response.status_code, await _read(response)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise GatewayUnavailable(f"not connected: {type(error).__name__}") from error
        except (httpx.HTTPError, TimeoutError) as error:
            raise ChargeUnknown(f"no answer: {type(error).__name__}") from error
        if status in _TURNED_AWAY:
            raise GatewayUnavailable(f"turned away with status {status}")
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ChargeUnknown(f"no answer of the gateway, status {status}")
        if status == 200:
            return answer
        raise _refusal(status, answer)


def _refusal(status: int, answer: _Json) -> Exception:
    error = answer.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    if not 400 <= status < 500 or not isinstance(code, str):
        return ChargeUnknown(f"no answer of the gateway, status {status}")
    if code == "GATEWAY_KEY_CLOSED":
        return KeyClosed("the gateway says that the key is closed")
    if status == 409:
        return ChargeUnknown("the gateway says that another request under the key is in the way")
    known = code if code in _REFUSALS else "GATEWAY_REFUSED"
    return GatewayRefused(known, f"the gateway refused with status {status}")


async def _read(response: httpx.Response) -> bytes:
    content = b""
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > _ANSWER_LIMIT:
            raise ChargeUnknown("the answer is too long")
    return content


def _read_charge(answer: _Json, key: str) -> Charge | None:
    """The charge of an answer, None where it says null. Raises ChargeUnknown for anything else."""
    if "charge" in answer and answer["charge"] is None:
        return None
    fields = _fields(answer, "charge", key)
    return Charge(
        reference=_typed(fields, "reference", str),
        key=key,
        approved=_typed(fields, "approved", bool),
        decline_reason=_typed(fields, "decline_reason", str),
        amount_minor=_typed(fields, "amount_minor", int),
        currency_code=_typed(fields, "currency_code", str),
    )


def _read_refund(answer: _Json, key: str) -> Refund:
    fields = _fields(answer, "refund", key)
    return Refund(
        reference=_typed(fields, "reference", str),
        key=key,
        charge_reference=_typed(fields, "charge_reference", str),
        amount_minor=_typed(fields, "amount_minor", int),
        currency_code=_typed(fields, "currency_code", str),
    )


def _read_movements(answer: _Json) -> MovementPage:
    listed, next_cursor = answer.get("movements"), _typed(answer, "next", str)
    if not isinstance(listed, list) or not all(isinstance(fields, dict) for fields in listed):
        raise ChargeUnknown("the answer holds no movements")
    return MovementPage(tuple(map(_read_movement, listed)), next_cursor)


def _read_movement(fields: _Json) -> Movement:
    kind = _typed(fields, "kind", str)
    if kind not in ("charge", "refund"):
        raise ChargeUnknown("the answer has no valid kind")
    try:
        time = datetime.datetime.fromtimestamp(_typed(fields, "time", float), datetime.UTC)
    except (ValueError, OverflowError, OSError):
        raise ChargeUnknown("the answer has no valid time") from None
    return Movement(
        kind="charge" if kind == "charge" else "refund",
        time=time,
        reference=_typed(fields, "reference", str),
        charge_reference=_typed(fields, "charge_reference", str),
        order_id=_typed(fields, "order_id", str),
        amount_minor=_typed(fields, "amount_minor", int),
        currency_code=_typed(fields, "currency_code", str),
    )


def _fields(answer: _Json, name: str, key: str) -> _Json:
    fields = answer.get(name)
    if not isinstance(fields, dict) or fields.get("key") != key:
        raise ChargeUnknown(f"the answer holds no {name} under the key")
    return fields


def _typed(fields: _Json, name: str, kind: type[_Value]) -> _Value:
    value = fields.get(name)
    if type(value) is not kind:  # not isinstance: True is an int
        raise ChargeUnknown(f"the answer has no valid {name}")
    return value
