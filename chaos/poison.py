"""Records that nobody can process, for every input topic."""

import random
import uuid
from typing import Any

from aiokafka import AIOKafkaProducer

from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import Order

Raw = tuple[str, bytes | None, bytes | None]
"""What is wrong with it, its key, its value."""


def records(topic: str, seed: str) -> list[Raw]:
    """Returns one record of each kind, the same for the same arguments."""
    dice = random.Random(f"{seed}/{topic}")  # noqa: S311 - makes garbage, guards nothing
    order_id = str(uuid.UUID(int=dice.getrandbits(128), version=4))
    other_id = str(uuid.UUID(int=dice.getrandbits(128), version=4))
    paid = OrderEventType.ORDER_EVENT_TYPE_ORDER_PAID
    created = OrderEventType.ORDER_EVENT_TYPE_ORDER_CREATED
    event = OrderEvent(
        event_id=str(uuid.UUID(int=dice.getrandbits(128), version=4)),
        type=paid if topic == "payments" else created,
        order=Order(order_id=order_id),
        revision=1,
    )
    event.metadata.correlation_id = order_id
    misplaced, newer = OrderEvent(), OrderEvent()
    misplaced.CopyFrom(event)
    misplaced.type = created if topic == "payments" else paid
    newer.CopyFrom(event)
    newer.MergeFromString(b"\x10\x63")  # the type is 99
    whole = event.SerializeToString()
    key = order_id.encode()
    return [
        ("random bytes", key, b"\xff" + dice.randbytes(dice.randint(1, 500))),
        ("random key", dice.randbytes(16), dice.randbytes(40)),
        ("truncated event", key, whole[:-1]),
        ("wrong key", other_id.encode(), whole),
        ("no key", None, whole),
        ("null value", key, None),
        ("empty key, null value", b"", None),
        ("unknown type", key, newer.SerializeToString()),
        ("wrong topic", key, misplaced.SerializeToString()),
    ]


async def write(bootstrap: str, topics: list[str], seed: str) -> list[dict[str, Any]]:
    """Writes one record of each kind to every topic and returns where they stand."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
    await producer.start()
    places: list[dict[str, Any]] = []
    try:
        for topic in topics:
            for what, key, value in records(topic, seed):
                written = await producer.send_and_wait(topic, key=key, value=value)
                places.append({"topic": topic, "partition": written.partition, "offset": written.offset, "what": what})
    finally:
        await producer.stop()
    return places
