"""What the checker reports."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from chaos.oracle.facts import Facts


@dataclasses.dataclass(frozen=True)
class Violation:
    """An invariant does not hold. `ids` name the orders, events and places that show it."""

    invariant: str
    text: str
    ids: dict[str, Any]

    def __str__(self) -> str:
        named = ", ".join(f"{name} {value}" for name, value in self.ids.items())
        return f"{self.invariant}: {self.text} [{named}]" if named else f"{self.invariant}: {self.text}"


Check = Callable[[Facts], Iterator[Violation]]
