"""PostgreSQL: data outlives crashes, nothing outlives its supervisor, folders out of reach are no obstacle."""

import asyncio
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from devstack import DevstackError, PostgresServer, free_ports, postgres_home
from devstack.postgres_home import processes_in
from tests.devstack.waiting import until

ROOT = Path(__file__).parents[2]


def supervise(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[PostgresServer]:
    (port,) = free_ports(1)
    server = PostgresServer(tmp_path / "postgres", port)
    server.start()
    try:
        await server.wait_ready(60)
        yield server
    finally:
        await server.stop(20)
        server.remove_data()


async def run(server: PostgresServer, sql: str) -> object:
    connection = await asyncpg.connect(server.dsn, timeout=10)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_it_serves_utf8_in_c_order_to_200_clients_with_the_password_only(server: PostgresServer) -> None:
    assert server.dsn.endswith(f"@127.0.0.1:{server.port}/orderflow")
    assert await run(server, "show server_encoding") == "UTF8"
    assert await run(server, "show max_connections") == "200"
    assert await run(server, "select 'B' < 'a' and upper('ß' || 'é') = 'ßÉ'") is True
    assert (server.data_directory.parent / "password").stat().st_mode & 0o777 == 0o600
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(server.dsn, password="guess", timeout=10)


async def test_committed_rows_outlive_kill_9_and_a_restart_over_busy_children(server: PostgresServer) -> None:
    await run(server, "create table kept (n int)")
    await run(server, "insert into kept values (7)")
    # A backend in a query notices the postmaster's death only when it looks up: it still holds the shared memory.
    busy = await asyncpg.connect(server.dsn, timeout=10)
    query = asyncio.ensure_future(busy.fetch("select count(*) from generate_series(1, 100000000000)"))
    until_busy = (
        "select count(*) from pg_stat_activity where query like '%generate_series%' and pid <> pg_backend_pid()"
    )
    async with asyncio.timeout(20):
        while not await run(server, until_busy):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    server.kill()
    assert processes_in(server.data_directory), "the busy backend is still there"
    server.start()
    await server.wait_ready(60)
    assert await run(server, "select n from kept") == 7
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await query


async def test_restart_immediate_drops_connections_and_keeps_rows(server: PostgresServer) -> None:
    await run(server, "create table kept (n int)")
    held = await asyncpg.connect(server.dsn, timeout=10)
    before = server.pid
    await server.restart_immediate()
    assert server.pid != before
    assert await run(server, "select count(*) from kept") == 0
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await held.fetch("select 1")


async def test_a_stale_lock_file_with_a_strangers_pid_is_no_obstacle(server: PostgresServer) -> None:
    lock = server.data_directory / "postmaster.pid"
    text = lock.read_text()
    server.kill()
    # After a reboot the number may belong to any program, here to the one that runs this test.
    lock.write_text(text.replace(text.split("\n", 1)[0], str(os.getpid()), 1))
    server.start()
    await server.wait_ready(60)


async def test_a_taken_port_is_named_before_anything_starts(server: PostgresServer, tmp_path: Path) -> None:
    second = PostgresServer(tmp_path / "second", server.port)
    try:
        with pytest.raises(DevstackError, match=rf"port {server.port} \(PostgreSQL\) is in use"):
            second.start()
        assert not second.running
    finally:
        second.remove_data()


async def test_kill_9_of_the_supervisor_leaves_nothing_that_stops_the_next_start(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    folder = tmp_path / "postgres"
    script = textwrap.dedent(f"""
        import asyncio, time
        from pathlib import Path
        from devstack import PostgresServer
        server = PostgresServer(Path("{folder}"), {port})
        server.start()
        asyncio.run(server.wait_ready())
        print(server.pid, server.data_directory, flush=True)
        time.sleep(300)
    """)
    supervisor = supervise(script)
    with supervisor:
        assert supervisor.stdout is not None
        pid, data = supervisor.stdout.readline().split()
        assert psutil.pid_exists(int(pid))
        supervisor.kill()
    server = PostgresServer(folder, port)
    try:
        server.start()  # at once, while the old one may still be dying
        await server.wait_ready(60)
        await server.stop(20)
        until(lambda: not processes_in(Path(data)), "no process is left in the data folder")
    finally:
        server.kill()
        server.remove_data()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as another user")
async def test_a_folder_that_others_may_not_enter_gets_its_data_elsewhere(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (port,) = free_ports(1)
    server = PostgresServer(closed / "postgres", port)
    server.start()
    try:
        await server.wait_ready(60)
        await run(server, "create table kept (n int)")
        elsewhere = server.data_directory
        assert not elsewhere.is_relative_to(tmp_path)
        assert closed.stat().st_mode & 0o777 == 0o700, "rights are never widened"
        await server.stop(20)
        again = PostgresServer(closed / "postgres", port)
        again.start()
        await again.wait_ready(60)
        assert await run(again, "select count(*) from kept") == 0, "the same data is found again"
        await again.stop(20)
    finally:
        server.kill()
        server.remove_data()
    assert not elsewhere.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as another user")
async def test_programs_out_of_reach_are_copied_and_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_home, "_others_may_run", lambda _: False)
    monkeypatch.setattr(postgres_home, "_ELSEWHERE", Path(f"/var/tmp/orderflow-devstack-test-{os.getpid()}"))
    (port,) = free_ports(1)
    server = PostgresServer(tmp_path / "postgres", port)
    server.start()
    try:
        await server.wait_ready(60)
        assert str(postgres_home._ELSEWHERE) in psutil.Process(server.pid).exe()
    finally:
        await server.stop(20)
        server.remove_data()
        shutil.rmtree(postgres_home._ELSEWHERE)
