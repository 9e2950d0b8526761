"""Grafana dashboards, made from the tables below.

    python -m deploy.observability.dashboards     # writes dashboards/*.json anew

A panel is a line: what it is called, its unit, and what it shows, each with a legend.
"""

import dataclasses
import json
import pathlib
from typing import Any, Final

FOLDER: Final = pathlib.Path(__file__).parent / "dashboards"

_WIDTH: Final = 24
_HEIGHT: Final = 8
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_ERRORS: Final = "UNKNOWN|DEADLINE_EXCEEDED|UNIMPLEMENTED|INTERNAL|UNAVAILABLE|DATA_LOSS"


@dataclasses.dataclass(frozen=True)
class Panel:
    """A panel. `unit` is Grafana's name; `kind` is timeseries, stat, state-timeline or alertlist."""

    title: str
    unit: str = "short"
    queries: tuple[tuple[str, str], ...] = ()
    kind: str = "timeseries"
    width: int = 8


@dataclasses.dataclass(frozen=True)
class Dashboard:
    """A dashboard; `uid` never changes, for it is in people's links."""

    uid: str
    title: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    by_group: bool = False


def _quantiles(histogram: str, by: str, where: str = "") -> tuple[tuple[str, str], ...]:
    return tuple(
        (
            f"histogram_quantile({quantile}, sum by ({by}, le) (rate({histogram}_bucket{where}[$__rate_interval])))",
            f"{{{{{by}}}}} {name}",
        )
        for quantile, name in ((0.5, "p50"), (0.99, "p99"))
    )


def _rate(counter: str, by: str, where: str = "") -> tuple[tuple[str, str], ...]:
    legend = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(","))
    return ((f"sum by ({by}) (rate({counter}{where}[$__rate_interval]))", legend),)


_GROUP: Final = '{group=~"$group"}'
_CONSUMER: Final = '{messaging_consumer_group_name=~"$group"}'

OVERVIEW: Final = Dashboard(
    "orderflow-overview",
    "Orderflow: overview",
    (
        (
            "What is wrong",
            (
                Panel("Alerts", kind="alertlist"),
                Panel(
                    "Circuit breakers",
                    queries=(('max by (breaker) (orderflow_breaker_state{state!="closed"})', "{{breaker}}"),),
                    kind="state-timeline",
                ),
                Panel(
                    "Processes",
                    queries=(('sum by (component) (up{job="orderflow"})', "{{component}}"),),
                    kind="stat",
                ),
            ),
        ),
        (
            "Intake",
            (
                Panel("Calls", "reqps", _rate("rpc_server_call_duration_seconds_count", "rpc_method")),
                Panel(
                    "Failed calls",
                    "reqps",
                    _rate(
                        "rpc_server_call_duration_seconds_count",
                        "rpc_method, rpc_status_code",
                        f'{{rpc_status_code=~"{_ERRORS}"}}',
                    ),
                ),
                Panel(
                    "Duration, without watches",
                    "s",
                    _quantiles("rpc_server_call_duration_seconds", "rpc_method", '{rpc_method!~".+/WatchOrder"}'),
                ),
                Panel("Refused by a limit", "reqps", _rate("orderflow_server_shed_total", "reason")),
                Panel(
                    "Under way", queries=(("sum by (rpc_method) (orderflow_server_inflight_calls)", "{{rpc_method}}"),)
                ),
                Panel(
                    "Waiting for Kafka's acknowledgement",
                    queries=(("orderflow_server_unacknowledged_orders", "{{instance}}"),),
                ),
            ),
        ),
        (
            "Orders",
            (
                Panel("By what they came to", "ops", _rate("orderflow_orders_total", "status")),
                Panel("Open", queries=(("max by (state) (orderflow_orders_open)", "{{state}}"),)),
                Panel("Overdue", queries=(("max by (state) (orderflow_orders_overdue)", "{{state}}"),)),
                Panel("From order to end", "s", _quantiles("orderflow_order_completion_seconds", "outcome")),
                Panel(
                    "Oldest record to handle",
                    "s",
                    (("max by (group) (orderflow_worker_oldest_record_age_seconds)", "{{group}}"),),
                ),
                Panel("Reads are behind by", "s", (("max(orderflow_projection_lag_seconds)", "projector"),)),
            ),
        ),
        (
            "Dead letters",
            (
                Panel("Written", "ops", _rate("orderflow_dead_letters_total", "group, reason")),
                Panel(
                    "Unresolved",
                    queries=(("max by (group, reason) (orderflow_dead_letters_unresolved)", "{{group}} {{reason}}"),),
                ),
                Panel("Oldest unresolved", "s", (("max(orderflow_dead_letter_oldest_age_seconds)", "oldest"),)),
            ),
        ),
    ),
)

WORKERS: Final = Dashboard(
    "orderflow-workers",
    "Orderflow: workers",
    (
        (
            "Do they keep up",
            (
                Panel("Lag", queries=((f"sum by (group) (orderflow_worker_lag_records{_GROUP})", "{{group}}"),)),
                Panel(
                    "Time until a record is begun",
                    "s",
                    _quantiles("orderflow_worker_schedule_to_start_seconds", "group", _GROUP),
                ),
                Panel(
                    "Time to handle a record",
                    "s",
                    _quantiles("messaging_process_duration_seconds", "messaging_consumer_group_name", _CONSUMER),
                ),
                Panel(
                    "Records taken",
                    "ops",
                    _rate("messaging_client_consumed_messages_total", "messaging_consumer_group_name", _CONSUMER),
                ),
                Panel(
                    "In flight", queries=((f"sum by (group) (orderflow_worker_inflight_records{_GROUP})", "{{group}}"),)
                ),
                Panel(
                    "Slots",
                    queries=((f"sum by (group, state) (orderflow_worker_slots{_GROUP})", "{{group}} {{state}}"),),
                ),
            ),
        ),
        (
            "What holds them up",
            (
                Panel(
                    "Paused partitions",
                    queries=(
                        (
                            f"sum by (group, reason) (orderflow_worker_paused_partitions{_GROUP})",
                            "{{group}} {{reason}}",
                        ),
                    ),
                ),
                Panel("Retries", "ops", _rate("orderflow_worker_retries_total", "group, tier, reason", _GROUP)),
                Panel("Records done", "ops", _rate("orderflow_worker_done_records_total", "group, outcome", _GROUP)),
                Panel(
                    "Seconds since the last commit",
                    "s",
                    (
                        (
                            f"time() - max by (group) (orderflow_worker_last_progress_timestamp_seconds{_GROUP})",
                            "{{group}}",
                        ),
                    ),
                ),
                Panel("Assignments", "ops", _rate("orderflow_worker_rebalances_total", "group", _GROUP)),
                Panel(
                    "Commit metadata",
                    "bytes",
                    ((f"max by (group) (orderflow_worker_commit_metadata_bytes{_GROUP})", "{{group}}"),),
                ),
            ),
        ),
        (
            "Kafka, PostgreSQL and the process",
            (
                Panel("Transactions", "ops", _rate("orderflow_worker_transactions_total", "group, outcome", _GROUP)),
                Panel(
                    "Duration of a transaction",
                    "s",
                    _quantiles("orderflow_worker_transaction_duration_seconds", "group", _GROUP),
                ),
                Panel(
                    "Records sent", "ops", _rate("messaging_client_sent_messages_total", "messaging_destination_name")
                ),
                Panel("Duration of a statement", "s", _quantiles("db_client_operation_duration_seconds", "component")),
                Panel(
                    "Database connections",
                    queries=(
                        ("sum by (component, state) (db_client_connection_count)", "{{component}} {{state}}"),
                        ("sum by (component) (db_client_connection_pending_requests)", "{{component}} waiting"),
                    ),
                ),
                Panel("Event loop late by", "s", _quantiles("orderflow_event_loop_lag_seconds", "component")),
            ),
        ),
    ),
    by_group=True,
)

MONEY: Final = Dashboard(
    "orderflow-money",
    "Orderflow: money and messages",
    (
        (
            "Money",
            (
                Panel("Charges and refunds", "ops", _rate("orderflow_payments_total", "outcome")),
                Panel(
                    "Oldest unknown charge",
                    "s",
                    (("max(orderflow_payments_unknown_oldest_age_seconds)", "oldest"),),
                ),
                Panel(
                    "Gateway, bookings and orders differ",
                    queries=(("max by (kind) (orderflow_reconciliation_differences)", "{{kind}}"),),
                ),
                Panel("Calls to the gateway", "ops", _rate("orderflow_breaker_calls_total", "breaker, outcome")),
                Panel("Duration of a call", "s", _quantiles("orderflow_gateway_call_duration_seconds", "operation")),
                Panel("Asked for by a sweep", "ops", _rate("orderflow_swept_orders_total", "what")),
            ),
        ),
        ("Messages", (Panel("Messages", "ops", _rate("orderflow_notifications_total", "channel, outcome"), width=16),)),
    ),
)

ALL: Final = (OVERVIEW, WORKERS, MONEY)


def as_json(dashboard: Dashboard) -> str:
    """Returns the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in dashboard.rows:
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "gridPos": _position(0, top, _WIDTH, 1)})
        top, left = top + 1, 0
        for panel in row:
            if left + panel.width > _WIDTH:
                top, left = top + _HEIGHT, 0
            place = _position(left, top, panel.width, _HEIGHT)
            panels.append({"id": len(panels) + 1, **_panel(panel), "gridPos": place})
            left += panel.width
        top += _HEIGHT
    return json.dumps(
        {
            "uid": dashboard.uid,
            "title": dashboard.title,
            "tags": ["orderflow"],
            "schemaVersion": 39,
            "editable": False,
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "templating": {"list": _variables(dashboard)},
            "links": [{"type": "dashboards", "tags": ["orderflow"], "title": "Orderflow", "asDropdown": True}],
            "panels": panels,
        },
        indent=1,
    ) + "\n"  # fmt: skip


def _panel(panel: Panel) -> dict[str, Any]:
    if panel.kind == "alertlist":
        options = {"alertName": "Orderflow", "stateFilter": {"firing": True, "pending": True}, "viewMode": "list"}
        return {"type": "alertlist", "title": panel.title, "options": options}
    targets = [
        {"refId": chr(ord("A") + number), "expr": expression, "legendFormat": legend, "exemplar": panel.unit == "s"}
        for number, (expression, legend) in enumerate(panel.queries)
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": targets,
    }


def _position(left: int, top: int, width: int, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


def _variables(dashboard: Dashboard) -> list[dict[str, Any]]:
    variables: list[dict[str, Any]] = [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
    if dashboard.by_group:
        query = "label_values(orderflow_worker_rebalances_total, group)"
        variables.append(
            {
                "name": "group",
                "type": "query",
                "datasource": _SOURCE,
                "query": {"query": query, "refId": "group"},
                "refresh": 2,
                "multi": True,
                "includeAll": True,
                "allValue": ".*",
                "current": {"text": "All", "value": "$__all"},
            }
        )
    return variables


def main() -> None:
    """Writes the dashboards."""
    FOLDER.mkdir(exist_ok=True)
    for dashboard in ALL:
        (FOLDER / f"{dashboard.uid}.json").write_text(as_json(dashboard))


if __name__ == "__main__":
    main()
