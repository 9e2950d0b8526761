"""Runs a process of the system as `orderflow run` does, with what a bench replaces: `python -m bench.role ROLE`.

--partitions is how many the topics of orders, payments and notifications have. E-mails go to a channel that accepts
them at once: what is measured is this system, not a mail server.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Final

import workers.app
from messaging import topics
from settings import EmailSettings
from workers.channels.channel import Message

SHIPPED: Final = topics.ORDERS.partitions
"""How many partitions the catalogue has by itself."""
_SPREAD: Final = (topics.ORDERS, topics.PAYMENTS, topics.NOTIFICATIONS)


class NoMail:
    """A channel that accepts everything at once."""

    async def send(self, message: Message) -> str:
        """Accepts the message."""
        return message.message_id

    async def aclose(self) -> None:
        """There is nothing to close."""


@contextlib.contextmanager
def partitions(count: int) -> Iterator[None]:
    """Has the catalogue say, in this process and meanwhile, that topics have so many."""
    _set(count)
    try:
        yield
    finally:
        _set(SHIPPED)


def _set(count: int) -> None:
    for topic in _SPREAD:  # everybody holds the same objects, which are made to last
        object.__setattr__(topic, "partitions", count)


def _no_mail(_: EmailSettings) -> NoMail:
    return NoMail()


def main() -> None:
    """Runs from the command line."""
    from cli.main import main as orderflow

    parser = argparse.ArgumentParser(prog="python -m bench.role", description="A process of the system, for the bench.")
    parser.add_argument("role")
    parser.add_argument("--partitions", type=int, default=SHIPPED)
    options = parser.parse_args()
    workers.app.email_channel = _no_mail  # type: ignore[assignment]
    sys.argv = ["orderflow", "run", options.role]
    with partitions(options.partitions):
        orderflow()


if __name__ == "__main__":
    main()
