"""`orderflow dev` as a person runs it."""

import asyncio
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator

import asyncpg
import httpx
import psutil
import pytest

from cli.supervisor import Supervisor
from devstack.system import Ports
from tests.e2e import observer

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_HEALTHY = r"all healthy after [0-9.]+ s"


class Dev:
    """A running `orderflow dev`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.text = ""

    async def read_until(self, pattern: str, *, within: float) -> re.Match[str]:
        """Returns the first match in the output so far and to come."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(within):
                while (match := re.search(pattern, self.text)) is None:
                    chunk = await self.process.stdout.read(4096)
                    assert chunk, f"it ended: {self.text}"
                    self.text += chunk.decode()
        except TimeoutError:
            raise AssertionError(f"no {pattern!r} within {within} s in: {self.text}") from None
        return match

    def family(self) -> list[psutil.Process]:
        """Returns the supervisor's child processes; every one is in a session of its own."""
        return psutil.Process(self.process.pid).children(recursive=True)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cli", "dev", *arguments]


def environment(state: pathlib.Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORDERFLOW_")}
    path = os.pathsep.join(str(_ROOT / part) for part in ("", "generated", "clients"))
    return {**kept, "PYTHONPATH": path, "ORDERFLOW_STATE_DIR": str(state), **more}


@contextlib.asynccontextmanager
async def running(state: pathlib.Path, *arguments: str) -> AsyncIterator[Dev]:
    process = await asyncio.create_subprocess_exec(
        *command("--random-ports", *arguments),
        env=environment(state),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    dev = Dev(process)
    try:
        yield dev
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(process.communicate(), 120)


async def run(state: pathlib.Path, *arguments: str, **more: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command(*arguments),
        env=environment(state, **more),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode is not None
    return process.returncode, out.decode()


async def status(state: pathlib.Path, *arguments: str) -> str:
    """Returns what `dev status` shows once its exit code is 0: all is healthy, or with `-o env` all is started."""

    async def shown() -> str:
        code, text = await run(state, "status", *arguments)
        return text if code == 0 else ""

    return await observer.eventually(shown, within=60, what="exit code 0 of `dev status`")


async def identity(state: pathlib.Path) -> tuple[str, int]:
    """Returns what the data has from its creation on: Kafka's cluster id and PostgreSQL's system identifier."""
    (cluster_id,) = re.findall(r"^cluster\.id=(.+)$", (state / "kafka/data/meta.properties").read_text(), re.MULTILINE)
    variables = await status(state, "-o", "env")
    (database,) = re.findall(r"^ORDERFLOW_DATABASE_URL=(.+)$", variables, re.MULTILINE)
    connection = await asyncpg.connect(database, timeout=10)
    try:
        return cluster_id, await connection.fetchval("select system_identifier from pg_control_system()")
    finally:
        await connection.close()


async def gone(processes: list[psutil.Process], *, within: float) -> None:
    alive = await asyncio.to_thread(lambda: psutil.wait_procs(processes, timeout=within)[1])
    assert not alive, [each.name() for each in alive]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("dev")


@pytest.fixture(scope="module")
def identities() -> set[tuple[str, int]]:
    """The identity of the data at each start: two of them mean that it was made anew."""
    return set()


@pytest.mark.timeout(400)
async def test_first_start_shows_three_lives_and_ctrl_c_leaves_nothing(
    state: pathlib.Path, identities: set[tuple[str, int]]
) -> None:
    async with running(state) as dev:
        await dev.read_until(r"\(paid\): CREATED → PROCESSING → PAID\n", within=150)
        await dev.read_until(r"\(declined\): CREATED → PROCESSING → PAYMENT_FAILED\n", within=30)
        await dev.read_until(r"\(out of stock\): CREATED → REJECTED\n", within=30)
        await dev.read_until("Ctrl-C ends it", within=60)
        order_id = dev.text.split("order ")[1].split(" ")[0]

        mail = [path.read_text() for path in (state / "mail").glob("[!.]*")]  # not those that are being written
        about = [each for each in mail if order_id in each]
        assert len(about) == 6, "three events, by e-mail and by text message"
        assert sum("X-Envelope-To: customer@example.com" in each for each in about) == 3

        assert "payment-processor" in await status(state)
        rows = json.loads(await status(state, "-o", "json"))
        assert {row["health"] for row in rows} == {"healthy"}
        assert {"kafka", "postgres", "server", "projector", "console"} <= {row["process"] for row in rows}
        [url] = re.findall(r"^Console +(http://127\.0\.0\.1:[0-9]+)$", dev.text, re.MULTILINE)
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
            assert "<strong>ORDER_PAID</strong>" in (await client.get(f"/orders/{order_id}")).text

            async def all_answer() -> bool:
                board = (await client.get("/")).text
                return board.count("1 of 1") == sum(bool(row["metrics"]) for row in rows)

            await observer.eventually(all_answer, within=60, what="a board on which all of them answer")
        assert all(row["address"] and row["version"] and row["pid"] for row in rows)
        assert "ORDERFLOW_KAFKA_BOOTSTRAP=127.0.0.1:" in await status(state, "-o", "env")
        identities.add(await identity(state))

        code, refusal = await run(state, "--random-ports")
        assert code == 1
        assert "already runs" in refusal

        family = dev.family()
        assert len(family) >= 10
        os.killpg(dev.process.pid, signal.SIGINT)  # as the terminal does: the whole foreground group
        await dev.read_until("stopped\n", within=120)
        await asyncio.wait_for(dev.process.wait(), 30)
        await gone(family, within=10)
        assert dev.process.returncode == 0
    code, _ = await run(state, "status")
    assert code == 1


@pytest.mark.timeout(400)
async def test_a_later_start_goes_on_with_the_data_and_a_killed_supervisor_leaves_nothing(
    state: pathlib.Path, identities: set[tuple[str, int]]
) -> None:
    async with running(state, "--no-samples") as dev:
        await dev.read_until(_HEALTHY, within=150)
        identities.add(await identity(state))
        assert len(identities) == 1, "the data was made anew"

        rows = json.loads(await status(state, "-o", "json"))
        (pid,) = [row["pid"] for row in rows if row["process"] == "payment-processor"]
        os.kill(pid, signal.SIGKILL)
        await dev.read_until("payment-processor ended with exit code -9; starting it again", within=60)
        await status(state)
        await killed(dev)


async def killed(dev: Dev) -> None:
    """Kills the supervisor, and waits until nothing of it is left."""
    family = dev.family()
    os.kill(dev.process.pid, signal.SIGKILL)
    await dev.process.wait()
    await gone(family, within=60)


@pytest.mark.heavy
@pytest.mark.timeout(400)
async def test_a_start_after_a_killed_supervisor_goes_on_with_the_data(tmp_path: pathlib.Path) -> None:
    identities = set()
    for _ in range(2):
        async with running(tmp_path, "--no-samples") as dev:
            await dev.read_until(_HEALTHY, within=150)
            identities.add(await identity(tmp_path))
            await killed(dev)
    assert len(identities) == 1, "the data was made anew"


async def test_a_port_in_use_is_named(tmp_path: pathlib.Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, text = await run(tmp_path, "--random-ports", "--listen", str(port))
    assert code == 1
    assert f"port {port} (gRPC) is in use" in text


async def test_a_wrong_setting_stops_the_start_with_its_name(tmp_path: pathlib.Path) -> None:
    code, text = await run(tmp_path, ORDERFLOW_WORKER_ATTEMPTS="many", ORDERFLOW_KAFKA_BOOTSTRP="x")
    assert code == 1
    assert "ORDERFLOW_WORKER_ATTEMPTS" in text
    assert "did you mean ORDERFLOW_KAFKA_BOOTSTRAP" in text


async def test_data_of_one_broker_is_not_given_to_three(tmp_path: pathlib.Path) -> None:
    (tmp_path / "kafka").mkdir()
    code, text = await run(tmp_path, "--random-ports", "--brokers", "3")
    assert code == 1
    assert "is that of one broker, not of 3 brokers" in " ".join(text.split())


async def test_brokers_are_one_or_three(tmp_path: pathlib.Path) -> None:
    code, text = await run(tmp_path, "--brokers", "2")
    assert code == 2
    assert "either 1 or 3" in text


@pytest.mark.heavy
@pytest.mark.timeout(400)
async def test_three_brokers_one_of_which_dies_and_is_started_again(tmp_path: pathlib.Path) -> None:
    async with running(tmp_path, "--no-samples", "--brokers", "3") as dev:
        await dev.read_until(_HEALTHY, within=240)
        rows = {row["process"]: row for row in json.loads(await status(tmp_path, "-o", "json"))}
        assert {"kafka-1", "kafka-2", "kafka-3"} <= rows.keys()
        variables = await status(tmp_path, "-o", "env")
        addresses = ",".join(rows[f"kafka-{number}"]["address"] for number in (1, 2, 3))
        assert f"ORDERFLOW_KAFKA_BOOTSTRAP={addresses}\n" in variables
        assert "ORDERFLOW_KAFKA_REPLICATION_FACTOR=3\n" in variables
        assert "ORDERFLOW_KAFKA_MIN_INSYNC_REPLICAS=2\n" in variables

        os.kill(rows["kafka-2"]["pid"], signal.SIGKILL)
        await dev.read_until(r"kafka-2 ended with exit code -9 and stays down", within=60)
        code, _ = await run(tmp_path, "status")
        assert code == 1
        code, text = await run(tmp_path, "start-broker", "2")
        assert code == 0, text
        assert "kafka-2" in await status(tmp_path)
        code, text = await run(tmp_path, "start-broker", "2")
        assert code == 1
        assert "broker 2 runs" in text


def test_a_shell_that_is_set_up_for_real_customers_leads_nowhere(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ("KAFKA_SASL_PASSWORD", "SMS_KIND", "SMS_URL", "SMS_TOKEN", "EMAIL_PASSWORD", "SERVER_TOKEN_ISSUER")
    for name in real:
        monkeypatch.setenv(f"ORDERFLOW_{name}", "real")
    monkeypatch.setenv("ORDERFLOW_WORKER_ATTEMPTS", "2")
    passed = Supervisor(tmp_path, Ports.usual())._system._settings
    assert passed["ORDERFLOW_WORKER_ATTEMPTS"] == "2"
    assert {f"ORDERFLOW_{name}" for name in real}.isdisjoint(passed)
