"""Runs the project as one of the peers that a driver measures side by side: bench/peer.json tells it how.

    python -m bench.peer engines                                  Kafka and PostgreSQL, until Ctrl-C
    python -m bench.peer --prefix run1. --preload 20000           topics, a database, stock and orders
    python -m bench.peer --prefix run1. --roles order,payment     these roles in this process, until SIGTERM

Every prefix has topics and a database of its own. A role is the project's own process with its default settings, but
for what a peer is: the gateway is simulated in the process (latency, every 50th declined), e-mails go to memory, and
each event is told by e-mail alone, three an order. PostgreSQL's time counts as little as the broker's.
"""

import argparse
import asyncio
import os
import pathlib
import sys
import urllib.parse

from bench import role
from devstack.ports import LOOPBACK

KAFKA_PORT = 19092
_KAFKA_CONTROLLER_PORT = 19093
_POSTGRES_PORT = 19432
_DIRECTORY = pathlib.Path(os.environ.get("PEER_ENGINES_DIR", ".orderflow/peer")).absolute()
_URL_FILE = _DIRECTORY / "database-url"
_ROLES = {
    "api": "server",
    "order": "order-processor",
    "payment": "payment-processor",
    "notify": "notification-email",
    "projector": "projector",
}
_TOLD = "ORDER_CREATED,ORDER_PROCESSING,ORDER_PAID,PAYMENT_FAILED"
_SKUS = 100
_SENDS_AT_ONCE = 512  # to a sink in memory, for which nobody waits; a mail server has but a few connections
_PRELOADED_AT_ONCE = 5_000


def _admin_url() -> str:
    """Returns how the engines' PostgreSQL is reached: `engines` wrote it down."""
    try:
        return _URL_FILE.read_text()
    except FileNotFoundError:
        sys.exit(f"{_URL_FILE} is missing: start `python -m bench.peer engines` first")


def _database_of(prefix: str) -> str:
    return "peer_" + "".join(letter if letter.isalnum() else "_" for letter in prefix.lower()).strip("_")


def _settle_in(options: argparse.Namespace) -> None:
    """Gives this process its settings and the prefix's topics, before anything else reads either."""
    role.name_topics(options.prefix)
    url = urllib.parse.urlsplit(_admin_url())._replace(path="/" + _database_of(options.prefix))
    os.environ |= {
        "ORDERFLOW_KAFKA_BOOTSTRAP": options.bootstrap,
        "ORDERFLOW_DATABASE_URL": url.geturl(),
        "ORDERFLOW_SERVER_LISTEN": options.listen,
        "ORDERFLOW_SERVER_METRICS_LISTEN": f"{LOOPBACK}:0",
        "ORDERFLOW_GATEWAY_KIND": "simulated",
        "ORDERFLOW_GATEWAY_SIMULATED_LATENCY_MS": str(options.gateway_ms),
        "ORDERFLOW_GATEWAY_SIMULATED_DECLINE_EVERY_50TH": "true",
        "ORDERFLOW_NOTIFICATION_EMAIL_EVENTS": _TOLD,
        "ORDERFLOW_EMAIL_CONNECTIONS": str(_SENDS_AT_ONCE),
    }


async def _set_up() -> None:
    """Makes the prefix's topics and database, and fills the stock."""
    import asyncpg

    from messaging import topic_admin
    from settings import load
    from storage import migrate
    from storage.database import Database
    from storage.stock import Stock

    loaded = load()
    name = urllib.parse.urlsplit(loaded.database.url.get_secret_value()).path.removeprefix("/")
    admin = await asyncpg.connect(_admin_url())
    try:
        if not await admin.fetchval("select 1 from pg_database where datname = $1", name):
            await admin.execute(f'create database "{name}"')
    finally:
        await admin.close()
    await asyncio.gather(topic_admin.apply(loaded.kafka), migrate.migrate(loaded.database))
    database = Database(loaded.database, application="peer")
    await database.open()
    try:
        for number in range(_SKUS + 1):
            await Stock(database).set_available(f"SKU-{number}", 10**9)
    finally:
        await database.close()


async def _preload(count: int) -> None:
    """Writes ORDER_CREATED records as the server does."""
    import datetime
    import uuid

    from domain import events
    from domain.identifiers import request_fingerprint
    from domain.orders import new_order
    from messaging import envelope
    from messaging.publisher import Publisher
    from orderflow.events.v1.order_event_pb2 import OrderCreatedDetails
    from orderflow.orders.v1.order_pb2 import LineItem, Money
    from orderflow.orders.v1.order_service_pb2 import CreateOrderRequest
    from settings import load

    publisher = Publisher(load().kafka, client_id="peer-preload", most_waiting=2 * _PRELOADED_AT_ONCE)
    publisher.start()
    try:
        async with asyncio.timeout(30):
            while not publisher.is_ready:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.05)
        for start in range(0, count, _PRELOADED_AT_ONCE):
            records = []
            for number in range(start, min(start + _PRELOADED_AT_ONCE, count)):
                items = [
                    LineItem(
                        sku=f"SKU-{number % _SKUS}",
                        quantity=2,
                        unit_price=Money(currency_code="EUR", amount_minor=1999),
                    ),
                    LineItem(sku=f"SKU-{_SKUS}", quantity=1, unit_price=Money(currency_code="EUR", amount_minor=500)),
                ]
                user = f"user-{number % _SKUS}"
                request = CreateOrderRequest(
                    user_id=user, email=f"{user}@example.com", items=items, payment_method="pm_card_visa"
                )
                order = new_order(
                    request,
                    order_id=str(uuid.uuid4()),
                    now=datetime.datetime.now(datetime.UTC),
                    time_to_pay=datetime.timedelta(hours=1),
                )
                details = OrderCreatedDetails(caller="peer", request_fingerprint=request_fingerprint(request))
                created = events.order_created(order, details=details, correlation_id=order.order_id)
                records.append(envelope.encode(created))
            failures = await publisher.publish_all(records, timeout=60)
            if any(failures):
                sys.exit(f"preload: {next(failure for failure in failures if failure)!r}")
    finally:
        await publisher.close()


def _run(roles: list[str]) -> None:
    """Becomes the role's process, as `orderflow run` starts it."""
    from cli.main import main

    if len(roles) != 1:
        sys.exit("one role a process")
    role.without_mail()
    if roles == ["api"]:
        asyncio.run(_set_up())
    sys.argv = ["orderflow", "run", _ROLES[roles[0]]]
    main()


async def _engines() -> None:
    """Runs Kafka and PostgreSQL for the driver."""
    from devstack.jars import ensure_jars
    from devstack.kafka import KafkaBroker
    from devstack.postgres import PostgresServer

    kafka = KafkaBroker(
        _DIRECTORY / "kafka",
        KAFKA_PORT,
        _KAFKA_CONTROLLER_PORT,
        classpath=await asyncio.to_thread(ensure_jars),
        full_speed=True,
    )
    postgres = PostgresServer(_DIRECTORY / "postgres", _POSTGRES_PORT)
    kafka.start()
    postgres.start()
    try:
        await asyncio.gather(kafka.wait_ready(), postgres.wait_ready())
        _URL_FILE.touch(mode=0o600)
        _URL_FILE.write_text(postgres.dsn)
        sys.stdout.write(f"--bootstrap {kafka.bootstrap} --broker-pid {kafka.pid}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()
    finally:
        await asyncio.gather(kafka.stop(), postgres.stop())


def main() -> None:
    """Does what the arguments say."""
    if sys.argv[1:] == ["engines"]:
        asyncio.run(_engines())
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", default=f"{LOOPBACK}:{KAFKA_PORT}")
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--roles", default="", help=f"one of {', '.join(_ROLES)}")
    parser.add_argument("--listen", default=f"{LOOPBACK}:50051")
    parser.add_argument("--gateway-ms", type=int, default=50)
    parser.add_argument("--preload", type=int)
    options = parser.parse_args()
    _settle_in(options)
    if options.preload is not None:
        asyncio.run(_set_up())
        asyncio.run(_preload(options.preload))
    else:
        _run(options.roles.split(","))


if __name__ == "__main__":
    main()
