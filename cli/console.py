"""`orderflow console`: the operators' web page."""

import asyncio
import os
import sys

import typer

import settings
from cli.connection import Connection, connected, usage


@connected
def console(
    connection: Connection,
    listen: str = typer.Option("", help="Address of the page, host:port; ORDERFLOW_CONSOLE_LISTEN."),
    metrics: str = typer.Option(
        "", help="Where processes serve /metrics: name=host:port, comma-separated; ORDERFLOW_CONSOLE_METRICS."
    ),
) -> None:
    """Serve the operators' web page, which calls the server with your credentials."""
    from console import listener
    from console.api import Server
    from console.app import serve
    from telemetry import logs, process

    for name, value in (("LISTEN", listen), ("METRICS", metrics)):
        if value:
            os.environ[f"ORDERFLOW_CONSOLE_{name}"] = value
    loaded = settings.load()

    def connect() -> Server:
        return Server(connection.target, channel_credentials=connection.credentials(), insecure=connection.insecure)

    async def main(stop: asyncio.Event) -> None:
        await serve(
            loaded.console,
            stop,
            connect=connect,
            own_token=connection.bearer,
            lends_credentials=lends_credentials,
            started=lambda address: typer.echo(f"The console is at {address} - Ctrl-C ends it.", err=True),
        )

    async def check() -> None:
        await connect().close()

    # Before anything is logged: what is wrong with the flags is one line.
    lends_credentials = bool(connection.bearer() or connection.tls_certificate)
    listener.check(loaded.console, lends_credentials=lends_credentials)
    try:
        asyncio.run(check())
    except ValueError as error:
        raise usage(connection.target, error) from None
    logs.configure("console", form=loaded.log.format, level=loaded.log.level)
    sys.exit(process.run(main))
