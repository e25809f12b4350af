"""gRPC settings of a node's servers and channels, in one place."""

from __future__ import annotations

from typing import Any, Final

from spacegrid import limits

CONCURRENT_STREAMS_MAX: Final = 1024
"""Calls and streams of one connection at a time."""
WINDOW_BYTES: Final = 8 << 20

_COMMON: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_receive_message_length", limits.MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", limits.MESSAGE_BYTES_MAX),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
    ("grpc.optimization_target", "latency"),
)


def server_options() -> list[tuple[str, Any]]:
    """Options of a node's server. Two nodes never share a port, so that a second one fails at once."""
    return [
        *_COMMON,
        ("grpc.max_concurrent_streams", CONCURRENT_STREAMS_MAX),
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def channel_options() -> list[tuple[str, Any]]:
    """Options of a channel to another node: quick to notice that it is back, one connection each."""
    return [
        *_COMMON,
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.enable_http_proxy", 0),
    ]
