"""gRPC settings of a node's server, on top of what both ends agree on."""

from __future__ import annotations

from typing import Any, Final

from spacegrid.transport.channel import SERVER_OPTIONS

CONCURRENT_STREAMS_MAX: Final = 1024
"""Calls and streams of one connection at a time."""


def server_options() -> list[tuple[str, Any]]:
    """Options of a node's server. Two nodes never share a port."""
    return [*SERVER_OPTIONS, ("grpc.max_concurrent_streams", CONCURRENT_STREAMS_MAX)]
