"""Every metric. Names are the Prometheus form of OpenTelemetry's; no label is unbounded."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

RPC_DURATION = Histogram(
    "rpc_server_call_duration_seconds",
    "Duration of a gRPC call.",
    ["rpc_system_name", "rpc_method", "rpc_status_code"],
    buckets=_SECONDS,
)
RPC_IN_FLIGHT = Gauge("orderflow_server_inflight_calls", "gRPC calls under way.", ["rpc_method"])
SHED = Counter("orderflow_server_shed_total", "Calls, and orders of batches, refused because of a limit.", ["reason"])
UNACKNOWLEDGED = Gauge("orderflow_server_unacknowledged_orders", "Records handed to Kafka and not acknowledged.")
CREDENTIALS_REFUSED = Counter(
    "orderflow_server_refused_credentials_total", "Calls that did not prove who calls, by reason.", ["reason"]
)

CONSUMED = Counter(
    "messaging_client_consumed_messages_total",
    "Records handed to a worker.",
    ["messaging_destination_name", "messaging_consumer_group_name"],
)
SENT = Counter("messaging_client_sent_messages_total", "Records acknowledged by Kafka.", ["messaging_destination_name"])
PROCESS_DURATION = Histogram(
    "messaging_process_duration_seconds",
    "Duration of one handling of a record.",
    ["messaging_destination_name", "messaging_consumer_group_name", "error_type"],
    buckets=_SECONDS,
)
IN_FLIGHT = Gauge("orderflow_worker_inflight_records", "Records fetched and not committed.", ["group"])
PAUSED = Gauge("orderflow_worker_paused_partitions", "Partitions not fetched from, by reason.", ["group", "reason"])
LAG = Gauge(
    "orderflow_worker_lag_records", "Records behind the end, from the position.", ["group", "topic", "partition"]
)
RETRIES = Counter("orderflow_worker_retries_total", "Handlings that failed for now.", ["group", "tier", "reason"])
TRANSACTIONS = Counter("orderflow_worker_transactions_total", "Kafka transactions by outcome.", ["group", "outcome"])
TRANSACTION_DURATION = Histogram(
    "orderflow_worker_transaction_duration_seconds", "Duration of a Kafka transaction.", ["group"], buckets=_SECONDS
)
REBALANCES = Counter("orderflow_worker_rebalances_total", "Assignments received.", ["group"])
DEAD_LETTERS = Counter("orderflow_dead_letters_total", "Dead letters written.", ["group", "reason"])
LAST_PROGRESS = Gauge(
    "orderflow_worker_last_progress_timestamp_seconds", "When something was last committed.", ["group"]
)

BREAKER_STATE = Gauge("orderflow_breaker_state", "1 for the state that the breaker is in.", ["breaker", "state"])
BREAKER_CALLS = Counter("orderflow_breaker_calls_total", "Calls by what the breaker saw.", ["breaker", "outcome"])

ORDER_EVENTS = Counter("orderflow_order_events_total", "Events emitted, by type.", ["type"])
PAYMENTS = Counter("orderflow_payments_total", "Charges and refunds by outcome.", ["outcome"])
SWEPT = Counter("orderflow_swept_orders_total", "Orders that a sweep asked something of.", ["what"])
NOTIFICATIONS = Counter("orderflow_notifications_total", "Messages by channel and outcome.", ["channel", "outcome"])
PROJECTION_LAG = Gauge("orderflow_projection_lag_seconds", "Age of the last event projected when it was projected.")
KAFKA_REACHABLE = Gauge(
    "orderflow_kafka_reachable", "1 while so much of Kafka answers as it takes to acknowledge a record."
)
