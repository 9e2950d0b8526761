"""One PostgreSQL server as a child process on loopback."""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import time
from pathlib import Path

from devstack import leftover, postgres_home
from devstack.errors import DevstackError
from devstack.ports import LOOPBACK, require_free
from devstack.process import ManagedProcess, run_to_end

USER = "orderflow"

_INITDB_SECONDS = 120
POSTGRES_VERSION = "18.4"
_ANSWER_SECONDS = 5
_POLL_SECONDS = 0.03


class PostgresServer:
    """A server with its data in a folder of its own, and one database in it.

    Clients need a password, although only this machine can connect: whoever has the superuser's connection can run
    programs as the server's user, and a laptop may have other users. It costs one file.

    Args:
        directory: its log and notes, and its data unless its user cannot enter it (see postgres_home).
        port: where clients connect.
        database: the database that `wait_ready` creates.
        max_connections: how many clients it serves at once.
    """

    def __init__(self, directory: Path, port: int, *, database: str = "orderflow", max_connections: int = 200) -> None:
        self.directory = directory.absolute()
        self.port = port
        self.database = database
        self._max_connections = max_connections
        self._run_as = postgres_home.run_as()
        self._home: Path | None = None
        self._process: ManagedProcess | None = None

    @property
    def dsn(self) -> str:
        """The address of the database, password included; known once `prepare` or `start` was called."""
        return self.dsn_of(self.database)

    def dsn_of(self, database: str) -> str:
        """Returns the address of a database of this server, password included; known as `dsn` is."""
        password = (self._prepared_home() / "password").read_text()
        return f"postgresql://{USER}:{password}@{LOOPBACK}:{self.port}/{database}"

    @property
    def log_file(self) -> Path:
        """Where the server logs."""
        return self.directory / "postgres.log"

    @property
    def data_directory(self) -> Path:
        """Where the data lies; not always inside `directory`."""
        return self._prepared_home() / "data"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id."""
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """Whether the postmaster runs; `wait_ready` tells whether it answers."""
        return self._process is not None and self._process.running

    def prepare(self) -> None:
        """Create the data folder once. `start` does it too; this may run in a thread before."""
        self._home = postgres_home.home(self.directory, self._run_as)
        if not self.data_directory.exists():
            self._initdb()

    def start(self) -> None:
        """Start the server; call from the main thread, then await `wait_ready`."""
        if self.running:
            raise DevstackError(f"PostgreSQL is already running (pid {self.pid})")
        self.prepare()
        process = self._server()
        process.end_leftover()
        self._end_orphans()
        require_free(self.port, "PostgreSQL", "the PostgreSQL port")
        process.start()
        self._process = process

    async def wait_ready(self, deadline_seconds: float = 60.0) -> None:
        """Wait until the server answers a query, and see that the database is there."""
        until = time.monotonic() + deadline_seconds
        while True:
            if self._process is None:
                raise DevstackError("PostgreSQL was not started")
            if not self._process.running:
                raise self._process.died()
            if await self._answers():
                return
            if time.monotonic() > until:
                raise DevstackError(
                    f"PostgreSQL does not answer on port {self.port} after {deadline_seconds:.0f} s; "
                    f"the end of {self.log_file}:\n{self._process.tail(20)}"
                )
            await asyncio.sleep(_POLL_SECONDS)

    async def stop(self, grace_seconds: float = 20.0) -> None:
        """Fast shutdown: open transactions are rolled back, data is flushed. Killed when the grace is over."""
        if self._process is not None:
            await self._process.stop(grace_seconds)

    def kill(self) -> None:
        """SIGKILL of the postmaster, as a crash would; the next start recovers."""
        if self._process is not None:
            self._process.kill()

    async def restart_immediate(self, deadline_seconds: float = 60.0) -> None:
        """Drop every connection without a shutdown, recover, and answer again."""
        if self._process is not None:
            self._process.send(signal.SIGQUIT)
            if await self._process.wait_exit(deadline_seconds) is None:
                self._process.kill()
        self.start()
        await self.wait_ready(deadline_seconds)

    def remove_data(self) -> None:
        """Remove everything this server keeps. It has to be stopped."""
        if self.running:
            raise DevstackError("PostgreSQL still runs; stop it before its data is removed")
        postgres_home.remove_home(self.directory, self._run_as)
        self._home = None

    def _server(self) -> ManagedProcess:
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            # No socket file: its path has a length limit, and TCP is what production uses.
            "unix_socket_directories": "",
            "max_connections": str(self._max_connections),
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        command = [str(postgres_home.programs(self._run_as) / "postgres"), "-D", str(self.data_directory)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        return ManagedProcess(
            "PostgreSQL",
            command,
            self.log_file,
            _environment(),
            # Immediate shutdown: a postmaster killed by SIGKILL would leave its children to find out.
            death_signal=signal.SIGQUIT,
            stop_signal=signal.SIGINT,
            uid=self._run_as.uid,
            gid=self._run_as.gid,
            cwd=Path("/"),
            pid_file=self.directory / "postgres.pid",
        )

    def _initdb(self) -> None:
        home = self._prepared_home()
        password = home / "password"
        _write_private(password, secrets.token_urlsafe(24), self._run_as)
        # Beside its place and renamed, so that an interrupted one is not taken for a finished one.
        fresh = home / "data.new"
        command = [str(postgres_home.programs(self._run_as) / "initdb"), "-D", str(fresh), "-U", USER]
        command += ["-A", "scram-sha-256", f"--pwfile={password}", "-E", "UTF8", "--no-instructions"]
        # The same order on every machine, whatever its locale; text is UTF-8.
        command += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        shutil.rmtree(fresh, ignore_errors=True)
        run_to_end(
            f"creating PostgreSQL's data in {home}",
            command,
            deadline_seconds=_INITDB_SECONDS,
            env=_environment(),
            uid=self._run_as.uid,
            gid=self._run_as.gid,
        )
        fresh.rename(self.data_directory)

    def _end_orphans(self) -> None:
        """End the children of a killed postmaster: the next one refuses to start while they hold its shared memory."""
        lock = self.data_directory / "postmaster.pid"
        if not lock.exists():
            return
        found = postgres_home.processes_in(self.data_directory)
        with contextlib.suppress(ValueError):
            postmaster = int(lock.read_text().split("\n", 1)[0])
            if any(process.pid == postmaster for process in found):
                raise DevstackError(
                    f"a PostgreSQL server that devstack did not start uses {self.data_directory} (pid {postmaster}); "
                    "stop it"
                )
        leftover.end_processes(found, "PostgreSQL")
        # No process works on this data any more; the number in the file may by now be that of another program.
        lock.unlink(missing_ok=True)

    async def _answers(self) -> bool:
        import asyncpg  # needed here only

        try:
            connection = await asyncpg.connect(self.dsn_of("postgres"), timeout=_ANSWER_SECONDS)
        except (OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.PostgresConnectionError):
            return False
        try:
            if not await connection.fetchval("select 1 from pg_database where datname = $1", self.database):
                quoted = self.database.replace('"', '""')
                await connection.execute(f'create database "{quoted}"')
        finally:
            await connection.close()
        return True

    def _prepared_home(self) -> Path:
        if self._home is None:
            raise DevstackError("PostgreSQL has no data yet: call prepare() or start() first")
        return self._home


def _environment() -> dict[str, str]:
    """Ours without PG* (they would move data or port) and with a locale that every machine has."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


def _write_private(path: Path, text: str, owner: postgres_home.RunAs) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    if owner.uid is not None and owner.gid is not None:
        os.chown(path, owner.uid, owner.gid)
