"""What the gRPC server asks of connections. Every limit is spelled out: gRPC's defaults suit a trusted network."""

from typing import Final

from settings import ServerSettings

MAX_CALL_BYTES: Final = 4 * 1024 * 1024
"""Largest message of a call: a batch of 500 orders of 8 KiB. One order may have far less, see order_intake."""

_METADATA_BYTES: Final = 16 * 1024


def channel_options(settings: ServerSettings) -> list[tuple[str, int]]:
    """Returns the options of the server."""
    return [
        # A second server on the port is an error, not a partner.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", MAX_CALL_BYTES),
        # Above the first gRPC refuses at random, above the second always: so that callers know where they are.
        ("grpc.max_metadata_size", _METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _METADATA_BYTES),
        # Streams of one connection. What is over it waits in the caller's channel without a word, so it stands where
        # no caller comes who is within its limits: those answer. It bounds what one connection can hold open.
        ("grpc.max_concurrent_streams", settings.max_streams_per_caller + 2 * settings.max_concurrent_calls),
        # Callers may ping an idle connection each 10 s, as firewalls make them, where gRPC's default is 5 minutes.
        # The third ping that comes sooner ends the connection.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 2),
        # Our own pings: a caller whose machine is gone would keep its streams for two hours.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0),
        # Who connects and says nothing is gone after 5 s instead of two minutes.
        ("grpc.server_handshake_timeout_ms", 5_000),
        ("grpc.max_connection_idle_ms", _milliseconds(settings.connection_idle_seconds)),
        # An old connection is told to go away, so that callers spread over servers that came later. Calls under way
        # have the grace to end; a watch that is cut goes on elsewhere by its token.
        ("grpc.max_connection_age_ms", _milliseconds(settings.connection_age_seconds)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(settings.connection_age_grace_seconds)),
    ]


def _milliseconds(seconds: float) -> int:
    # 0 is "never" in our settings; gRPC's own word for that is the largest number.
    return int(seconds * 1000) or 2**31 - 1
