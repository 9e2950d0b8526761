"""What the notification service intends and decides: one send per (event, channel)."""

from typing import TYPE_CHECKING

from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_pb2 import NotificationChannel
from storage import outcomes
from storage.database import Database
from storage.outcomes import Settled

if TYPE_CHECKING:
    from storage.database import Connection


class NotificationIntents:
    """Intents of one channel."""

    def __init__(self, database: Database, channel: NotificationChannel) -> None:
        """Uses the database's pool."""
        self._database = database
        self._channel = channel

    async def intend(self, delivery: Delivery, *, message_id: str) -> Settled | bool:
        """Stores the intent to send. True: for the first time. False: a send may have happened already.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.transaction() as connection:
            decided = await outcomes.obeyed(connection, delivery)
            if decided is not None:
                return Settled(decided)
            return bool(
                await connection.fetchval(
                    "insert into notification_intents (event_id, channel, message_id) values ($1, $2, $3)"
                    " on conflict do nothing returning true",
                    delivery.event.event_id,
                    self._channel,
                    message_id,
                )
            )

    async def not_sent(self, delivery: Delivery) -> None:
        """Withdraws the intent: the channel refused the message, so it is known that nothing was sent.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.connection() as connection:
            await connection.execute(
                "delete from notification_intents where event_id = $1 and channel = $2",
                delivery.event.event_id,
                self._channel,
            )

    async def decide(self, delivery: Delivery, event: OrderEvent | None) -> list[OrderEvent]:
        """Stores the outcome: the event that tells of it, or nothing. Returns the events to emit.

        Raises:
            DependencyDown: PostgreSQL is away.
        """

        async def decision(_: "Connection") -> list[OrderEvent]:
            return [event] if event is not None else []

        return await outcomes.decide(self._database, delivery, decision)
