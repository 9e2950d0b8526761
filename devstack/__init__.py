"""Starts the real engines (Apache Kafka, PostgreSQL, a mail sink) as child processes on loopback.

For `make run` and for the tests.

Start children from the main thread: on Linux they are told to die with the *thread* that started them (see launch.py).
"""

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
