"""Which copy of a replayed dead letter counts: the first that is consumed (semantics 16)."""

from domain.records import Coordinates
from storage.database import Database


class ReplayClaims:
    """Claims of one consumer group."""

    def __init__(self, database: Database, group: str) -> None:
        """Uses the database's pool."""
        self._database = database
        self._group = group

    async def claim(self, *, origin: Coordinates, replay: int, by: Coordinates) -> bool:
        """Claims a replay for the record `by`. False: another copy has it.

        Raises:
            DependencyDown: PostgreSQL is away.
        """
        async with self._database.transaction() as connection:
            claimed = await connection.fetchval(
                "insert into replay_claims"
                " (group_name, origin_topic, origin_partition, origin_offset, replay, topic, partition, record_offset)"
                " values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict do nothing returning true",
                self._group,
                origin.topic,
                origin.partition,
                origin.offset,
                replay,
                by.topic,
                by.partition,
                by.offset,
            )
            if claimed:
                return True
            row = await connection.fetchrow(
                "select topic, partition, record_offset from replay_claims where group_name = $1 and origin_topic = $2"
                " and origin_partition = $3 and origin_offset = $4 and replay = $5",
                self._group,
                origin.topic,
                origin.partition,
                origin.offset,
                replay,
            )
            return row is not None and Coordinates(row["topic"], row["partition"], row["record_offset"]) == by
