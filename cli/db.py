"""`orderflow db`: the database's migrations."""

import asyncio

import typer

import settings

app = typer.Typer(help="Plan and apply the database's migrations.", no_args_is_help=True)


@app.command()
def plan() -> None:
    """Print the SQL that `migrate` would run."""
    from storage import migrate as migrations

    for migration in asyncio.run(migrations.pending(settings.load().database)):
        typer.echo(f"-- {migration.name}\n{migration.sql}")


@app.command()
def migrate() -> None:
    """Apply what is pending."""
    from storage import migrate as migrations

    applied = asyncio.run(migrations.migrate(settings.load().database))
    for migration in applied:
        typer.echo(f"applied {migration.name}", err=True)
    if not applied:
        typer.echo("The database is up to date.", err=True)
