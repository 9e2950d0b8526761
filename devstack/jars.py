"""Kafka's jars: fetched once by exact coordinate, verified by SHA-256, kept in a cache."""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from devstack.errors import DevstackError
from devstack.only_one import only_one

KAFKA_VERSION = "4.4.0"

Progress = Callable[[int, int, str], None]
"""Called with (jars done, jars in all, name of the jar) while jars are fetched."""

_LIST = Path(__file__).with_name("kafka_jars.txt")
_STAMP = "verified.json"
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Jar:
    """One line of the list."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """Its name in the cache."""
        return f"{self.artifact}-{self.version}.jar"


def default_cache() -> Path:
    """The user's own cache, shared by all checkouts."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "orderflow" / f"kafka-{KAFKA_VERSION}"


def read_list(path: Path = _LIST) -> list[Jar]:
    """Read the jars that Kafka needs, each with its hash."""
    jars = []
    for line in path.read_text().splitlines():
        coordinate, sha256 = line.split()
        group, artifact, version = coordinate.split(":")
        jars.append(Jar(group, artifact, version, sha256))
    return jars


def ensure_jars(cache: Path | None = None, progress: Progress | None = None) -> str:
    """Fetch what is missing, verify what is new, and return the class path. Needs no network when all is there."""
    cache = (cache or default_cache()).absolute()
    jars = read_list()
    if not _unchanged_since_verified(cache, jars):
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with only_one(cache / "fetch.lock", leftovers="fetching-*"):
                # Another process may have fetched them while this one waited.
                if not _unchanged_since_verified(cache, jars):
                    _verify_or_fetch(cache, jars, progress)
        except OSError as error:
            raise DevstackError(f"cannot keep Kafka's jars in {cache}: {error}; set XDG_CACHE_HOME") from error
    return os.pathsep.join(str(cache / jar.file_name) for jar in jars)


def _verify_or_fetch(cache: Path, jars: list[Jar], progress: Progress | None) -> None:
    for done, jar in enumerate(jars):
        if progress is not None:
            progress(done, len(jars), jar.file_name)
        path = cache / jar.file_name
        if path.is_file() and _sha256(path) == jar.sha256:
            continue
        path.unlink(missing_ok=True)
        if not _fetch(jar, path) and not _fetch(jar, path):
            raise DevstackError(
                f"{jar.file_name} was fetched twice and does not have the SHA-256 of {_LIST.name}; "
                "whatever answers for Maven Central on this network changes it"
            )
    _write_stamp(cache, jars)
    if progress is not None:
        progress(len(jars), len(jars), "")


def _fetch(jar: Jar, path: Path) -> bool:
    """Fetch one jar to its place; False when its hash is wrong."""
    try:
        from jgo.maven import MavenContext  # a development dependency; only needed to fetch
    except ImportError as error:
        raise DevstackError("the package jgo is missing; install requirements/dev.txt") from error
    # jgo writes in place and only warns about a wrong SHA-1: its file moves to its place once it is verified.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="fetching-") as folder, _jgo_quiet():
        context = MavenContext(repo_cache=Path(folder), local_repos=[], timeout=_TIMEOUT_SECONDS)
        # One artifact at a time, never jgo's dependency resolution: it mixed two versions of Kafka's client.
        artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact()
        try:
            fetched = artifact.resolve()
        except Exception as error:
            raise DevstackError(
                f"cannot fetch {jar.file_name} from Maven Central ({error}); check the network and start again, "
                "what is already fetched is kept"
            ) from error
        if _sha256(fetched) != jar.sha256:
            return False
        fetched.replace(path)
        return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _facts(cache: Path, jars: list[Jar]) -> dict[str, list[object]]:
    """What the stamp holds: hashing 43 MB at each start would be felt, looking at sizes and times is not."""
    facts: dict[str, list[object]] = {}
    for jar in jars:
        seen = (cache / jar.file_name).stat()
        facts[jar.file_name] = [seen.st_size, seen.st_mtime_ns, jar.sha256]
    return facts


def _unchanged_since_verified(cache: Path, jars: list[Jar]) -> bool:
    try:
        return bool(json.loads((cache / _STAMP).read_text()) == _facts(cache, jars))
    except (OSError, ValueError):
        return False


def _write_stamp(cache: Path, jars: list[Jar]) -> None:
    fresh = cache / f"{_STAMP}.new"
    fresh.write_text(json.dumps(_facts(cache, jars)))
    fresh.replace(cache / _STAMP)


@contextlib.contextmanager
def _jgo_quiet() -> Iterator[None]:
    """Its checksum warnings say less than the check that follows."""
    logger = logging.getLogger("jgo")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
