"""Text messages through a provider, or an adapter before one: one HTTP request each, as docs/text-messages.md says."""

import asyncio
import json
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import httpx

from domain.failures import DependencyDown, Transient
from workers.channels.channel import Message, SendUnknown, Undeliverable
from workers.channels.sms import is_phone_number

# The message itself is refused, now and later.
_REFUSED = frozenset({400, 410, 422})
# Not the message's fault: our URL, our token or our rate, or what stands behind the door is away.
_TURNED_AWAY = frozenset({401, 403, 404, 405, 407, 429, 502, 503})
# Whoever answers waited for somebody else, who may have taken the message.
_GATEWAY_TIMEOUT = 504
_LONGEST_WAIT = 3600.0
_ANSWER_LIMIT = 64 * 1024
_LONGEST_ID = 200
# Shorter than servers keep an idle connection, so that a request seldom meets one that is being closed.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=15.0)


class HttpSmsChannel:
    """Sends each text message as one POST.

    `send_limit_seconds` bounds one `send`. It must be shorter than the runtime's drain limit, so that a rebalance does
    not cut one off. `ca_file` holds the authorities to trust instead of the system's.
    """

    def __init__(self, url: str, *, token: str, send_limit_seconds: float, ca_file: str | None = None) -> None:
        self._url = httpx.URL(url)
        self._send_limit = send_limit_seconds
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {token}"},
            verify=ssl.create_default_context(cafile=ca_file),
            # `send` has the limit of the whole. httpx leaves a socket open where that falls into a TLS handshake, so
            # these are shorter: one third for TCP, one for TLS.
            timeout=httpx.Timeout(None, connect=send_limit_seconds / 3),
            limits=_LIMITS,
            follow_redirects=False,
            trust_env=False,
        )

    async def send(self, message: Message) -> str:
        """Sends one text message and returns the provider's identifier. Raises as `Channel.send` says."""
        if not is_phone_number(message.recipient):
            raise Undeliverable("INVALID_PHONE_NUMBER")
        reference = quote(message.message_id.strip("<>"), safe="@")
        handed_over = False

        async def follow(event: str, _: object) -> None:
            nonlocal handed_over
            handed_over = handed_over or event.endswith("send_request_headers.started")

        try:
            async with (
                asyncio.timeout(self._send_limit),
                self._client.stream(
                    "POST",
                    self._url,
                    json={"to": message.recipient, "text": message.text.rstrip(), "reference": reference},
                    headers={"Idempotency-Key": reference},
                    extensions={"trace": follow},
                ) as response,
            ):
                answer = await _read(response)
        except (httpx.HTTPError, TimeoutError) as error:
            what = f"no answer: {type(error).__name__}"
            failure = SendUnknown(what) if handed_over else DependencyDown("sms", what)
        else:
            return _accepted(response, answer)
        # Outside the handler: httpx's exceptions hold the request, and must not travel along as the context.
        raise failure

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._client.aclose()


def _accepted(response: httpx.Response, answer: dict[str, Any]) -> str:
    """Returns the provider's identifier if it accepted the message.

    Raises what else the status means. What the provider wrote is told nowhere: it may hold the number.
    """
    status, identifier = response.status_code, _identifier(answer)
    what = f"status {status}"
    if 200 <= status < 300:
        if not identifier:
            raise SendUnknown(f"{what}, and no id")
        return identifier
    if status in _REFUSED:
        raise Undeliverable(f"SMS_{status}", provider_message_id=identifier)
    if status in _TURNED_AWAY or status < 400:
        raise DependencyDown("sms", what, _retry_after(response.headers.get("Retry-After")))
    if status == _GATEWAY_TIMEOUT:
        raise SendUnknown(what)
    # A provider that stumbles over one message must not hold up all the others, so that uses an attempt.
    raise Transient(f"SMS_{status}", what)


async def _read(response: httpx.Response) -> dict[str, Any]:
    """Returns the answer's JSON object, empty if it has none. The status counts even if the rest is cut off."""
    content = b""
    try:
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > _ANSWER_LIMIT:
                return {}
        answer = json.loads(content)
    except (httpx.HTTPError, ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _identifier(answer: dict[str, Any]) -> str:
    """Returns the answer's id; empty if it is none that an event may carry: printable ASCII, without spaces."""
    told = answer.get("id")
    text = str(told) if type(told) in (str, int) else ""
    return text if len(text) <= _LONGEST_ID and all("!" <= character <= "~" for character in text) else ""


def _retry_after(value: str | None) -> float | None:
    """Returns the seconds of a Retry-After header, at most an hour; None where it says nothing that can be waited."""
    if value is None:
        return None
    try:
        if value.isascii() and value.isdecimal() and len(value) < 10:
            seconds = float(value)
        else:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):  # a date without a zone is a TypeError
        return None
    return min(seconds, _LONGEST_WAIT) if seconds > 0 else None
