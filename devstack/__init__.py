"""Starts the real engines (Apache Kafka, PostgreSQL, a mail sink) as child processes on loopback.

For `make run` and for the tests.

Start children from the main thread: on Linux they are told to die with the *thread* that started them (see launch.py).
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from devstack.errors import DevstackError
    from devstack.jars import default_cache, ensure_jars
    from devstack.java import java_executable
    from devstack.kafka import KafkaBroker
    from devstack.kafka_cluster import KafkaCluster
    from devstack.ports import free_ports, require_free
    from devstack.postgres import PostgresServer
    from devstack.process import ManagedProcess

__all__ = [
    "DevstackError",
    "KafkaBroker",
    "KafkaCluster",
    "ManagedProcess",
    "PostgresServer",
    "default_cache",
    "ensure_jars",
    "free_ports",
    "java_executable",
    "require_free",
]

# Imported when asked for: an installation for production has this package and not what it needs.
_HOMES: Final = {
    "DevstackError": "errors",
    "KafkaBroker": "kafka",
    "KafkaCluster": "kafka_cluster",
    "ManagedProcess": "process",
    "PostgresServer": "postgres",
    "default_cache": "jars",
    "ensure_jars": "jars",
    "free_ports": "ports",
    "java_executable": "java",
    "require_free": "ports",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
