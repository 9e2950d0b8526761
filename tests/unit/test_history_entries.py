"""What a caller is shown of a dead letter: what became of it, and why if that decided about its order."""

import pytest

from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from server import history_entries
from storage.order_history import HistoryPosition, HistoryRow
from tests.builders import NOW


@pytest.mark.parametrize(
    ("resolution", "reason"), [("", ""), ("REPLAYED", ""), ("SETTLED", ""), ("DISCARDED", "the charge is disputed")]
)
def test_a_dead_letter_tells_what_became_of_it(resolution: str, reason: str) -> None:
    """What operators write down about a replay is between them."""
    letter = DeadLetter(group="payment-processor", error_class="GATEWAY_REFUSED", error_message="refused", replay=1)
    row = HistoryRow(HistoryPosition(NOW, 0, "dlq/0-7"), letter, resolution, "the charge is disputed")
    shown = history_entries.entry(row)
    assert (shown.type, shown.entry_id, shown.reason) == ("DEAD_LETTER", "dlq/0-7", "GATEWAY_REFUSED")
    assert (shown.dead_letter.message, shown.dead_letter.replay) == ("refused", 1)
    assert (shown.dead_letter.resolution, shown.dead_letter.resolution_reason) == (resolution, reason)
