"""The jar cache: a corrupt jar is found and replaced, a good one costs neither network nor hashing."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from devstack import DevstackError, ensure_jars
from devstack import jars as subject


@pytest.fixture(scope="session")
def good() -> Path:
    ensure_jars()
    return subject.default_cache()


@pytest.fixture
def cache(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "cache")  # with times, so that the stamp holds
    return tmp_path / "cache"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_list_is_whole() -> None:
    jars = subject.read_list()
    assert len(jars) == len({jar.file_name for jar in jars}) == 45
    assert all(len(jar.sha256) == 64 for jar in jars)


@pytest.mark.parametrize("harm", ["corrupt", "missing", "truncated"])
def test_a_harmed_jar_is_fetched_again(cache: Path, harm: str) -> None:
    jar = next(jar for jar in subject.read_list() if jar.artifact == "slf4j-api")
    path = cache / jar.file_name
    if harm == "corrupt":
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    elif harm == "truncated":
        path.write_bytes(b"")
    else:
        path.unlink()
    seen: list[tuple[int, int, str]] = []
    class_path = ensure_jars(cache, progress=lambda done, total, name: seen.append((done, total, name)))
    assert sha256(path) == jar.sha256
    assert str(path) in class_path.split(os.pathsep)
    assert seen[-1] == (45, 45, "")
    assert not list(cache.glob("fetching-*"))


def test_a_verified_cache_is_neither_hashed_nor_fetched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> bool:
        raise AssertionError("touched")

    monkeypatch.setattr(subject, "_sha256", never)
    monkeypatch.setattr(subject, "_fetch", never)
    ensure_jars(cache)


def test_a_jar_that_stays_wrong_is_refused_and_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jars = [
        subject.Jar(jar.group, jar.artifact, jar.version, "0" * 64 if jar.artifact == "slf4j-api" else jar.sha256)
        for jar in subject.read_list()
    ]
    monkeypatch.setattr(subject, "read_list", lambda: jars)
    with pytest.raises(DevstackError, match=r"slf4j-api-.* was fetched twice"):
        ensure_jars(cache)
    assert not list(cache.glob("slf4j-api-*.jar"))


def test_what_a_killed_fetch_left_is_removed(cache: Path) -> None:
    (cache / "fetching-old" / "org").mkdir(parents=True)
    (cache / "fetching-old" / "org" / "half.jar").write_bytes(b"x")
    (cache / "verified.json").unlink()
    ensure_jars(cache)
    assert not (cache / "fetching-old").exists()
