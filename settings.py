"""All settings, read from `ORDERFLOW_*` environment variables. docs/settings.md is made from this module."""

import datetime
import difflib
import os
import typing
import urllib.parse
from typing import Annotated, Any, Literal

import pydantic
import pydantic_settings

import fault_points

PREFIX = "ORDERFLOW_"

Seconds = Annotated[float, pydantic.Field(gt=0)]

_CALLS_OF_A_CHARGE = 5
_LONGEST_RETRY_DELAY = 86_400
"""Seconds. Kafka deletes what waits on a retry topic after a week, handled or not: an outage may use the rest."""


class SettingsError(Exception):
    """A setting is missing, wrong or unknown. The text names each one and says what is expected."""


class Section(pydantic_settings.BaseSettings):
    """Settings of one concern; their variables share a prefix."""

    model_config = pydantic_settings.SettingsConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


def _section(prefix: str) -> pydantic_settings.SettingsConfigDict:
    return pydantic_settings.SettingsConfigDict(
        env_prefix=PREFIX + prefix, extra="ignore", frozen=True, hide_input_in_errors=True
    )


def _listed(value: str) -> frozenset[str]:
    return frozenset(name.strip() for name in value.split(",")) if value.strip() else frozenset()


class KafkaSettings(Section):
    """How Kafka is reached."""

    model_config = _section("KAFKA_")

    bootstrap: str = pydantic.Field(
        "127.0.0.1:9092", description="Brokers to start from, `host:port`, comma-separated."
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = pydantic.Field(
        "PLAINTEXT", description="How connections are protected."
    )
    ssl_ca_file: str | None = pydantic.Field(
        None, description="PEM file of the authorities to trust; the system's if unset."
    )
    ssl_certificate_file: str | None = pydantic.Field(None, description="PEM file of the client certificate.")
    ssl_key_file: str | None = pydantic.Field(None, description="PEM file of the client certificate's key.")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = pydantic.Field(
        "SCRAM-SHA-512", description="SASL mechanism, with SASL_PLAINTEXT or SASL_SSL."
    )
    sasl_username: str | None = pydantic.Field(None, description="SASL user name.")
    sasl_password: pydantic.SecretStr | None = pydantic.Field(None, description="SASL password.")
    session_timeout: Seconds = pydantic.Field(
        10, ge=3, le=25, description="A worker that Kafka does not hear of for so long loses its partitions, seconds."
    )
    retry_delays: str = pydantic.Field(
        "10,300",
        pattern=r"^[1-9][0-9]*(,[1-9][0-9]*)*$",
        description="Delays of each group's retry topics, seconds, rising, at most a day. They are in topics' names.",
    )
    replication_factor: int = pydantic.Field(
        1, ge=1, description="Replicas of each topic that `orderflow topics apply` creates. 3 on a real cluster."
    )
    min_insync_replicas: int = pydantic.Field(
        1,
        ge=1,
        description="Replicas that must have a record before it is acknowledged; where fewer answer, orders are "
        "refused. 2 on a real cluster.",
    )

    @pydantic.field_validator("retry_delays")
    @classmethod
    def _rise_to_a_day(cls, value: str) -> str:
        delays = [int(delay) for delay in value.split(",")]
        if delays != sorted(set(delays)) or delays[-1] > _LONGEST_RETRY_DELAY:
            raise ValueError(f"must rise, up to {_LONGEST_RETRY_DELAY} at the most")
        return value

    @property
    def retry_delay_seconds(self) -> tuple[int, ...]:
        """The delays as numbers."""
        return tuple(int(delay) for delay in self.retry_delays.split(","))


class DatabaseSettings(Section):
    """How PostgreSQL is reached."""

    model_config = _section("DATABASE_")

    url: pydantic.SecretStr = pydantic.Field(
        pydantic.SecretStr("postgresql://orderflow@127.0.0.1:5432/orderflow"),
        description="`postgresql://user:password@host:port/database`; asyncpg's query parameters work (sslmode ...).",
    )
    pool_size: int = pydantic.Field(10, ge=1, description="Connections per process at the most.")
    connect_timeout: Seconds = pydantic.Field(3, description="Limit of opening or waiting for a connection, seconds.")
    command_timeout: Seconds = pydantic.Field(5, description="Limit of one statement, seconds.")


class ServerSettings(Section):
    """The gRPC server."""

    model_config = _section("SERVER_")

    listen: str = pydantic.Field("127.0.0.1:50051", description="Address to listen on, `host:port`.")
    insecure: bool = pydantic.Field(
        False,
        description="Listen on other addresses than loopback without TLS, or without credentials of the callers.",
    )
    metrics_listen: str = pydantic.Field("127.0.0.1:9464", description="Address of /metrics, `host:port`.")
    health_listen: str = pydantic.Field(
        "",
        description="Address of the health service alone, in plaintext, for probes that speak no TLS, `host:port`."
        " Empty is none: health is on the server's own port anyhow.",
    )
    default_deadline: Seconds = pydantic.Field(10, description="Limit of a call that brings no deadline, seconds.")
    drain_seconds: Seconds = pydantic.Field(10, description="Limit of finishing open calls on SIGTERM, seconds.")
    watch_limit_seconds: Seconds = pydantic.Field(
        3600, description="A WatchOrder that lasts longer is ended, and its client goes on with another, seconds."
    )
    time_to_pay_minutes: float = pydantic.Field(
        60, gt=0, description="How long an order may stay unpaid: its expire_time. Fractions count."
    )
    request_lookup_timeout: Seconds = pydantic.Field(
        0.2, description="Limit of looking up a repeated request_id in PostgreSQL, seconds. Past it, it is skipped."
    )
    gathering_ms: float = pydantic.Field(
        10,
        ge=0,
        description="CreateOrder calls that come sooner than this after many others (than a fifth of it after one) wait"
        " for its end, milliseconds, and go on together: they share a look-up and a request to Kafka. 0 is never.",
    )
    shutdown_delay_seconds: float = pydantic.Field(
        0,
        ge=0,
        description="On SIGTERM: how long to answer NOT_SERVING and still take calls, so that load balancers notice.",
    )
    max_concurrent_calls: int = pydantic.Field(
        1000,
        ge=1,
        description="Calls under way at once, reads and others counted apart, streams not. More are refused.",
    )
    max_streams: int = pydantic.Field(10_000, ge=1, description="Streams (WatchOrder) open at once. More are refused.")
    max_streams_per_caller: int = pydantic.Field(5_000, ge=1, description="The same of one caller.")
    rate_limit: str = pydantic.Field(
        "",
        pattern=r"^([1-9][0-9]{0,8}/(second|minute|hour|day))?$",
        description="Calls of one caller to this server, such as `1000/second`; a batch counts as its orders do."
        " Empty is no limit.",
    )
    max_unacknowledged_orders: int = pydantic.Field(
        10_000, ge=1, description="Orders handed to Kafka and not acknowledged yet. More are refused."
    )
    connection_idle_seconds: float = pydantic.Field(
        600, ge=0, description="A connection without a call is closed after so long, seconds. 0 is never."
    )
    connection_age_seconds: float = pydantic.Field(
        0,
        ge=0,
        description="A connection is closed after so long, in order, so that callers spread over servers that came"
        " later, seconds. 0 is never; 1800 behind a load balancer that spreads connections and not calls.",
    )
    connection_age_grace_seconds: Seconds = pydantic.Field(
        30, description="How long calls may go on after that, streams too, seconds."
    )

    @property
    def time_to_pay(self) -> datetime.timedelta:
        """How long an order may stay unpaid."""
        return datetime.timedelta(minutes=self.time_to_pay_minutes)


class TlsSettings(Section):
    """TLS of the gRPC server."""

    model_config = _section("SERVER_TLS_")

    certificate_file: str | None = pydantic.Field(
        None, description="PEM file of the server's certificate and its chain. Without it there is no TLS."
    )
    key_file: str | None = pydantic.Field(None, description="PEM file of the certificate's key, not encrypted.")
    client_ca_file: str | None = pydantic.Field(
        None, description="PEM file of the authorities of client certificates. With it every client needs one."
    )


class ClientCertificateSettings(Section):
    """Callers that a client certificate identifies, where there are no tokens."""

    model_config = _section("SERVER_MTLS_")

    trust_domain: str | None = pydantic.Field(
        None,
        pattern=r"^[a-z0-9._-]{1,255}$",
        description="SPIFFE trust domain: callers are SPIFFE ids of exactly this domain. If unset, common names.",
    )
    scopes: str = pydantic.Field(
        "orders:write orders:read",
        pattern=r"^(orders:(write|read|operate|admin)( orders:(write|read|operate|admin))*)?$",
        description="Scopes of every client certificate, separated by spaces.",
    )
    operators: str = pydantic.Field(
        "", description="Callers that have orders:operate and orders:admin too, comma-separated."
    )

    @property
    def operator_names(self) -> frozenset[str]:
        """The operators one by one."""
        return _listed(self.operators)


class TokenSettings(Section):
    """Bearer tokens: JWTs that callers bring."""

    model_config = _section("SERVER_TOKEN_")

    issuer: str | None = pydantic.Field(
        None, min_length=1, description="The only issuer (`iss`) that is taken. Without it there are no tokens."
    )
    audience: str | None = pydantic.Field(
        None, min_length=1, description="The audience (`aud`) that a token must be meant for."
    )
    jwks_file: str | None = pydantic.Field(None, description="File with the issuer's public keys, a JWKS.")
    jwks_url: str | None = pydantic.Field(
        None,
        pattern=r"^(https://|http://(127\.0\.0\.1|localhost)(:[0-9]+)?/)",
        description="Or the URL that has them: https, or http on loopback.",
    )
    jwks_refresh: Seconds = pydantic.Field(300, description="How often they are read again, seconds.")
    algorithms: str = pydantic.Field(
        "RS256 ES256 EdDSA",
        pattern=r"^(RS256|ES256|EdDSA)( (RS256|ES256|EdDSA))*$",
        description="Signature algorithms that are taken, separated by spaces. The kind of a key decides which.",
    )
    leeway: float = pydantic.Field(
        30, ge=0, le=60, description="How far the issuer's clock may be off, seconds: tokens live so much longer."
    )


class WorkerSettings(Section):
    """The worker runtime."""

    model_config = _section("WORKER_")

    health_listen: str = pydantic.Field(
        "127.0.0.1:0", description="Address of the worker's gRPC health service; port 0 chooses one and logs it."
    )
    metrics_listen: str = pydantic.Field(
        "127.0.0.1:0", description="Address of the worker's /metrics; port 0 chooses one and logs it."
    )
    max_in_flight: int = pydantic.Field(256, ge=1, description="Orders handled at once per partition.")
    attempts: int = pydantic.Field(
        3, ge=1, description="Handlings in place of a record that fails for now, before it is parked on a retry topic."
    )
    retry_limit: Seconds = pydantic.Field(
        3600, description="A record that fails for now and did so first longer ago becomes a dead letter, seconds."
    )
    backoff_base: Seconds = pydantic.Field(
        0.1, description="First backoff between attempts, doubled each time, seconds."
    )
    backoff_cap: Seconds = pydantic.Field(5, description="Longest backoff between attempts, seconds.")
    handling_limit: Seconds = pydantic.Field(
        60, description="Hard limit of one handling, seconds. Must exceed the sum of its call limits."
    )
    drain_seconds: Seconds = pydantic.Field(
        15, lt=30, description="Limit of finishing what is in flight on SIGTERM or a rebalance, seconds."
    )
    transaction_timeout: Seconds = pydantic.Field(
        15, description="A Kafka transaction that is open longer is aborted by the broker, seconds."
    )
    sweep_seconds: Seconds = pydantic.Field(
        30, description="How often order processors look for orders to expire and refunds that are due, seconds."
    )
    unsettled_minutes: float = pydantic.Field(
        15,
        gt=0,
        description="How long the money of a cancelled or expired order may stay unsettled before order processors ask"
        " about it, and how often they look, minutes.",
    )
    standing_seconds: Seconds = pydantic.Field(
        30, description="How often order processors read how many orders and dead letters are open, seconds."
    )
    lag_seconds: Seconds = pydantic.Field(
        5, description="How often workers show their lag and the age of what is not done, seconds."
    )
    overdue_minutes: float = pydantic.Field(
        5, gt=0, description="An order that is CREATED or PROCESSING for longer counts as overdue, minutes."
    )
    dependency_probe_cap: Seconds = pydantic.Field(
        5, description="Longest wait between two probes of a dependency that is down, seconds."
    )


class GatewaySettings(Section):
    """The payment gateway."""

    model_config = _section("GATEWAY_")

    kind: Literal["simulated", "remote", "stripe"] = pydantic.Field(
        "simulated",
        description="`simulated`: in memory, for benchmarks. `remote`: the simulated gateway's own process."
        " `stripe`: Stripe, as docs/payments.md says.",
    )
    url: str = pydantic.Field("http://127.0.0.1:9560", description="Address of the remote gateway.")
    connect_timeout: Seconds = pydantic.Field(2, description="Limit of connecting, seconds.")
    timeout: Seconds = pydantic.Field(10, description="Limit of one call, seconds. Past it the outcome is unknown.")
    key_window_hours: float = pydantic.Field(
        23, gt=0, description="How long the gateway honours an idempotency key, with a margin: past it only look-ups."
    )
    simulated_latency_ms: int = pydantic.Field(0, ge=0, description="Latency of the simulated gateway.")
    simulated_decline_every_50th: bool = pydantic.Field(
        False, description="For benchmarks: the simulated gateway declines where crc32(order_id) % 50 == 0."
    )
    breaker_failures: int = pydantic.Field(5, ge=1, description="Failures in a row that open the circuit breaker.")
    breaker_reset_seconds: Seconds = pydantic.Field(10, description="How long it stays open before a probe, seconds.")


class ReconcilerSettings(Section):
    """The reconciler."""

    model_config = _section("RECONCILER_")

    interval: Seconds = pydantic.Field(300, description="Wait between two reconciliations, seconds.")
    settle_minutes: float = pydantic.Field(
        10, ge=0, description="What is younger may be on its way and is not judged, minutes. Fractions count."
    )
    overlap_minutes: float = pydantic.Field(
        15, ge=0, description="How far each one reaches back before the end of the last, minutes."
    )
    look_back_days: float = pydantic.Field(7, gt=0, description="How far the very first one does, days.")


class StripeSettings(Section):
    """Payments through Stripe."""

    model_config = _section("STRIPE_")

    key: pydantic.SecretStr | None = pydantic.Field(
        None,
        description="The account's secret key, or a restricted one that may write PaymentIntents and refunds."
        " Needed with ORDERFLOW_GATEWAY_KIND=stripe.",
    )
    url: str = pydantic.Field(
        "https://api.stripe.com",
        pattern=r"^(https://[^/]|http://(127\.0\.0\.1|localhost)(:[0-9]+)?/?$)",
        description="Where the API is: https, or http on loopback.",
    )
    webhook_listen: str = pydantic.Field(
        "127.0.0.1:8480", description="Address that `orderflow run webhook` listens on, `host:port`."
    )
    webhook_secret: pydantic.SecretStr | None = pydantic.Field(
        None, description="The endpoint's signing secret, `whsec_...`. Needed by `orderflow run webhook`."
    )
    webhook_tolerance_seconds: int = pydantic.Field(
        300, ge=1, description="A report that was signed longer ago is refused, seconds."
    )


class EmailSettings(Section):
    """E-mail over SMTP."""

    model_config = _section("EMAIL_")

    host: str = pydantic.Field("127.0.0.1", description="SMTP server.")
    port: int = pydantic.Field(1025, ge=1, le=65535, description="Its port.")
    tls: Literal["none", "starttls", "tls"] = pydantic.Field("none", description="How the connection is protected.")
    ca_file: str | None = pydantic.Field(
        None, description="PEM file of the authorities to trust; the system's if unset."
    )
    username: str | None = pydantic.Field(None, description="SMTP user name.")
    password: pydantic.SecretStr | None = pydantic.Field(None, description="SMTP password.")
    sender: str = pydantic.Field("Orderflow <orders@orderflow.invalid>", description="From address.")
    message_id_domain: str = pydantic.Field("orderflow.invalid", description="Right side of every Message-ID.")
    connections: int = pydantic.Field(4, ge=1, description="SMTP connections per process.")
    timeout: Seconds = pydantic.Field(
        10,
        description="Limit of one SMTP step and of one send, seconds. Shorter than ORDERFLOW_WORKER_DRAIN_SECONDS.",
    )


class SmsSettings(Section):
    """Text messages."""

    model_config = _section("SMS_")

    kind: Literal["folder", "http"] = pydantic.Field(
        "folder", description="`folder`: files, for development. `http`: a provider, as docs/text-messages.md says."
    )
    folder: str = pydantic.Field(".orderflow/mail", description="Folder that the development channel writes to.")
    url: str | None = pydantic.Field(
        None,
        pattern=r"^(https://[^/]|http://(127\.0\.0\.1|localhost)(:[0-9]+)?(/|$))",
        description="Where text messages are sent to: https, or http on loopback. Needed with `http`.",
    )
    token: pydantic.SecretStr | None = pydantic.Field(None, description="Bearer token for it. Needed with `http`.")
    ca_file: str | None = pydantic.Field(
        None, description="PEM file of the authorities to trust; the system's if unset."
    )
    timeout: Seconds = pydantic.Field(
        10, description="Limit of one send, seconds. Shorter than ORDERFLOW_WORKER_DRAIN_SECONDS."
    )

    @pydantic.field_validator("url", "token")
    @classmethod
    def _is_needed(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        if not value and info.data.get("kind") == "http":
            raise ValueError("must be set where ORDERFLOW_SMS_KIND is http")
        return value

    @pydantic.field_validator("token")
    @classmethod
    def _fits_a_header(cls, value: pydantic.SecretStr | None) -> pydantic.SecretStr | None:
        if value is not None and not all("!" <= character <= "~" for character in value.get_secret_value()):
            raise ValueError("must be printable ASCII without spaces")
        return value


_LIFECYCLE_EVENTS = (
    "ORDER_CREATED",
    "ORDER_PROCESSING",
    "ORDER_REJECTED",
    "ORDER_PAID",
    "PAYMENT_FAILED",
    "ORDER_SHIPPED",
    "ORDER_COMPLETED",
    "ORDER_CANCELLED",
    "ORDER_EXPIRED",
    "PAYMENT_REFUNDED",
)


class NotificationSettings(Section):
    """What customers are told."""

    model_config = _section("NOTIFICATION_")

    shop_name: str = pydantic.Field("Orderflow", description="What messages to customers call the shop.")
    email_events: str = pydantic.Field(
        ",".join(_LIFECYCLE_EVENTS), description="Events that e-mails tell of, comma-separated. Empty is none."
    )
    sms_events: str = pydantic.Field(",".join(_LIFECYCLE_EVENTS), description="The same for text messages.")
    max_age_hours: float = pydantic.Field(24, gt=0, description="Events older than that are not told any more.")
    email_ambiguous: Literal["send_again", "give_up"] = pydantic.Field(
        "send_again",
        description="An e-mail that may or may not have been accepted: send it again (same Message-ID) or not.",
    )
    sms_ambiguous: Literal["send_again", "give_up"] = pydantic.Field(
        "send_again", description="The same for text messages."
    )

    @pydantic.field_validator("email_events", "sms_events")
    @classmethod
    def _names_lifecycle_events(cls, value: str) -> str:
        problems = []
        for name in sorted(_listed(value) - {*_LIFECYCLE_EVENTS}):
            near = difflib.get_close_matches(name, _LIFECYCLE_EVENTS, n=1)
            problems.append(
                f"{name or 'nothing'} is no lifecycle event" + (f" (did you mean {near[0]}?)" if near else "")
            )
        if problems:
            raise ValueError(", ".join(problems))
        return value

    @property
    def email_event_names(self) -> frozenset[str]:
        """The events that e-mails tell of, as `ce_type` spells them."""
        return _listed(self.email_events)

    @property
    def sms_event_names(self) -> frozenset[str]:
        """The same for text messages."""
        return _listed(self.sms_events)


class RetentionSettings(Section):
    """What `orderflow db purge` keeps, by table."""

    model_config = _section("RETENTION_")

    orders_days: int = pydantic.Field(
        365, ge=1, description="Settled orders, with their view and history, after their last change."
    )
    order_events_days: int = pydantic.Field(
        365, ge=1, description="The history of orders that are settled and kept: events, commands and notifications."
    )
    outcomes_days: int = pydantic.Field(
        45, ge=1, description="What was decided for each record, so that a repeat leads to the same."
    )
    command_answers_days: int = pydantic.Field(
        45, ge=1, description="Answers to commands, for calls that are repeated. They need their outcomes."
    )
    notification_intents_days: int = pydantic.Field(
        45, ge=1, description="Which messages were about to be sent. Longer than ORDERFLOW_NOTIFICATION_MAX_AGE_HOURS."
    )
    dead_letters_days: int = pydantic.Field(
        90, ge=1, description="Dead letters, after they were replayed or discarded. Open ones are always kept."
    )
    projection_failures_days: int = pydantic.Field(90, ge=1, description="Records that the projector could not read.")
    replay_plans_days: int = pydantic.Field(90, ge=1, description="Plans of replays, applied or not.")
    replay_claims_days: int = pydantic.Field(45, ge=1, description="Which copy of a replay counted.")
    erasures_days: int = pydantic.Field(
        180, ge=1, description="Erasures of users. Longer than the topics, one after the other, can hold a record."
    )

    @property
    def days(self) -> dict[str, int]:
        """How long the rows of each table are kept, by its name."""
        days = {name.removesuffix("_days"): int(getattr(self, name)) for name in type(self).model_fields}
        return days | {"order_views": self.orders_days, "erased_records": self.erasures_days}


class ConsoleSettings(Section):
    """The operators' console."""

    model_config = _section("CONSOLE_")

    listen: str = pydantic.Field("127.0.0.1:51051", description="Address to listen on, `host:port`.")
    insecure: bool = pydantic.Field(
        False, description="Listen on other addresses than loopback without TLS, where something in front does it."
    )
    tls_certificate_file: str | None = pydantic.Field(
        None, description="PEM file of the console's certificate and its chain. Without it there is no TLS."
    )
    tls_key_file: str | None = pydantic.Field(None, description="PEM file of the certificate's key, not encrypted.")
    hosts: str = pydantic.Field(
        "",
        pattern=r"^([A-Za-z0-9.-]+(,[A-Za-z0-9.-]+)*)?$",
        description="Names that browsers reach it by, comma-separated, beside its own address and loopback's names.",
    )
    metrics: str = pydantic.Field(
        "server=127.0.0.1:9464",
        pattern=r"^([a-z0-9-]+=[^=,\s/]+:[0-9]+(,[a-z0-9-]+=[^=,\s/]+:[0-9]+)*)?$",
        description="Where processes serve /metrics, `name=host:port`, comma-separated. A name comes once for each "
        "process of it: `order-processor=a:9465,order-processor=b:9465`.",
    )
    refresh_seconds: Seconds = pydantic.Field(
        2, ge=0.2, description="How often what is on show is read anew while somebody looks, seconds."
    )
    overdue_seconds: Seconds = pydantic.Field(
        60, description="An order that is CREATED or PROCESSING for longer is shown as stuck, seconds."
    )
    max_streams: int = pydantic.Field(100, ge=1, description="Pages that are kept up to date at once.")
    order_traces_url: str | None = pydantic.Field(
        None,
        pattern=r"^https?://.*\{order_id\}",
        description="Link to the traces of an order at your tracing backend, with `{order_id}` in it.",
    )
    trace_url: str | None = pydantic.Field(
        None,
        pattern=r"^https?://.*\{trace_id\}",
        description="Link to one trace there, with `{trace_id}` in it.",
    )


class LogSettings(Section):
    """Logs."""

    model_config = _section("LOG_")

    format: Literal["auto", "json", "console"] = pydantic.Field(
        "auto", description="`auto` is console on a terminal and JSON elsewhere."
    )
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = pydantic.Field("INFO", description="Lowest level written.")


class Settings(pydantic.BaseModel):
    """Every setting of every process."""

    model_config = pydantic.ConfigDict(frozen=True)

    kafka: KafkaSettings
    database: DatabaseSettings
    server: ServerSettings
    tls: TlsSettings
    client_certificates: ClientCertificateSettings
    tokens: TokenSettings
    worker: WorkerSettings
    gateway: GatewaySettings
    reconciler: ReconcilerSettings
    stripe: StripeSettings
    email: EmailSettings
    sms: SmsSettings
    notification: NotificationSettings
    retention: RetentionSettings
    console: ConsoleSettings
    log: LogSettings


# Read by commands, not by the processes in production.
_DEVELOPMENT = {"ORDERFLOW_STATE_DIR", fault_points.VARIABLE}
_CALLERS = {
    "ORDERFLOW_INSECURE",
    "ORDERFLOW_TARGET",
    "ORDERFLOW_TLS",
    "ORDERFLOW_TLS_CA",
    "ORDERFLOW_TLS_CERTIFICATE",
    "ORDERFLOW_TLS_KEY",
    "ORDERFLOW_TOKEN",
    "ORDERFLOW_TOKEN_FILE",
}


def variables() -> dict[str, tuple[type[Section], str, Any]]:
    """Returns every environment variable: name -> (section, field name, pydantic field)."""
    return {
        f"{section.model_config['env_prefix']}{name}".upper(): (section, name, field)
        for section in _sections().values()
        for name, field in section.model_fields.items()
    }


def _sections() -> dict[str, type[Section]]:
    return typing.get_type_hints(Settings)


def load() -> Settings:
    """Reads and checks all settings from the environment.

    Raises:
        SettingsError: names every variable that is wrong or unknown, and what is expected.
    """
    known = variables()
    problems = []
    for name in os.environ:
        if name.startswith(PREFIX) and name not in {*known, *_DEVELOPMENT, *_CALLERS}:
            near = difflib.get_close_matches(name, known, n=1)
            problems.append(f"{name}: no such setting" + (f"; did you mean {near[0]}?" if near else ""))
    sections: dict[str, Any] = {}
    for key, section in _sections().items():
        prefix = section.model_config["env_prefix"]
        try:
            sections[key] = section()
        except pydantic.ValidationError as error:
            for problem in error.errors(include_input=False, include_url=False):
                field = str(problem["loc"][0])
                expected = section.model_fields[field].description
                problems.append(f"{prefix}{field}".upper() + f": {problem['msg']}. Expected: {expected}")
    if not problems:
        problems += _sends_that_outlast_a_drain(sections)
        problems += _charges_that_outlast_a_handling(sections)
    if not problems and os.environ.get(fault_points.VARIABLE):
        problems += _refused_fault_points(sections["kafka"].bootstrap, sections["database"].url.get_secret_value())
    if problems:
        raise SettingsError("Wrong settings:\n  " + "\n  ".join(sorted(problems)))
    return Settings(**sections)


def _sends_that_outlast_a_drain(sections: dict[str, Any]) -> list[str]:
    # A send that a rebalance cuts off is one that nobody knows the end of.
    drain = sections["worker"].drain_seconds
    return [
        f"{PREFIX}{name.upper()}_TIMEOUT: must be shorter than {PREFIX}WORKER_DRAIN_SECONDS, which is {drain:g}"
        for name in ("email", "sms")
        if sections[name].timeout >= drain
    ]


def _charges_that_outlast_a_handling(sections: dict[str, Any]) -> list[str]:
    # One that is cut off is parked although it is nobody's fault: its calls have limits of their own (semantics 30).
    most = sections["worker"].handling_limit / _CALLS_OF_A_CHARGE
    if sections["gateway"].timeout < most:
        return []
    return [
        f"{PREFIX}GATEWAY_TIMEOUT: must be less than {most:g}, for the {_CALLS_OF_A_CHARGE} calls that a charge may"
        f" take within {PREFIX}WORKER_HANDLING_LIMIT"
    ]


def _refused_fault_points(bootstrap: str, database: str) -> list[str]:
    hosts = [address.rpartition(":")[0] for address in bootstrap.split(",")]
    hosts.append(urllib.parse.urlsplit(database).hostname or "")
    if all(host in ("127.0.0.1", "localhost") for host in hosts):
        return []
    return [f"{fault_points.VARIABLE}: is for tests against engines on 127.0.0.1; take it out of this environment"]
