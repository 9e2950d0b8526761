"""What every process of ours does the same way: signals, event loop, metrics port, exit code."""

import asyncio
import contextlib
import datetime
import gc
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import prometheus_client

from telemetry import logs, metrics

log = logs.get()

_LOOK_SECONDS = 0.5
_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")

Main = Callable[[asyncio.Event], Awaitable[None]]
"""A process: works until the event is set, then ends in order. Raises if it cannot go on."""


def run(main: Main) -> int:
    """Runs a process to its end and returns its exit code: 0 after a signal, 1 after an error."""
    if not __debug__:
        # aiokafka's transaction state machine is made of asserts.
        print("orderflow must not run with python -O or PYTHONOPTIMIZE", file=sys.stderr)  # noqa: T201
        return 1
    try:
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:  # no wheels on this platform
        factory = None
    _spare_garbage_collection()
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_run(main))


def _spare_garbage_collection() -> None:
    """Leaves out what the imports made, which stays anyway: looking through it stopped everything for 0.1 s at a time.

    And looks after 50,000 new objects instead of 700: most are gone by then, and those in flight are looked at seldom.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


async def _run(main: Main) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_unretrieved)

    def asked(name: str) -> None:
        log.info("process.stopping", signal=name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):  # before anything connects
        loop.add_signal_handler(number, asked, number.name)
    lag = asyncio.create_task(_watch_loop())
    try:
        await main(stop)
    except Exception:
        log.exception("process.failed")
        return 1
    finally:
        lag.cancel()
    log.info("process.stopped")
    return 0


async def _watch_loop() -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LOOK_SECONDS
        await asyncio.sleep(_LOOK_SECONDS)
        metrics.LOOP_LAG.observe(max(loop.time() - due, 0.0))


def _unretrieved(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # A dropped producer leaves a failed future for each of its records: one line for each, not a traceback.
    log.warning("process.unretrieved", message=context.get("message"), error=type(context.get("exception")).__name__)


@contextlib.contextmanager
def metrics_endpoint(listen: str) -> Iterator[str]:
    """Serves /metrics on `host:port` meanwhile; port 0 chooses one. Yields the address."""
    host, port = split(listen)
    server, thread = prometheus_client.start_http_server(port, addr=host)
    try:
        yield f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=1)


def split(listen: str) -> tuple[str, int]:
    """Returns host and port of `host:port`.

    Raises:
        ValueError: it is not of that form.
    """
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{listen!r} is not host:port")
    return host, int(port)


def is_loopback(address: str) -> bool:
    """Whether nobody but this machine reaches the address, which is `host:port`.

    Raises:
        ValueError: it is not of that form.
    """
    host, _ = split(address)
    return host in _LOOPBACK


def now() -> datetime.datetime:
    """Returns the time, aware, in UTC."""
    return datetime.datetime.now(datetime.UTC)


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Waits so long, or until `stop` is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()


async def until_stopped_or_failed(stop: asyncio.Event, *tasks: "asyncio.Task[Any]") -> None:
    """Waits until `stop` is set. A task that ends before is an error: its own, or that it ended at all.

    Raises:
        Exception: what a task raised.
    """
    stopped = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait((stopped, *tasks), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    for task in tasks:
        if task in done:
            task.result()
            if not stop.is_set():
                raise RuntimeError(f"{task.get_name()} ended by itself")
