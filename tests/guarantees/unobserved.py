"""Runs a worker without telemetry, to measure what telemetry costs: `python -m tests.guarantees.unobserved WORKER`.

No metric counts, no line below an error is logged or prepared, no span is recorded. Trace context travels: it is part
of every record, whoever records spans.
"""

import os
import sys
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from telemetry import logs


def silence() -> None:
    """Makes all of it nothing in this process."""

    def nothing(*_: object, **__: object) -> None: ...

    def unlabelled(metric: Any, *_: object, **__: object) -> Any:
        return metric

    MetricWrapperBase.labels = unlabelled  # type: ignore[method-assign]
    for kind, methods in ((Counter, ("inc",)), (Gauge, ("inc", "dec", "set")), (Histogram, ("observe",))):
        for method in methods:
            setattr(kind, method, nothing)
    for method in ("set_function", "set_to_current_time", "remove"):
        setattr(Gauge, method, nothing)
    logs.about = nothing


if __name__ == "__main__":
    silence()
    os.environ["ORDERFLOW_LOG_LEVEL"] = "ERROR"
    os.environ["OTEL_SDK_DISABLED"] = "true"
    from cli.main import main

    sys.argv = ["orderflow", "run", sys.argv[1]]
    main()
