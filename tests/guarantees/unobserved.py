"""Runs a worker without telemetry, to measure what telemetry costs: `python -m tests.guarantees.unobserved WORKER`.

No metric counts, no line below an error is logged or prepared, no trace context is read or written.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import structlog
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from telemetry import tracing


def silence() -> None:
    """Makes all of it nothing in this process."""

    def nothing(*_: object, **__: object) -> None: ...

    @contextlib.contextmanager
    def no_context(_: object) -> Iterator[None]:
        yield

    def unlabelled(metric: Any, *_: object, **__: object) -> Any:
        return metric

    MetricWrapperBase.labels = unlabelled  # type: ignore[method-assign]
    for kind, methods in ((Counter, ("inc",)), (Gauge, ("inc", "dec", "set")), (Histogram, ("observe",))):
        for method in methods:
            setattr(kind, method, nothing)
    for method in ("set_function", "set_to_current_time", "remove"):
        setattr(Gauge, method, nothing)
    structlog.contextvars.bind_contextvars = nothing  # type: ignore[assignment]
    tracing.continued = no_context  # type: ignore[assignment]
    tracing.inject = lambda headers, span=None: list(headers)


if __name__ == "__main__":
    silence()
    os.environ["ORDERFLOW_LOG_LEVEL"] = "ERROR"
    from cli.main import main

    sys.argv = ["orderflow", "run", sys.argv[1]]
    main()
