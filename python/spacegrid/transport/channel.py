"""gRPC settings that both ends must agree on: message sizes, keepalive, reconnecting.

Who calls: the clients' channels, nodes' servers, links between nodes.
"""

from __future__ import annotations

from typing import Final

from spacegrid.limits import MESSAGE_BYTES_MAX

__all__ = ["CHANNEL_OPTIONS", "PROTOCOL_VERSION", "SERVER_OPTIONS"]

PROTOCOL_VERSION: Final = 1
"""Version of the frame layout and of the services; a hello with another one is refused."""

_SIZES: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
)

CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    *_SIZES,
    # A process that is stopped but not dead keeps its sockets open; only a ping tells.
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Whoever waits retries by itself: an attempt must fail fast and be made again soon.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Without this a new channel inherits the back-off of an old one to the same address.
    ("grpc.use_local_subchannel_pool", 1),
    # The routing table names addresses; a proxy from the environment must not stand in between.
    ("grpc.enable_http_proxy", 0),
)

SERVER_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    *_SIZES,
    ("grpc.so_reuseport", 0),
    # The pings above are more frequent than a server takes by default.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
)
