"""The versions of libraries that this version was tested with, beside those that are installed."""

import dataclasses
import importlib.metadata
import pathlib
import re
from collections.abc import Mapping
from typing import Final

_PLACES: Final = (
    pathlib.Path(__file__).with_name("runtime.txt"),  # in an installation
    pathlib.Path(__file__).parents[1] / "requirements" / "runtime.txt",
)


@dataclasses.dataclass(frozen=True)
class Difference:
    """A library whose version is another one. `installed` is empty where it is missing."""

    name: str
    locked: str
    installed: str


def locked() -> dict[str, str]:
    """Returns the locked versions by the libraries' names; of this platform or not."""
    text = next((place.read_text() for place in _PLACES if place.exists()), "")
    return read(text)


def read(text: str) -> dict[str, str]:
    """Returns the versions that a requirements file has. One that only some platforms need is left out."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)\s*\\?$", text, re.MULTILINE))


def differences(wanted: Mapping[str, str]) -> list[Difference]:
    """Returns where what is installed differs."""
    found = []
    for name, version in sorted(wanted.items()):
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = ""
        if installed != version:
            found.append(Difference(name, version, installed))
    return found
