"""Where to connect, and how."""

import json
import re
from typing import Any

import grpc

DEFAULT_TARGET = "127.0.0.1:50051"
DEFAULT_TIMEOUT = 10.0

# Whatever it does not recognise is not loopback. Of a list all addresses must be.
_HERE = r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?"
_LOOPBACK = re.compile(rf"unix(-abstract)?:.*|(dns:(///)?)?{_HERE}|ipv[46]:{_HERE}(,{_HERE})*")

# UNAVAILABLE, and CANCELLED, which a gRPC server that stops answers to calls that it has received and not yet taken
# (grpc #41785); a call that its own caller cancels ends here and is not repeated. A call that changes something may be
# repeated because each carries a request_id. The server can ask for another delay, or for none at all, by
# `grpc-retry-pushback-ms`. gRPC allows 5 attempts at most.
_SERVICE_CONFIG = {
    # Over all addresses that the target has: one server that goes away costs no call.
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "orderflow.orders.v1.OrderService"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "backoffMultiplier": 3,
                "maxBackoff": "5s",
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ],
    # Once failures have used up half of these, no call is retried until successes earn some back.
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
}


def channel_options(
    target: str, channel_credentials: grpc.ChannelCredentials | None, insecure: bool
) -> list[tuple[str, Any]]:
    """Returns the options of a channel to `target`; refuses one that would send orders in the clear."""
    loopback = _LOOPBACK.fullmatch(target) is not None
    if insecure and channel_credentials is not None:
        raise ValueError("give either channel_credentials or insecure=True")
    if channel_credentials is None and not insecure and not loopback:
        raise ValueError(
            f"{target!r} is not a loopback address: give channel_credentials,"
            " or insecure=True to send orders in the clear"
        )
    return [
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        # A dead connection is noticed within 40 s. Servers refuse pings that are much closer.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        # gRPC would send loopback calls to the proxy in the environment too.
        ("grpc.enable_http_proxy", 0 if loopback else 1),
        # A page may hold a thousand orders; gRPC's own limit of 4 MiB would refuse it.
        ("grpc.max_receive_message_length", 64 * 1024 * 1024),
        # The attempts of one call must outlast the wait before the next connect, or a server that has long been back is
        # not yet connected when the other one of a rolling restart goes. gRPC's own limit is two minutes.
        ("grpc.max_reconnect_backoff_ms", 1_000),
    ]
