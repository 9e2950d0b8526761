"""Metrics: the page that lists them, names as the field has them, and labels that are bounded."""

import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from cli import metrics_page
from domain.money import is_currency
from messaging import envelope, funnel
from messaging.envelope import OutgoingRecord
from orderflow.events.v1.order_event_pb2 import OrderEventType, PaymentRefundedDetails
from orderflow.orders.v1.order_pb2 import Money, OrderStatus
from settings import GatewaySettings
from telemetry import metrics
from tests.builders import an_item, an_order, order_event
from workers.gateways import choice
from workers.gateways.gateway import Charge, ChargeUnknown, GatewayRefused, GatewayUnavailable
from workers.gateways.observed import ObservedGateway
from workers.gateways.simulated import SimulatedGateway

E = OrderEventType
S = OrderStatus
ALL = [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_the_page_is_what_the_code_says() -> None:
    page = Path(__file__).parents[2] / "docs/metrics.md"
    assert page.read_text() == metrics_page.page(), "run `orderflow metrics > docs/metrics.md`"


def test_every_metric_is_on_the_page_once_and_every_label_is_explained() -> None:
    listed = [each for members in metrics.AREAS.values() for each in members]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(ALL)
    used = {label for each in ALL for label in metrics_page.labels_of(each)}
    assert used == set(metrics.LABELS)
    assert {each for each in ALL if "outcome" in metrics_page.labels_of(each)} == set(metrics.OUTCOMES)


@pytest.mark.parametrize("metric", ALL, ids=metrics_page.exposed_name)
def test_names_are_as_prometheus_and_opentelemetry_have_them(metric: MetricWrapperBase) -> None:
    name = metrics_page.exposed_name(metric)
    [family] = metric.describe()
    assert re.fullmatch(r"(orderflow|rpc_server|messaging_client|messaging_process|db_client)_[a-z_]+", name)
    assert name.endswith("_total") == (family.type == "counter")
    if family.type == "histogram":
        assert name.endswith("_seconds")
    assert family.documentation.endswith(".")


def test_an_unbounded_label_is_nowhere() -> None:
    never = ("order", "user", "customer", "sku", "request", "trace", "email", "phone", "message", "error_message")
    for metric in ALL:
        for label in metrics_page.labels_of(metric):
            assert not any(label == each or label.startswith(f"{each}_") for each in never), label


def acknowledged(event_type: E, status: S, *, revision: int, currency: str = "CHF", **fields: object) -> None:
    order = an_order(items=[an_item(currency_code=currency)])
    event = order_event(event_type, order, revision=revision, **fields)  # type: ignore[arg-type]
    event.order.status = status
    funnel.acknowledged([envelope.encode(event)])


def counts(status: str) -> tuple[float, float, float]:
    return (
        value("orderflow_orders_total", status=status),
        value("orderflow_order_amount_minor_units_total", status=status, currency="CHF"),
        value("orderflow_order_completion_seconds_count", outcome=status),
    )


@pytest.mark.parametrize(
    ("event_type", "status", "revision", "settles"),
    [
        (E.ORDER_EVENT_TYPE_ORDER_CREATED, "CREATED", 1, 0),
        (E.ORDER_EVENT_TYPE_ORDER_PROCESSING, "PROCESSING", 2, 0),
        (E.ORDER_EVENT_TYPE_ORDER_PAID, "PAID", 3, 1),
        (E.ORDER_EVENT_TYPE_ORDER_CANCELLED, "CANCELLED", 3, 1),
        (E.ORDER_EVENT_TYPE_ORDER_CANCELLED, "CANCELLED", 4, 0),
        (E.ORDER_EVENT_TYPE_ORDER_SHIPPED, "SHIPPED", 4, 0),
    ],
)
def test_an_order_counts_once_in_each_status_with_its_amount(
    event_type: E, status: str, revision: int, settles: int
) -> None:
    before = counts(status)
    acknowledged(event_type, S.Value(f"ORDER_STATUS_{status}"), revision=revision)
    grown = tuple(now - then for now, then in zip(counts(status), before, strict=True))
    assert grown == (1, 3998, settles)


@pytest.mark.parametrize(("status", "counted"), [("REFUNDED", 1), ("SHIPPED", 0), ("CANCELLED", 0)])
def test_money_given_back_counts_and_the_order_only_where_its_status_changed(status: str, counted: int) -> None:
    before, refunded = counts(status), value("orderflow_refunded_amount_minor_units_total", currency="CHF")
    details = PaymentRefundedDetails(amount=Money(currency_code="CHF", amount_minor=98))
    acknowledged(
        E.ORDER_EVENT_TYPE_PAYMENT_REFUNDED, S.Value(f"ORDER_STATUS_{status}"), revision=4, payment_refunded=details
    )
    assert value("orderflow_refunded_amount_minor_units_total", currency="CHF") - refunded == 98
    assert counts(status)[0] - before[0] == counted


def test_a_currency_that_is_none_makes_no_label() -> None:
    for code in ("XXX", "eur", "A" * 99):
        acknowledged(E.ORDER_EVENT_TYPE_ORDER_PAID, S.ORDER_STATUS_PAID, revision=3, currency=code)
    seen = {sample.labels["currency"] for family in metrics.AMOUNTS.collect() for sample in family.samples}
    assert "other" in seen
    assert all(each == "other" or is_currency(each) for each in seen)


def test_commands_and_what_is_no_event_count_as_sent_only() -> None:
    before = sum(sample.value for family in metrics.ORDERS.collect() for sample in family.samples)
    funnel.acknowledged([envelope.encode(order_event(E.ORDER_EVENT_TYPE_ORDER_CANCEL_REQUESTED, revision=0))])
    record = envelope.encode(order_event())
    sent = value("messaging_client_sent_messages_total", messaging_system="kafka", messaging_operation_name="send",
                 messaging_destination_name="orders")  # fmt: skip
    funnel.acknowledged([OutgoingRecord(record.topic, record.key, record.value, record.headers)])
    assert value(
        "messaging_client_sent_messages_total", messaging_system="kafka", messaging_operation_name="send",
        messaging_destination_name="orders",
    ) == sent + 1  # fmt: skip
    assert sum(sample.value for family in metrics.ORDERS.collect() for sample in family.samples) == before


class Failing:
    """A gateway that raises what it is told to."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def charge(self, *_: object, **__: object) -> Charge:
        raise self.error


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ChargeUnknown("x"), "unknown"),
        (GatewayUnavailable("x"), "unavailable"),
        (GatewayRefused("GATEWAY_REFUSED", "x"), "refused"),
        (RuntimeError("x"), "failed"),
    ],
)
async def test_a_call_to_the_gateway_counts_by_what_came_of_it(error: Exception, outcome: str) -> None:
    charge = {"order_id": "o", "amount_minor": 1, "currency_code": "EUR", "payment_method": "pm_card_visa"}
    name = "orderflow_gateway_call_duration_seconds_count"
    before = value(name, operation="charge", outcome=outcome)
    with pytest.raises(type(error)):
        await ObservedGateway(Failing(error)).charge("k", **charge)  # type: ignore[arg-type]
    assert value(name, operation="charge", outcome=outcome) == before + 1

    gateway = ObservedGateway(SimulatedGateway(latency=0))
    approved = value(name, operation="charge", outcome="approved")
    not_found = value(name, operation="find", outcome="not_found")
    assert (await gateway.charge("k", **charge)).approved  # type: ignore[arg-type]
    assert await gateway.find("other") is None
    assert value(name, operation="charge", outcome="approved") == approved + 1
    assert value(name, operation="find", outcome="not_found") == not_found + 1


async def test_the_breakers_changes_are_counted() -> None:
    settings = GatewaySettings(breaker_failures=2, breaker_reset_seconds=60)
    gateway = choice.guarded(Failing(GatewayUnavailable("x")), settings)  # type: ignore[arg-type]
    before = value("orderflow_breaker_transitions_total", breaker="gateway", state="open")
    for _ in range(3):
        with pytest.raises(GatewayUnavailable):
            await gateway.charge("k", order_id="o", amount_minor=1, currency_code="EUR", payment_method="p")
    assert value("orderflow_breaker_transitions_total", breaker="gateway", state="open") == before + 1
    assert value("orderflow_breaker_state", breaker="gateway", state="open") == 1
