"""The metrics that the console reads, by what they mean here. The processes name them in telemetry/metrics.py."""

from typing import Final

LAG: Final = "orderflow_worker_lag_records"
"""Records behind the end. Labels group, topic, partition."""
OLDEST_AGE: Final = "orderflow_worker_oldest_record_age_seconds"
"""Age of the oldest record that a group has not finished. Label group."""
IN_FLIGHT: Final = "orderflow_worker_inflight_records"
"""Records fetched and not committed. Label group."""
PAUSED: Final = "orderflow_worker_paused_partitions"
"""Partitions that are not fetched from. Labels group, reason."""
LAST_PROGRESS: Final = "orderflow_worker_last_progress_timestamp_seconds"
"""When a group last committed something, seconds since 1970. Label group."""
PROJECTION_LAG: Final = "orderflow_projection_lag_seconds"
"""How far the read model is behind."""
BREAKER: Final = "orderflow_breaker_state"
"""1 for the state that a circuit breaker is in. Labels breaker, state."""
EVENTS: Final = "orderflow_order_events_total"
"""Events emitted. Label type, as `ce_type` spells it."""
CALLS: Final = "rpc_server_call_duration_seconds_count"
"""gRPC calls answered. Labels rpc_method, rpc_status_code."""
STARTED: Final = "process_start_time_seconds"
"""When the process began, seconds since 1970."""

READ: Final = frozenset(
    {LAG, OLDEST_AGE, IN_FLIGHT, PAUSED, LAST_PROGRESS, PROJECTION_LAG, BREAKER, EVENTS, CALLS, STARTED}
)

BUSY: Final = "busy"
"""The reason of a pause that is none to worry about: as much is in flight as may be."""
