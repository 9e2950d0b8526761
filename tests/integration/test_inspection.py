"""A look at PostgreSQL itself: what it says, and what a role may not do."""

import urllib.parse
import uuid

import pytest

from devstack import PostgresServer, free_ports
from domain.failures import DependencyDown
from settings import DatabaseSettings
from storage import inspection
from storage.database import Database
from tests import engines


async def test_a_database_as_it_should_be(database_settings: DatabaseSettings) -> None:
    seen = await inspection.inspect(database_settings)
    assert seen.version.startswith("18.")
    assert seen.takes_writes
    assert seen.synchronous_commit == "on"
    assert 1 <= seen.connections < seen.most_connections
    assert abs(seen.clock_seconds) <= seen.seconds + 0.1
    assert (seen.missing, seen.refused) == ((), {})


async def test_what_a_role_may_not_do(postgres: PostgresServer, own_database: Database) -> None:
    name = f"role_{uuid.uuid4().hex}"
    settings = own_database._settings
    for sql in (
        f"create role {name} login password 'secret'",
        f"grant select, insert, update, delete on all tables in schema public to {name}",
        f"revoke insert, delete on payments from {name}",
        "drop table stock_changes cascade",
    ):
        await engines.fetch(own_database, sql)
    url = urllib.parse.urlsplit(settings.url.get_secret_value())
    as_role = url._replace(netloc=f"{name}:secret@{url.hostname}:{url.port}").geturl()
    try:
        seen = await inspection.inspect(engines.database_settings(as_role))
        assert seen.role == name
        assert seen.refused == {"payments": ("INSERT", "DELETE")}
        assert seen.missing == ("stock_changes",)
    finally:
        await engines.fetch(own_database, f"drop owned by {name}")
        await engines.fetch(own_database, f"drop role {name}")


async def test_one_that_takes_no_writes(own_database: Database) -> None:
    settings = own_database._settings
    name = urllib.parse.urlsplit(settings.url.get_secret_value()).path.lstrip("/")
    await engines.fetch(own_database, f'alter database "{name}" set default_transaction_read_only = on')
    assert not (await inspection.inspect(settings)).takes_writes


async def test_one_that_is_away_or_does_not_know_us(postgres: PostgresServer) -> None:
    (port,) = free_ports(1)
    for url in (f"postgresql://nobody@127.0.0.1:{port}/nothing", postgres.dsn_of("nothing")):
        with pytest.raises(DependencyDown):
            await inspection.inspect(engines.database_settings(url))
