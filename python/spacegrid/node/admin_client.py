"""What an operator's side asks nodes: the Admin service as blocking calls. Callers: cli, testing,
`up`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

import grpc

from spacegrid.errors import ConnectionFailed, SpaceGridError
from spacegrid.security.client import ClientSecurity, client_security
from spacegrid.transport.channel import access_error, channel
from spacegrid.v1 import admin_pb2, admin_pb2_grpc

TIMEOUT_S: Final = 5.0


class AdminClient:
    """One node's Admin service."""

    def __init__(
        self,
        address: str,
        timeout_s: float = TIMEOUT_S,
        security: ClientSecurity | None = None,
    ) -> None:
        """Not connected yet.

        Args:
            address: host:port of the node.
            timeout_s: Seconds to wait for an answer.
            security: How the caller proves itself; None: as the environment says.

        Raises:
            ConfigError: What the environment says can't be used.
        """
        self.address = address
        self._timeout_s = timeout_s
        self._security = client_security() if security is None else security
        self._channel = channel(address, self._security)
        self._stub = admin_pb2_grpc.AdminStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def status(self) -> admin_pb2.StatusReply:
        """The cluster as the node knows it.

        Raises:
            ConnectionFailed: Nobody answers there, or the node is not ready.
        """
        reply: admin_pb2.StatusReply = self._ask(self._stub.Status, admin_pb2.StatusRequest())
        return reply

    def partitions(self) -> admin_pb2.PartitionsReply:
        """Every partition's line. Raises as `status`."""
        reply: admin_pb2.PartitionsReply = self._ask(
            self._stub.Partitions, admin_pb2.PartitionsRequest()
        )
        return reply

    def accept(self, seen: Mapping[int, int], *, empty: bool) -> admin_pb2.AcceptReply:
        """Decide how partitions begin again, at the versions that were seen. Raises as `status`."""
        request = admin_pb2.AcceptRequest(
            partitions=_seen(seen),
            empty=empty,
        )
        reply: admin_pb2.AcceptReply = self._ask(self._stub.Accept, request)
        return reply

    def reload(self, seen: Mapping[int, int], timeout_s: float) -> admin_pb2.ReloadReply:
        """Have partitions filled again from the shared sink on this node. Raises as `status`."""
        request = admin_pb2.ReloadRequest(partitions=_seen(seen))
        reply: admin_pb2.ReloadReply = self._ask(self._stub.Reload, request, timeout_s)
        return reply

    def flush(self, timeout_s: float) -> bool:
        """Wait until the node's sinks have what is committed now; whether that came in time."""
        request = admin_pb2.FlushRequest(timeout_ms=max(1, int(timeout_s * 1000)))
        reply = self._ask(self._stub.Flush, request, timeout_s + self._timeout_s)
        return bool(reply.complete)

    def stop(self, *, cluster: bool) -> None:
        """Stop the node, or the whole cluster. Raises as `status`."""
        self._ask(self._stub.Stop, admin_pb2.StopRequest(cluster=cluster))

    def _ask(self, method: Any, request: Any, timeout_s: float | None = None) -> Any:
        try:
            return method(
                request,
                timeout=timeout_s or self._timeout_s,
                metadata=self._security.metadata,
            )
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            refused = access_error(f"{self.address} refuses this caller", code, details)
            if refused is not None:
                raise refused from None
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise ConnectionFailed(
                    f"no node answers at {self.address}: {details}", addresses=[self.address]
                ) from None
            raise SpaceGridError(f"{self.address}: {code.name}: {details}") from None


def _seen(seen: Mapping[int, int]) -> list[admin_pb2.AcceptRequest.Seen]:
    return [
        admin_pb2.AcceptRequest.Seen(partition=partition, version=version)
        for partition, version in seen.items()
    ]
