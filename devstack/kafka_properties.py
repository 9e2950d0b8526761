"""What a development broker is set to: alone, or one of several."""

import dataclasses
from pathlib import Path

from devstack.ports import LOOPBACK


@dataclasses.dataclass(frozen=True)
class Member:
    """A broker's place in a cluster of several."""

    node_id: int
    cluster_id: str
    controllers: tuple[int, ...]
    """The controllers' ports, that of node 1 first."""


_BROKER = """\
# Written by devstack at each start.
process.roles=broker,controller
node.id={node_id}
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}{proxied_listener}
advertised.listeners=PLAINTEXT://{host}:{port}{proxied_advertised}
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT
log.dirs={data}

# Topics are declared by `orderflow topics`; a misspelt name has to fail.
auto.create.topics.enable=false
delete.topic.enable=true

# Of a cluster of one every internal topic has one replica.
default.replication.factor={replicas}
min.insync.replicas={min_in_sync}
offsets.topic.replication.factor={replicas}
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={min_in_sync}
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={min_in_sync}
# Few partitions, because each one is a file to open at the start.
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
share.coordinator.state.topic.num.partitions=1
transaction.state.log.segment.bytes=16777216
offsets.topic.segment.bytes=16777216
log.segment.bytes=134217728
log.index.size.max.bytes=1048576

# A worker that was away for weeks still finds its place (30 days).
offsets.retention.minutes=43200
# Wait for no further members: tests and `make run` start consumers one by one and want them at work at once.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
num.network.threads=2
num.io.threads=4
num.recovery.threads.per.data.dir=2
log.cleaner.dedupe.buffer.size=16777216
"""

_ALONE = """
# Never fence the only broker, not when it was suspended, not when it stops (see kafka_fence.py).
broker.session.timeout.ms=2147483647
controlled.shutdown.enable=false
"""

_MEMBER = """
# One that died holds its partitions up for so long, and 3 s longer if it was the active controller.
broker.session.timeout.ms=6000
broker.heartbeat.interval.ms=1000
# They stop together: the last one would wait for a controller that has gone.
controlled.shutdown.enable=false
"""

_CONTROLLER = """\
# Written by devstack: a controller alone, for a moment before each start of the brokers.
process.roles=controller
node.id={node_id}
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
listeners=CONTROLLER://{host}:{port}
listener.security.protocol.map=CONTROLLER:PLAINTEXT
log.dirs={data}
broker.heartbeat.interval.ms=50
broker.session.timeout.ms=100
# Something is written this often, so that a longer log proves that what came before is written too.
metadata.max.idle.interval.ms=50
"""

LOG4J2 = """\
<?xml version="1.0" encoding="UTF-8"?>
<!-- Written by devstack at each start. -->
<Configuration status="WARN" shutdownHook="disable">
  <Appenders>
    <Console name="out" target="SYSTEM_OUT">
      <PatternLayout pattern="%d{ISO8601} %p %c{1} %m%n"/>
    </Console>
  </Appenders>
  <Loggers>
    <Root level="INFO"><AppenderRef ref="out"/></Root>
    <Logger name="kafka" level="INFO"/>
    <Logger name="org.apache.kafka.clients" level="WARN"/>
    <!-- These print hundreds of lines of configuration at each start. -->
    <Logger name="org.apache.kafka.common.config.AbstractConfig" level="WARN"/>
    <Logger name="kafka.server.KafkaConfig" level="WARN"/>
  </Loggers>
</Configuration>
"""


def broker(
    port: int, controller_port: int, data: Path, *, proxied: tuple[int, int] | None, member: Member | None
) -> str:
    """Return the settings of a broker; `proxied` and `member` are those of KafkaBroker."""
    addresses = [f",PROXIED://{LOOPBACK}:{each}" for each in proxied or ()]
    controllers = (controller_port,) if member is None else member.controllers
    replicas = min(3, len(controllers))
    return (_BROKER + (_ALONE if member is None else _MEMBER)).format(
        node_id=1 if member is None else member.node_id,
        voters=voters(controllers),
        host=LOOPBACK,
        port=port,
        controller_port=controller_port,
        proxied_listener="".join(addresses[:1]),
        proxied_advertised="".join(addresses[1:]),
        data=data,
        replicas=replicas,
        min_in_sync=max(1, replicas - 1),
    )


def controller(node_id: int, controllers: tuple[int, ...], data: Path) -> str:
    """Return the settings of a controller alone, which gives up on a broker at once."""
    return _CONTROLLER.format(
        node_id=node_id, voters=voters(controllers), host=LOOPBACK, port=controllers[node_id - 1], data=data
    )


def voters(controllers: tuple[int, ...]) -> str:
    """Return the quorum in Kafka's own words."""
    return ",".join(f"{number}@{LOOPBACK}:{port}" for number, port in enumerate(controllers, 1))
