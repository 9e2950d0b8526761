"""Every metric. Names are the Prometheus form of OpenTelemetry's; no label is unbounded.

docs/metrics.md is made from this module: AREAS says who exposes what, LABELS what each label may be.
"""

import functools
import math
from typing import Final, TypeVar

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

_Metric = TypeVar("_Metric", bound=MetricWrapperBase)


@functools.cache
def of(metric: _Metric, *labels: str) -> _Metric:
    """Returns the metric's series, like `labels`, several times as fast: for what every record counts."""
    return metric.labels(*labels)


def _unset(gauge: Gauge) -> Gauge:
    """Returns the gauge, with no value in the processes that never set it: 0 would say something."""
    gauge.set(math.nan)
    return gauge


_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_LONG: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 21600)

RPC_DURATION = Histogram(
    "rpc_server_call_duration_seconds",
    "Duration of a gRPC call, of a stream up to its end. WatchOrder lasts as long as its caller wants.",
    ["rpc_system_name", "rpc_method", "rpc_status_code", "error_type"],
    buckets=_SECONDS,
)
RPC_IN_FLIGHT = Gauge("orderflow_server_inflight_calls", "gRPC calls under way.", ["rpc_method"])
SHED = Counter("orderflow_server_shed_total", "Calls, and orders of batches, refused because of a limit.", ["reason"])
UNACKNOWLEDGED = Gauge("orderflow_server_unacknowledged_orders", "Records handed to Kafka and not acknowledged.")
CREDENTIALS_REFUSED = Counter(
    "orderflow_server_refused_credentials_total", "Calls that did not prove who calls, by reason.", ["reason"]
)
REPLAYS = Counter(
    "orderflow_dead_letter_replays_total",
    "Dead letters that somebody asked to replay, by what came of it.",
    ["outcome"],
)
CERTIFICATE_EXPIRY = _unset(
    Gauge(
        "orderflow_server_certificate_expiry_timestamp_seconds",
        "When the first of the server's certificate and its chain ends; NaN without TLS.",
    )
)

_MESSAGING: Final = ["messaging_system", "messaging_operation_name", "messaging_destination_name"]
CONSUMED = Counter(
    "messaging_client_consumed_messages_total",
    "Records handed to a worker: those that come again, too.",
    [*_MESSAGING, "messaging_consumer_group_name"],
)
SENT = Counter("messaging_client_sent_messages_total", "Records acknowledged by Kafka.", _MESSAGING)
SEND_DURATION = Histogram(
    "messaging_client_operation_duration_seconds",
    "Time until Kafka has acknowledged the records of one call, or of one sweep.",
    [*_MESSAGING, "error_type"],
    buckets=_SECONDS,
)
PROCESS_DURATION = Histogram(
    "messaging_process_duration_seconds",
    "Duration of one handling of a record; of a whole batch in the projector.",
    [*_MESSAGING, "messaging_consumer_group_name", "error_type"],
    buckets=_SECONDS,
)

DONE = Counter("orderflow_worker_done_records_total", "Records done and committed.", ["group", "topic", "outcome"])
IN_FLIGHT = Gauge("orderflow_worker_inflight_records", "Records fetched and not committed.", ["group"])
SLOTS = Gauge("orderflow_worker_slots", "Handlings that the worker may have under way.", ["group", "state"])
WAIT = Histogram(
    "orderflow_worker_schedule_to_start_seconds",
    "Time from when a record was written, or was due, until its handling began.",
    ["group"],
    buckets=_LONG,
)
PAUSED = Gauge("orderflow_worker_paused_partitions", "Partitions that want no records, by reason.", ["group", "reason"])
LAG = Gauge(
    "orderflow_worker_lag_records",
    "Offsets from the position to the end: what is not fetched yet.",
    ["group", "topic", "partition"],
)
COMMIT_LAG = Gauge(
    "orderflow_worker_commit_lag_records",
    "Offsets from the committed one to the position: what is fetched and not committed.",
    ["group", "topic", "partition"],
)
OLDEST_AGE = Gauge(
    "orderflow_worker_oldest_record_age_seconds",
    "Age of the oldest record fetched and not done, on a retry topic since it was due; 0 if there is none.",
    ["group", "topic", "partition"],
)
RETRIES = Counter("orderflow_worker_retries_total", "Handlings that failed for now.", ["group", "tier", "reason"])
TRANSACTIONS = Counter("orderflow_worker_transactions_total", "Kafka transactions.", ["group", "outcome"])
TRANSACTION_DURATION = Histogram(
    "orderflow_worker_transaction_duration_seconds", "Duration of a Kafka transaction.", ["group"], buckets=_SECONDS
)
COMMIT_METADATA = Gauge(
    "orderflow_worker_commit_metadata_bytes",
    "Size of the last commit's metadata; Kafka takes 4096.",
    ["group", "topic", "partition"],
)
REBALANCES = Counter("orderflow_worker_rebalances_total", "Assignments received.", ["group"])
DEAD_LETTERS = Counter(
    "orderflow_dead_letters_total", "Dead letters written; the projector's are rows.", ["group", "reason", "class"]
)
LAST_PROGRESS = Gauge(
    "orderflow_worker_last_progress_timestamp_seconds", "When something was last committed.", ["group"]
)
SWEPT = Counter("orderflow_swept_orders_total", "Orders that a sweep asked something of.", ["what"])
PROJECTION_LAG = Gauge(
    "orderflow_projection_lag_seconds", "Age of the last event projected when it was projected; 0 once none is left."
)

BREAKER_STATE = Gauge("orderflow_breaker_state", "1 for the state that the breaker is in.", ["breaker", "state"])
BREAKER_TRANSITIONS = Counter(
    "orderflow_breaker_transitions_total", "Changes of the breaker's state, by the new one.", ["breaker", "state"]
)
BREAKER_CALLS = Counter("orderflow_breaker_calls_total", "Calls by what the breaker saw.", ["breaker", "outcome"])
GATEWAY_DURATION = Histogram(
    "orderflow_gateway_call_duration_seconds",
    "Duration of a call to the payment gateway that the breaker let through.",
    ["operation", "outcome"],
    buckets=_SECONDS,
)

ORDER_EVENTS = Counter("orderflow_order_events_total", "Events acknowledged by Kafka.", ["type"])
ORDERS = Counter("orderflow_orders_total", "Orders that came to a status.", ["status"])
AMOUNTS = Counter(
    "orderflow_order_amount_minor_units_total",
    "Totals of the orders that came to a status, in the currency's minor unit.",
    ["status", "currency"],
)
REFUNDED = Counter(
    "orderflow_refunded_amount_minor_units_total", "Money given back, in the currency's minor unit.", ["currency"]
)
SETTLING = Histogram(
    "orderflow_order_completion_seconds",
    "Time from CreateOrder until the order was settled for the first time.",
    ["outcome"],
    buckets=_LONG,
)
PAYMENTS = Counter("orderflow_payments_total", "Charges and refunds.", ["outcome"])
NOTIFICATIONS = Counter("orderflow_notifications_total", "Messages to customers.", ["channel", "outcome"])

ORDERS_OPEN = Gauge(
    "orderflow_orders_open", "Orders in a state that they have to leave, at most 20000 of each.", ["state"]
)
ORDERS_OVERDUE = Gauge(
    "orderflow_orders_overdue", "Those of the open orders that have been in it for longer than they may.", ["state"]
)
UNKNOWN_AGE = _unset(
    Gauge(
        "orderflow_payments_unknown_oldest_age_seconds",
        "Time since the oldest charge was sent of which nobody knows what it came to; 0 if there is none.",
    )
)
UNRESOLVED = Gauge("orderflow_dead_letters_unresolved", "Dead letters that wait for somebody.", ["group", "reason"])
UNRESOLVED_AGE = _unset(
    Gauge(
        "orderflow_dead_letter_oldest_age_seconds",
        "Time since the oldest dead letter that waits for somebody was recorded; 0 if there is none.",
    )
)
STANDING_LAST_SUCCESS = Gauge(
    "orderflow_standing_last_success_timestamp_seconds", "When the figures of this section were last read."
)

DB_DURATION = Histogram(
    "db_client_operation_duration_seconds",
    "Time that a transaction, or a query alone, took, with its wait for a connection.",
    ["db_system_name", "db_operation_name", "error_type"],
    buckets=_SECONDS,
)
DB_CONNECTIONS = Gauge("db_client_connection_count", "Open connections to PostgreSQL.", ["state"])
DB_WAITING = Gauge("db_client_connection_pending_requests", "Who waits for a connection to PostgreSQL.")

REPORTS = Counter("orderflow_webhook_reports_total", "Reports of the gateway by what came of them.", ["outcome"])
RECONCILIATION_DIFFERENCES = Gauge(
    "orderflow_reconciliation_differences",
    "Differences between the gateway, the payments and the orders.",
    ["kind"],
)
RECONCILIATION_LAST_SUCCESS = Gauge(
    "orderflow_reconciliation_last_success_timestamp_seconds", "When a reconciliation last came to its end."
)
RECONCILED = Counter("orderflow_reconciliation_compared_orders_total", "Orders compared, repeats included.")
KAFKA_REACHABLE = _unset(
    Gauge(
        "orderflow_kafka_reachable",
        "1 while so much of Kafka answers as it takes to acknowledge a record; NaN where nobody asks.",
    )
)
LOOP_LAG = Histogram(
    "orderflow_event_loop_lag_seconds", "How late the process's event loop was, looked at twice a second.",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
)  # fmt: skip

AREAS: Final[dict[str, tuple[MetricWrapperBase, ...]]] = {
    "Calls, by the server": (
        RPC_DURATION, RPC_IN_FLIGHT, SHED, UNACKNOWLEDGED, CREDENTIALS_REFUSED, REPLAYS, CERTIFICATE_EXPIRY,
    ),
    "Records": (CONSUMED, SENT, SEND_DURATION, PROCESS_DURATION),
    "Workers": (
        DONE, IN_FLIGHT, SLOTS, WAIT, PAUSED, LAG, COMMIT_LAG, OLDEST_AGE, RETRIES, TRANSACTIONS, TRANSACTION_DURATION,
        COMMIT_METADATA, REBALANCES, DEAD_LETTERS, LAST_PROGRESS, SWEPT, PROJECTION_LAG,
    ),
    "Payment gateway, by the payment processor": (BREAKER_STATE, BREAKER_TRANSITIONS, BREAKER_CALLS, GATEWAY_DURATION),
    "Business, by whoever decides": (ORDER_EVENTS, ORDERS, AMOUNTS, REFUNDED, SETTLING, PAYMENTS, NOTIFICATIONS),
    "How things stand, by every order processor: take the greatest, not the sum": (
        ORDERS_OPEN, ORDERS_OVERDUE, UNKNOWN_AGE, UNRESOLVED, UNRESOLVED_AGE, STANDING_LAST_SUCCESS,
    ),
    "Reconciliation and webhook": (
        RECONCILIATION_DIFFERENCES, RECONCILIATION_LAST_SUCCESS, RECONCILED, REPORTS,
    ),
    "Every process": (DB_DURATION, DB_CONNECTIONS, DB_WAITING, KAFKA_REACHABLE, LOOP_LAG),
}  # fmt: skip
"""Which processes expose what: each metric once."""

LABELS: Final[dict[str, str]] = {
    "breaker": "`gateway`",
    "channel": "`email`, `sms`",
    "class": "`permanent`, `transient`: whether another try could have helped",
    "currency": "an ISO 4217 code, or `other`",
    "db_operation_name": "`transaction`, `query`",
    "db_system_name": "`postgresql`",
    "error_type": "what went wrong: a gRPC status that is the server's fault, an error class, or empty",
    "kind": "a [kind](operations.md#reconciliation) of difference",
    "group": "consumer group: the worker's name; of unresolved dead letters also `other`",
    "messaging_consumer_group_name": "consumer group: the worker's name",
    "messaging_destination_name": "topic",
    "messaging_operation_name": "`send`, `poll`, `process`",
    "messaging_system": "`kafka`",
    "operation": "`charge`, `find`, `refund`, `find_refund`, `close`, `movements`",
    "outcome": "see below",
    "partition": "number of the partition",
    "reason": "an error class, a limit, why a credential was refused; of unresolved dead letters also `other`; of "
    "paused partitions `opening`, `dependency_down`, `busy`",
    "rpc_method": "`orderflow.orders.v1.OrderService/CreateOrder` ...",
    "rpc_status_code": "gRPC status: `OK`, `UNAVAILABLE` ...",
    "rpc_system_name": "`grpc`",
    "state": "of the breaker `closed`, `open`, `half_open`; of slots `used`, `free`; of connections `used`, `idle`; "
    "of orders `created`, `processing`, `refunding`: with a refund that is not made",
    "status": "status of an order: `CREATED`, `PAID` ...",
    "tier": "`in_place`, or the retry topic",
    "topic": "topic",
    "type": "type of an event: `ORDER_CREATED` ...",
    "what": "`expiry`, `refund`",
}
"""What each label may be."""

OUTCOMES: Final[dict[MetricWrapperBase, str]] = {
    REPLAYS: "`replayed`, `not_handed_over`, `unknown`",
    DONE: "`handled`, `parked` on a retry topic, `dead_lettered`",
    TRANSACTIONS: "`commit`, `abort`, `fenced`",
    BREAKER_CALLS: "`success`, `failure`, `declined`, `not_permitted`",
    GATEWAY_DURATION: "`approved`, `declined`, `found`, `not_found`, `refunded`, `closed`, `listed`, `under_way`, "
    "`refused`, `unavailable`, `unknown`, `failed`",
    SETTLING: "the status: `PAID`, `REJECTED`, `PAYMENT_FAILED`, `CANCELLED`, `EXPIRED`",
    PAYMENTS: "charges: `captured`, `declined`, `unknown`; refunds: `refunded`, `refund_refused`, and `refund_unknown` "
    "for each attempt",
    REPORTS: "`reported`, `ignored`, `refund_failed`; refused ones: `not_genuine`, `not_durable`, `busy`, `slow`, "
    "`too_large`",
    NOTIFICATIONS: "`sent`, `failed`, `ambiguous`",
}
"""What `outcome` may be, which each metric has its own of."""
