"""Erased users in dead letters, and in the projector's own failures, which have their shape (semantics 35).

An event is cleared as any other. Bytes that are none cannot be: they are not kept at all, and such a dead letter is
discarded by it, since there is nothing left to replay. It had no decision and no charge: nobody could read it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from domain import erasure, letters
from domain.erasure import Erasure
from domain.projection import ProjectionBatch
from domain.records import Coordinates
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.operations.v1.dead_letter_service_pb2 import DeadLetterState
from orderflow.orders.v1.order_pb2 import Order
from storage import erasures, order_rows

if TYPE_CHECKING:
    from storage.database import Connection

_BY: Final = "privacy erase"
_REASON: Final = "its bytes could not be read, and held data of a user who was erased"


async def clear_arriving(connection: "Connection", batch: ProjectionBatch) -> None:
    """Clears the dead letters and failures of a batch before they are stored."""
    arriving = [*batch.dead_letters, *batch.failures]
    if not arriving:
        return
    events = [(letter, letters.event_in(letter)) for _, letter in arriving]
    found = await erasures.find(connection, (event.order.user_id for _, event in events if event is not None))
    for letter, event in events:
        if event is not None and erasures.clear(found, [event.order]):
            letter.value = event.SerializeToString()
    unreadable = [arrived for arrived, (_, event) in zip(arriving, events, strict=True) if event is None]
    if unreadable:
        gone = await _to_blank(connection, unreadable)
        for at, letter in unreadable:
            if at in gone:
                letters.blank(letter)
        await record(connection, gone, dead_letters=[at for at, _ in batch.dead_letters if at in gone])


async def _to_blank(connection: "Connection", unreadable: Sequence[tuple[Coordinates, DeadLetter]]) -> set[Coordinates]:
    """Returns those that were blanked before, and those that stand under the key of an erased user's order."""
    rows = await connection.fetch(
        "select topic, partition, record_offset from erased_records"
        " join unnest($1::text[], $2::integer[], $3::bigint[]) as asked (topic, partition, record_offset)"
        " using (topic, partition, record_offset)",
        [at.topic for at, _ in unreadable],
        [at.partition for at, _ in unreadable],
        [at.offset for at, _ in unreadable],
    )
    gone = {Coordinates(row["topic"], row["partition"], row["record_offset"]) for row in rows}
    keyed = {at: order_id for at, letter in unreadable if (order_id := letters.order_id_of(letter)) is not None}
    orders = await order_rows.as_placed(connection, keyed.values())
    found = await erasures.find(connection, (order.user_id for order in orders.values()))
    for at, order_id in keyed.items():
        order = orders.get(order_id)
        if order is not None and _is_erased(order, found):
            gone.add(at)
    return gone


def _is_erased(order: Order, found: Mapping[str, Erasure]) -> bool:
    # Where the user id was contact data itself, the row does not have it any more.
    return erasure.is_pseudonym(order.user_id) or erasures.covered(found, order)


async def record(connection: "Connection", gone: Iterable[Coordinates], *, dead_letters: Sequence[Coordinates]) -> None:
    """Records what was blanked, so that it is blanked again if it is projected anew, and resolves the dead letters."""
    await connection.executemany(
        "insert into erased_records (topic, partition, record_offset) values ($1, $2, $3) on conflict do nothing",
        [(at.topic, at.partition, at.offset) for at in gone],
    )
    await connection.executemany(
        "insert into dead_letter_resolutions (partition, record_offset, state, resolved_by, reason)"
        " values ($1, $2, $3, $4, $5) on conflict do nothing",
        [(at.partition, at.offset, DeadLetterState.DEAD_LETTER_STATE_DISCARDED, _BY, _REASON) for at in dead_letters],
    )


def cleared(
    letter: DeadLetter, found: Mapping[str, Erasure], *, contacts: Collection[str], order_ids: Collection[str]
) -> bool:
    """Clears one dead letter of the erased user, whose contacts and orders are given. Returns whether it had anything.

    One whose bytes are no event is blanked if it is about the user: its value is not set any more.
    """
    event = letters.event_in(letter)
    if event is not None:
        if not erasures.clear(found, [event.order]):
            return False
        letter.value = event.SerializeToString()
        return True
    is_about = bool(letter.value) and letters.order_id_of(letter) in order_ids
    if not is_about and not letters.holds(letter, contacts):
        return False
    letters.blank(letter)
    return True
