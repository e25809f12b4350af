"""gRPC settings that both ends must agree on: message sizes, keepalive, reconnecting, TLS.

Who calls: the clients' channels, nodes' servers, links between nodes.
"""

from __future__ import annotations

from typing import Final

import grpc
import grpc.aio

from spacegrid.errors import AccessError, AuthenticationFailed, PermissionDenied
from spacegrid.limits import MESSAGE_BYTES_MAX
from spacegrid.security.client import ClientSecurity

__all__ = [
    "CHANNEL_OPTIONS",
    "PROTOCOL_VERSION",
    "SERVER_OPTIONS",
    "access_error",
    "aio_channel",
    "channel",
]

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


def channel(address: str, security: ClientSecurity) -> grpc.Channel:
    """A channel to a node, for threads."""
    if security.authority is None:
        return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.secure_channel(address, _credentials(security), options=CHANNEL_OPTIONS)


def aio_channel(
    address: str, security: ClientSecurity, server_name: str | None = None
) -> grpc.aio.Channel:
    """A channel to a node, for the running loop.

    Args:
        address: host:port.
        security: How the caller proves itself.
        server_name: The name that the node's certificate must have; None: the address's host.
    """
    if security.authority is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    options: list[tuple[str, int | str]] = list(CHANNEL_OPTIONS)
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    return grpc.aio.secure_channel(address, _credentials(security), options=options)


def _credentials(security: ClientSecurity) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        security.authority, private_key=security.key, certificate_chain=security.certificate
    )


_NOT_TRUSTED: Final = "CERTIFICATE_VERIFY_FAILED"
"""In the details of a call whose server showed a certificate that this side does not trust."""


def access_error(what: str, code: grpc.StatusCode, details: str) -> AccessError | None:
    """The error for a call that was not let in; None when it failed for another reason."""
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return AuthenticationFailed(f"{what}: {details}")
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return PermissionDenied(f"{what}: {details}")
    if _NOT_TRUSTED in details:
        return AuthenticationFailed(
            f"{what}: its certificate is not trusted, or is not for this address\n"
            "hint: tls= and SPACEGRID_TLS_CA name the ca.crt of the node's own cluster"
        )
    return None
