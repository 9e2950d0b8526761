"""The cache of Kafka's classes: used where it is fit, made once, and nobody's trouble where it cannot be made."""

import fcntl
import subprocess
from pathlib import Path

import pytest

from devstack import ensure_jars, java_executable, kafka_aot

STRICT = "-XX:AOTMode=on"
"""Has the JVM refuse to start with a cache that it cannot use."""


def a_java(folder: Path, script: str) -> Path:
    """Makes a program that stands in for a JDK's."""
    java = folder / "jdk" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    (folder / "jdk" / "lib").mkdir()
    (folder / "jdk" / "lib" / "modules").write_text("classes")
    return java


@pytest.fixture
def classpath(tmp_path: Path) -> str:
    (tmp_path / "jars").mkdir()
    jar = tmp_path / "jars" / "kafka.jar"
    jar.write_text("kafka")
    return str(jar)


def test_the_jvm_takes_the_cache_for_these_jars_and_no_others() -> None:
    java, jars = java_executable(), ensure_jars()
    options = kafka_aot.options(java, jars)
    assert len(options) == 1, "it could not be made; beside the jars stands why"

    def starts(classpath: str) -> bool:
        command = [str(java), STRICT, *options, "-XX:+UseSerialGC", "-cp", classpath, "-version"]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    assert starts(jars)
    assert not starts(jars.partition(":")[2])


def test_what_cannot_be_made_is_tried_once_and_done_without(tmp_path: Path, classpath: str) -> None:
    java = a_java(tmp_path, f"echo tried >> {tmp_path}/tries; echo no such option; exit 1")
    assert kafka_aot.options(java, classpath) == []
    assert kafka_aot.options(java, classpath) == []
    assert (tmp_path / "tries").read_text() == "tried\n"
    [note] = (tmp_path / "jars").glob("*.failed")
    assert "no such option" in note.read_text()


def test_another_jdk_and_other_jars_have_a_cache_of_their_own(tmp_path: Path, classpath: str) -> None:
    java = a_java(tmp_path, "exit 1")
    kafka_aot.options(java, classpath)
    Path(classpath).write_text("newer kafka")
    assert kafka_aot.is_missing(java, classpath)
    kafka_aot.options(java, classpath)
    (java.parents[1] / "lib" / "modules").write_text("newer classes")
    assert kafka_aot.is_missing(java, classpath)


def test_who_finds_it_being_made_starts_without(tmp_path: Path, classpath: str) -> None:
    java = a_java(tmp_path, f"touch {tmp_path}/tried; exit 1")
    with (tmp_path / "jars" / "training.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert kafka_aot.options(java, classpath) == []
    assert not (tmp_path / "tried").exists()
    assert kafka_aot.is_missing(java, classpath)
