"""The workloads, one module each."""

from typing import Any, Final

from bench.results import Workload
from bench.workloads import batch, client, drain, growth, hot_sku, latency, memory, reads, startup, unary, watches

ALL: Final[dict[str, Workload[Any]]] = {
    module.WORKLOAD.name: module.WORKLOAD
    for module in (unary, batch, drain, latency, reads, watches, hot_sku, growth, memory, startup, client)
}
"""By name, in the order in which they run."""
