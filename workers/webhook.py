"""Takes the payment gateway's reports over HTTP, and puts each on `orders` for the payment processor to look into.

It decides nothing and believes nothing but the signature. A report is answered with 2xx when it is durable, so that
the gateway delivers it again until then; each delivery makes the same event.
"""

import asyncio
import datetime
from collections.abc import Callable
from typing import Final, Protocol

from aiohttp import web

from domain import events
from messaging import envelope
from messaging.envelope import OutgoingRecord
from messaging.publisher import NotHandedOver, OutcomeUnknown
from telemetry import logs, metrics
from workers.gateways.gateway import NotGenuine, RefundFailed, Report

log = logs.get()

PATH: Final = "/webhooks/payments"
SOURCE: Final = "webhook"
MOST_BYTES: Final = 256 * 1024

_READ_SECONDS: Final = 5.0
_PUBLISH_SECONDS: Final = 5.0
_MOST_AT_ONCE: Final = 100

ReadReport = Callable[[bytes, str], Report | RefundFailed | None]
"""Reads the body of a report and its signature. Raises NotGenuine."""


class Publisher(Protocol):
    """Where reports go."""

    async def publish(self, record: OutgoingRecord, *, timeout: float) -> None:
        """Returns when the record is durable. Raises NotHandedOver, OutcomeUnknown."""
        ...


class Webhook:
    """The endpoint.

    Args:
        read: tells what a report says; the gateway's own.
        signature_header: the header that it is signed in.
        publisher: where reports go.
        now: the time.
    """

    def __init__(
        self,
        *,
        read: ReadReport,
        signature_header: str,
        publisher: Publisher,
        now: Callable[[], datetime.datetime],
    ) -> None:
        self._read = read
        self._signature_header = signature_header
        self._publisher = publisher
        self._now = now
        self._under_way = 0

    def app(self) -> web.Application:
        """Returns the endpoint for a server."""
        app = web.Application(client_max_size=MOST_BYTES)
        app.add_routes([web.post(PATH, self._take)])
        return app

    async def _take(self, request: web.Request) -> web.Response:
        if self._under_way >= _MOST_AT_ONCE:
            return self._answer(503, "busy")
        self._under_way += 1
        try:
            return await self._taken(request)
        finally:
            self._under_way -= 1

    async def _taken(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(_READ_SECONDS):
                body = await request.read()
        except TimeoutError:
            return self._answer(408, "slow")
        except web.HTTPRequestEntityTooLarge:
            return self._answer(413, "too_large")
        try:
            report = self._read(body, request.headers.get(self._signature_header, ""))
        except NotGenuine as refused:
            log.warning("webhook.refused", reason=str(refused))
            return self._answer(400, "not_genuine")
        if report is None:
            return self._answer(200, "ignored")
        if isinstance(report, RefundFailed):
            log.error("webhook.refund_failed", reference=report.reference)
            return self._answer(200, "refund_failed")
        event = events.payment_reported(report.report_id, report.order_id, source=SOURCE, now=self._now())
        try:
            await self._publisher.publish(envelope.encode(event), timeout=_PUBLISH_SECONDS)
        except (NotHandedOver, OutcomeUnknown) as error:
            log.warning("webhook.not_durable", error=repr(error))
            return self._answer(503, "not_durable")
        log.info("webhook.reported", order_id=report.order_id, report=report.report_id)
        return self._answer(200, "reported")

    def _answer(self, status: int, outcome: str) -> web.Response:
        metrics.REPORTS.labels(outcome).inc()
        return web.Response(status=status)
