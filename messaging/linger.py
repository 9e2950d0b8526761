"""How long done records wait for others to share their transaction with.

A transaction costs client and broker some 3 ms of CPU whether it holds 1 record or 200, so what nobody waits for, and
what comes in a crowd, goes together.
"""

from typing import Final

from messaging.window import MAX_SPAN

SKIPPED_SECONDS: Final = 0.25
"""Where nothing is to be written but the offset: only a restart, or somebody who looks at lag, could tell."""

MOST_SKIPPED: Final = MAX_SPAN // 2
"""So many of them are passed at once: far more than share a transaction, and no window is full of them."""

CROWD_SECONDS: Final = 0.2


def longest_wait(*, done: int, skipped: int, with_outputs: bool, under_way: int, most: int, linger: float) -> float:
    """Returns how long done records may wait since the first of them, seconds.

    `skipped` are those of which nothing but the offset is ever written, `under_way` the partition's other records, of
    which at most `most` are handled at once; `linger` is how long the worker's outputs may wait in any case.
    """
    if done >= most or skipped >= MOST_SKIPPED:
        return 0.0
    if not with_outputs:
        return SKIPPED_SECONDS
    return max(linger, CROWD_SECONDS) if 4 * under_way >= most else linger
