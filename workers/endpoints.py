"""What every worker process answers beside its work: health and metrics."""

import asyncio
from contextlib import AsyncExitStack

from settings import SettingsError, WorkerSettings
from telemetry import process
from telemetry.health import Health


async def serve(health: Health, settings: WorkerSettings, stack: AsyncExitStack) -> tuple[str, str]:
    """Serves health and metrics until the stack is left. Returns their addresses, `host:port`.

    Raises:
        SettingsError: an address cannot be listened on.
    """
    try:
        address = await stack.enter_async_context(health.listening(settings.health_listen, reflects=True))
    except OSError as error:
        raise SettingsError(f"ORDERFLOW_WORKER_HEALTH_LISTEN: {error}") from error
    return address, stack.enter_context(process.metrics_endpoint(settings.metrics_listen))


async def cancelled(tasks: list["asyncio.Task[None]"]) -> None:
    """Ends tasks that a process runs beside its work."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
