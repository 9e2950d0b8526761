"""docs/metrics.md, made from the metrics themselves."""

from prometheus_client.metrics import MetricWrapperBase

from telemetry import metrics


def page() -> str:
    """Returns the page."""
    lines = [
        "# Metrics",
        "",
        "Every metric there is, for Prometheus, on each process's metrics port. Their names are the Prometheus form of",
        "OpenTelemetry's. A histogram has `_bucket`, `_sum` and `_count`, its seconds are of the buckets that",
        "OpenTelemetry advises. This page is made by `orderflow metrics` from the code.",
    ]
    for area, members in metrics.AREAS.items():
        lines += ["", f"## {area}", "", "| metric | type | labels | what |", "| --- | --- | --- | --- |"]
        lines += [_row(each) for each in members]
    lines += [
        "",
        "## Labels",
        "",
        "No label is unbounded: none holds an order, a customer, a request, a SKU or the text of an error. Histograms",
        "of calls and of handlings show traces by exemplars, to whoever asks for OpenMetrics.",
        "",
        "| label | values |",
        "| --- | --- |",
    ]
    lines += [f"| `{label}` | {values} |" for label, values in sorted(metrics.LABELS.items())]
    lines += ["", "| `outcome` of | values |", "| --- | --- |"]
    lines += [f"| `{exposed_name(each)}` | {values} |" for each, values in metrics.OUTCOMES.items()]
    return "\n".join(lines) + "\n"


def exposed_name(metric: MetricWrapperBase) -> str:
    """Returns the name that queries use."""
    [family] = metric.describe()
    return f"{family.name}_total" if family.type == "counter" else family.name


def labels_of(metric: MetricWrapperBase) -> tuple[str, ...]:
    """Returns the names of the metric's labels."""
    return tuple(metric._labelnames)  # there is no public way to ask


def _row(metric: MetricWrapperBase) -> str:
    [family] = metric.describe()
    labels = ", ".join(f"`{label}`" for label in labels_of(metric))
    return f"| `{exposed_name(metric)}` | {family.type} | {labels} | {family.documentation} |"
