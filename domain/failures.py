"""The three kinds of failure. Whoever raises chooses; the worker runtime obeys.

Failure
├── Permanent        this record can never be processed: dead letter at once
├── Transient        this order failed for now: tried again with backoff, dead letter in the end
└── DependencyDown   nobody's fault: the partition pauses, no attempt is used, no dead letter is written
"""


class Failure(Exception):
    """A handling that did not succeed.

    `error_class` is UPPER_SNAKE and ends up in dead-letter headers and metrics, so its values are few. The message is
    free of personal data, because it ends up in logs and dead letters.
    """

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class
        self.message = message

    def __str__(self) -> str:
        return f"{self.error_class}: {self.message}"


class Permanent(Failure):
    """The record can never be processed."""


class Transient(Failure):
    """The record may succeed when it is tried again."""


class DependencyDown(Failure):
    """Something that every record needs is away.

    `dependency` names it (`postgres`, `gateway`, `smtp`). `retry_after` is in seconds, None where nobody can tell.
    """

    def __init__(self, dependency: str, message: str, retry_after: float | None = None) -> None:
        super().__init__("DEPENDENCY_DOWN", f"{dependency}: {message}")
        self.dependency = dependency
        self.retry_after = retry_after
