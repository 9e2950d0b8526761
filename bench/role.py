"""Runs a process of the system as `orderflow run` does, with what a bench replaces: `python -m bench.role ROLE`.

--prefix is what the names of the run's topics begin with, and --partitions how many those of orders, payments and
notifications have. E-mails go to a channel that accepts them at once, and the simulated gateway forgets: what is
measured is this system, not a mail server and not the ledger of a bank.
"""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

# Of the project nothing but the catalogue before it says what it has to: others take from it what it has.
from messaging import topics
from messaging.topics import Topic

if TYPE_CHECKING:
    from settings import EmailSettings
    from workers.channels.channel import Message

_WITH_MAIL: Final = "notification-email"
_WITH_GATEWAY: Final = "payment-processor"
_REMEMBERED: Final = 10_000
"""Charges that the gateway remembers at most."""
SHIPPED: Final = topics.ORDERS.partitions
"""How many partitions the catalogue has by itself."""
_SPREAD: Final = (topics.ORDERS, topics.PAYMENTS, topics.NOTIFICATIONS)
_NAMES: Final = tuple(topic.name for topic in topics.ALL)
_RETRY_TOPICS: Final = topics.retry_topics


class NoMail:
    """A channel that accepts everything at once."""

    async def send(self, message: "Message") -> str:
        """Accepts the message."""
        return message.message_id

    async def aclose(self) -> None:
        """There is nothing to close."""


@contextlib.contextmanager
def catalogue(prefix: str, partitions: int) -> Iterator[None]:
    """Has the catalogue of this process say, meanwhile, that topics have these names and so many partitions."""
    _set(prefix, partitions)
    try:
        yield
    finally:
        _set("", SHIPPED)


def _set(prefix: str, partitions: int) -> None:
    def retry_topics(group: str, delays: Sequence[int]) -> tuple[Topic, ...]:
        return tuple(dataclasses.replace(each, name=prefix + each.name) for each in _RETRY_TOPICS(group, delays))

    name_topics(prefix)
    for topic in _SPREAD:
        object.__setattr__(topic, "partitions", partitions)
    topics.retry_topics = retry_topics


def name_topics(prefix: str) -> None:
    """Has the names of the topics in the catalogue begin with the prefix."""
    for topic, name in zip(topics.ALL, _NAMES, strict=True):  # everybody holds the same objects, made to last
        object.__setattr__(topic, "name", prefix + name)


def without_mail() -> None:
    """Has e-mails go to `NoMail`."""
    from workers.channels import choice

    def no_mail(_: "EmailSettings") -> NoMail:
        return NoMail()

    choice.email_channel = no_mail  # type: ignore[assignment]


def _with_forgetful_gateway() -> None:
    from workers.gateways import simulated
    from workers.gateways.book import Book
    from workers.gateways.gateway import Charge

    class Forgetful(simulated.SimulatedGateway):
        """Begins a new book now and then: else it would hold all charges in the memory of the payment processor."""

        def __init__(self, *, benchmark_declines: bool, **options: Any) -> None:
            super().__init__(benchmark_declines=benchmark_declines, **options)
            self._declines = benchmark_declines
            self._charged = 0

        async def charge(self, key: str, **asked: Any) -> Charge:
            charge = await super().charge(key, **asked)
            self._charged += 1
            if self._charged % _REMEMBERED == 0:
                self._book = Book(benchmark_declines=self._declines)
            return charge

    simulated.SimulatedGateway = Forgetful  # type: ignore[assignment,misc]


def main() -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.role", description="A process of the system, for the bench.")
    parser.add_argument("role")
    parser.add_argument("--prefix", default="")
    parser.add_argument("--partitions", type=int, default=SHIPPED)
    options = parser.parse_args()
    with catalogue(options.prefix, options.partitions):
        if options.role == _WITH_MAIL:
            without_mail()
        if options.role == _WITH_GATEWAY:
            _with_forgetful_gateway()
        from cli.main import main as orderflow

        sys.argv = ["orderflow", "run", options.role]
        orderflow()


if __name__ == "__main__":
    main()
