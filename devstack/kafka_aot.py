"""A cache of Kafka's classes, parsed, checked and linked, that lets its JVMs start in half the time.

Most of what a JVM does before it serves anything is to load some ten thousand classes. JDK 25 can keep what comes of
that in a file (an AOT cache, JEP 514). It is made once for each JDK and set of jars, beside the jars, by a broker that
is started for nothing else; that takes some ten seconds. A JVM that finds the file unfit goes on without it.
"""

import contextlib
import hashlib
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from devstack import kafka_properties
from devstack.errors import DevstackError
from devstack.only_one import only_one
from devstack.ports import free_ports
from devstack.process import ManagedProcess, run_to_end

_KEPT = 3
"""Of the files that other JDKs and jars use; each has some 70 MB."""
_START_SECONDS = 60.0
_END_SECONDS = 120.0
_FORMAT_SECONDS = 60.0
_POLL_SECONDS = 0.05
_STARTED = "Kafka Server started"
JVM_OPTIONS = ("-XX:+UseSerialGC", "-Djava.awt.headless=true")
"""Of every JVM of Kafka: a cache suits those alone that have the garbage collector of the one that made it."""
_CLUSTER_ID = "AAAAAAAAAAAAAAAAAAAAAA"


def options(java: Path, classpath: str) -> list[str]:
    """Returns the JVM's options that name the cache, none where there is none. Makes it if nobody has tried yet."""
    cache = _place(java, classpath)
    if cache is None:
        return []
    if _is_missing(cache):
        _make(cache, java, classpath)
    return [f"-XX:AOTCache={cache}"] if cache.exists() else []


def is_missing(java: Path, classpath: str) -> bool:
    """Whether the next start makes the cache."""
    cache = _place(java, classpath)
    return cache is not None and _is_missing(cache)


def _is_missing(cache: Path) -> bool:
    return not cache.exists() and not _note(cache).exists()


def _place(java: Path, classpath: str) -> Path | None:
    """Returns where the cache of this JDK and these jars lies: the JVM takes it for no others."""
    facts = [classpath]
    try:
        for file in (java.parent.parent / "lib" / "modules", *map(Path, classpath.split(os.pathsep))):
            seen = file.stat()
            facts.append(f"{seen.st_size} {seen.st_mtime_ns}")
    except OSError:
        return None
    return (
        Path(classpath.split(os.pathsep)[0]).parent / f"{hashlib.sha256(' '.join(facts).encode()).hexdigest()[:16]}.aot"
    )


def _note(cache: Path) -> Path:
    """Returns where it is written down that the cache cannot be made, so that not every start tries."""
    return cache.with_suffix(".failed")


def _make(cache: Path, java: Path, classpath: str) -> None:
    with only_one(cache.parent / "training.lock", leftovers="training-*", waits=False) as is_ours:
        if not is_ours or cache.exists():
            return  # whoever makes it needs the machine's cores: to wait would take longer than to start without it
        try:
            with tempfile.TemporaryDirectory(dir=cache.parent, prefix="training-") as folder:
                fresh = Path(folder) / cache.name
                _train(Path(folder), fresh, [str(java), "-Xmx256m", *JVM_OPTIONS], classpath)
                fresh.replace(cache)
        except (DevstackError, OSError) as error:
            with contextlib.suppress(OSError):
                _note(cache).write_text(f"{error}\n")
            return
        others = sorted(cache.parent.glob("*.aot"), key=lambda each: each.stat().st_mtime)[:-_KEPT]
        for each in others:
            each.unlink(missing_ok=True)


def _train(folder: Path, fresh: Path, command: list[str], classpath: str) -> None:
    """Runs a broker on new storage until it serves. The JVM writes the cache when it ends.

    Raises:
        DevstackError: it did not.
    """
    port, controller_port = free_ports(2)
    properties, log4j2 = folder / "server.properties", folder / "log4j2.xml"
    properties.write_text(kafka_properties.broker(port, controller_port, folder / "data", proxied=None, member=None))
    log4j2.write_text(kafka_properties.LOG4J2)
    java = [*command, f"-Dlog4j2.configurationFile={log4j2}", "-cp", classpath]
    formats = [*java, "kafka.tools.StorageTool", "format", f"--cluster-id={_CLUSTER_ID}", "-c", str(properties)]
    run_to_end("formatting storage to make Kafka's class cache", formats, deadline_seconds=_FORMAT_SECONDS)
    broker = ManagedProcess(
        "Kafka, for its class cache",
        [java[0], f"-XX:AOTCacheOutput={fresh}", *java[1:], "kafka.Kafka", str(properties)],
        folder / "kafka.log",
    )
    broker.start()
    try:
        _wait(lambda: not broker.running or _STARTED in broker.tail(1000), _START_SECONDS)
        broker.send(signal.SIGTERM)
        _wait(lambda: not broker.running, _END_SECONDS)
    finally:
        broker.kill()
    if not fresh.is_file():
        raise broker.died()


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
