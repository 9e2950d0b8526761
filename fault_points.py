"""Places where tests let a process die: the crash windows that docs/reliability.md names.

`ORDERFLOW_FAULT_POINTS=W2` kills the process the first time it comes to W2, `W2:3` the third time. Settings refuse the
variable wherever Kafka or PostgreSQL is not on this machine, so no production process has fault points.
"""

import os
import signal
from typing import Final

VARIABLE: Final = "ORDERFLOW_FAULT_POINTS"

WINDOWS: Final = {
    "W1": "Kafka has acknowledged the order, its caller has no answer",
    "W2": "the decision on the order is committed, nothing is produced",
    "W3": "outputs are produced, the transaction that has them and their input's offset is not committed",
    "W4": "the transaction is ended at the broker, its answer is not read",
    "W5": "the intent to charge is stored, the gateway is not called",
    "W7": "the gateway's answer is read, nothing of it is stored",
    "W8": "the payment is committed, nothing is produced",
    "W9": "the intent to send is stored, the message is not sent",
    "W10": "the message is accepted, that is not stored",
    "W11": "the notification is stored, nothing is produced",
    "W12": "the read model is committed, nothing more is fetched",
    "W13": "a parked record is produced, its transaction is not ended",
    "W14": "a due retry is handled, nothing is produced",
    "W15": "a replay is produced, the dead letter is not marked",
    "W16": "topics or migrations are half applied",
}
"""Names and meanings. W6, a reply of the gateway that is lost, happens at the gateway."""

_counts: dict[str, int] = {}


def wanted() -> dict[str, int]:
    """Returns the points that are switched on, and at which time each strikes.

    Raises:
        ValueError: the variable names a point that does not exist.
    """
    points = {}
    for each in filter(None, os.environ.get(VARIABLE, "").split(",")):
        name, _, time = each.partition(":")
        if name not in WINDOWS or (time and not time.isdigit()):
            raise ValueError(f"{VARIABLE}: {each!r} is not one of {', '.join(WINDOWS)}, or one with `:N`")
        points[name] = int(time or 1)
    return points


_POINTS: Final = wanted() if os.environ.get(VARIABLE) else {}


def reached(name: str) -> None:
    """The process is at the point: it dies here if that was asked for."""
    if not _POINTS:
        return
    _counts[name] = _counts.get(name, 0) + 1
    if _POINTS.get(name) == _counts[name]:
        os.kill(os.getpid(), signal.SIGKILL)
