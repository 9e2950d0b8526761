"""What the notification service intends and decides: one send per (event, channel)."""

import datetime
from typing import TYPE_CHECKING, Final

from domain.erasure import UserErased
from domain.records import Delivery
from orderflow.events.v1.order_event_pb2 import OrderEvent
from orderflow.orders.v1.order_pb2 import NotificationChannel
from storage import erasures, outcomes
from storage.database import Database
from storage.outcomes import Settled

if TYPE_CHECKING:
    from storage.database import Connection

_INTEND: Final = (
    "with erased as (select true from erasures cross join user_hash_keys"  # noqa: S608 - constants
    f" where user_hash = {erasures.hash_of('$4::text')} and before_time > $5),"
    " intent as (insert into notification_intents (event_id, channel, message_id)"
    " select $1::uuid, $2::smallint, $3::text where not exists (select from erased)"
    " on conflict do nothing returning true)"
    " select exists (select from erased) as is_erased, exists (select from intent) as is_first"
)


class NotificationIntents:
    """Intents of one channel."""

    def __init__(self, database: Database, channel: NotificationChannel) -> None:
        """Uses the database's pool."""
        self._database = database
        self._channel = channel

    async def intend(self, delivery: Delivery, *, message_id: str) -> Settled | bool:
        """Stores the intent to send. True: for the first time. False: a send may have happened already.

        Raises:
            UserErased: nothing was stored.
            DependencyDown: PostgreSQL is away.
        """
        order = delivery.event.order
        async with self._database.transaction() as connection:
            decided = await outcomes.obeyed(connection, delivery)
            if decided is not None:
                return Settled(decided)
            row = await connection.fetchrow(
                _INTEND,
                delivery.event.event_id,
                self._channel,
                message_id,
                order.user_id,
                order.create_time.ToDatetime(datetime.UTC),
            )
        assert row is not None
        if row["is_erased"]:
            raise UserErased
        return bool(row["is_first"])

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

        async def decision(connection: "Connection") -> list[OrderEvent]:
            if event is None:
                return []
            # Made from what came from the topic, and not from the row as everything else is.
            await erasures.apply(connection, [event.order])
            return [event]

        return await outcomes.decide(self._database, delivery, decision)
