"""etcd's members over gRPC: reads that don't wait for one slow member, changes sent once.

A member can be dead, paused, cut off from the others, or behind. A linearizable read is answered by
any member that reaches a majority, so it is sent to the next member when the first has not answered
within `HEDGE_S`; the first answer counts, and that member is asked first from then on. A
transaction is sent to one member and never again by itself: whether it was carried out is for its
sender to find out (decisions.py).

Who calls: coordinator.py. The messages are those of proto/spacegrid/coordinator/etcd/api.proto.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from spacegrid.coordinator.etcd import api_pb2 as api
from spacegrid.coordinator.etcd.options import EtcdOptions
from spacegrid.errors import ConnectionFailed, ProtocolError

__all__ = ["EtcdClient", "Member", "failure"]

#: Seconds after which a read that is not answered is sent to the next member too.
HEDGE_S: Final = 0.1
#: Seconds between two rounds over all members while none answers.
ROUND_S: Final = 0.05
#: Seconds that a change waits for its answer from one member.
CHANGE_S: Final = 2.0
MESSAGE_BYTES_MAX: Final = 64 << 20

_OPTIONS: Final[list[tuple[str, int]]] = [
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    # A member that comes back is asked again soon.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500),
    # A member whose machine is gone is noticed; etcd takes no more than a ping in 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]

#: What a member says that has nothing to do with what it was asked.
_REFUSALS: Final = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
)
_OLD_TOKEN: Final = ("invalid auth token", "revision of auth store is old", "user name is empty")

R = TypeVar("R")
_Metadata = tuple[tuple[str, str], ...]
WatchStream = grpc.aio.StreamStreamCall[Message, api.WatchResponse]


class Member:
    """One member's calls.

    Attributes:
        address: Its host:port.
    """

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None) -> None:
        """Open a channel, which connects when it is first used."""
        self.address = address
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        else:
            self.channel = grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
        unary, stream = self.channel.unary_unary, self.channel.stream_stream
        self.txn = unary(
            "/etcdserverpb.KV/Txn",
            request_serializer=api.TxnRequest.SerializeToString,
            response_deserializer=api.TxnResponse.FromString,
        )
        self.range = unary(
            "/etcdserverpb.KV/Range",
            request_serializer=api.RangeRequest.SerializeToString,
            response_deserializer=api.RangeResponse.FromString,
        )
        self.grant = unary(
            "/etcdserverpb.Lease/LeaseGrant",
            request_serializer=api.LeaseGrantRequest.SerializeToString,
            response_deserializer=api.LeaseGrantResponse.FromString,
        )
        self.revoke = unary(
            "/etcdserverpb.Lease/LeaseRevoke",
            request_serializer=api.LeaseRevokeRequest.SerializeToString,
            response_deserializer=api.LeaseRevokeResponse.FromString,
        )
        self.authenticate = unary(
            "/etcdserverpb.Auth/Authenticate",
            request_serializer=api.AuthenticateRequest.SerializeToString,
            response_deserializer=api.AuthenticateResponse.FromString,
        )
        self.keep_alive = stream(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=api.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=api.LeaseKeepAliveResponse.FromString,
        )
        self.watch = stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=api.WatchRequest.SerializeToString,
            response_deserializer=api.WatchResponse.FromString,
        )


class EtcdClient:
    """All members of one etcd cluster, as one node asks them. Used from one event loop."""

    def __init__(self, options: EtcdOptions) -> None:
        """Ask nobody yet; see `EtcdOptions`."""
        self._options = options
        credentials = options.credentials()
        self._members = [Member(address, credentials) for address in options.members]
        self._token = ""

    @property
    def members(self) -> tuple[Member, ...]:
        """All of them, the one that answered last first."""
        return tuple(self._members)

    async def read(self, request: api.TxnRequest, timeout_s: float) -> api.TxnResponse:
        """Read single keys and small ranges at one revision, linearizably.

        Args:
            request: Of ranges only.
            timeout_s: How long to go on asking.

        Raises:
            ConnectionFailed: No member answered.
            ProtocolError: etcd refuses this node.
        """
        return await self._hedged(
            lambda member, metadata: member.txn(request, timeout=timeout_s, metadata=metadata),
            timeout_s,
        )

    async def range(self, request: api.RangeRequest, timeout_s: float) -> api.RangeResponse:
        """Read a range, linearizably; as `read`."""
        return await self._hedged(
            lambda member, metadata: member.range(request, timeout=timeout_s, metadata=metadata),
            timeout_s,
        )

    async def change(self, request: api.TxnRequest) -> api.TxnResponse:
        """Send a transaction to one member, once.

        Raises:
            ConnectionFailed: No answer: it may be carried out, now or later.
            ProtocolError: etcd refuses it.
        """
        return await self._first(
            lambda member, metadata: member.txn(request, timeout=CHANGE_S, metadata=metadata)
        )

    async def grant(self, ttl_s: int) -> int:
        """A new lease's id.

        Raises:
            ConnectionFailed: No answer; a lease that was granted all the same ends by itself.
        """
        request = api.LeaseGrantRequest(ttl=ttl_s)
        answer = await self._first(
            lambda member, metadata: member.grant(request, timeout=CHANGE_S, metadata=metadata)
        )
        return answer.id

    async def keep(self, lease: int, timeout_s: float) -> bool:
        """Renew a lease.

        Returns:
            False: there is no such lease any more.

        Raises:
            ConnectionFailed: No answer.
        """

        async def renew(member: Member, metadata: _Metadata) -> api.LeaseKeepAliveResponse:
            call = member.keep_alive(timeout=timeout_s, metadata=metadata)
            try:
                await call.write(api.LeaseKeepAliveRequest(id=lease))
                answer = await call.read()
            finally:
                call.cancel()
            if not isinstance(answer, api.LeaseKeepAliveResponse):
                raise ConnectionFailed(f"etcd at {member.address} ended the stream")
            return answer

        return (await self._first(renew)).ttl > 0

    async def revoke(self, lease: int, timeout_s: float) -> None:
        """End a lease; nobody minds when it can't be."""
        request = api.LeaseRevokeRequest(id=lease)
        with contextlib.suppress(ConnectionFailed, ProtocolError):
            await self._first(
                lambda member, metadata: member.revoke(
                    request, timeout=timeout_s, metadata=metadata
                )
            )

    async def watch(self, member: Member) -> WatchStream:
        """A new stream of watches at a member; it ends when the member loses etcd's leader."""
        metadata = (*await self._metadata(member), ("hasleader", "true"))
        stream: WatchStream = member.watch(metadata=metadata)
        return stream

    def ask_last(self, member: Member) -> None:
        """Ask a member only after all others, until it answers before them."""
        self._members.remove(member)
        self._members.append(member)

    async def close(self) -> None:
        """Close every channel."""
        for member in self._members:
            await member.channel.close()

    # ---- how members are asked

    async def _first(self, call: Callable[[Member, _Metadata], Awaitable[R]]) -> R:
        """Ask the first member; where it does not answer, it is asked last after that."""
        member = self._members[0]
        try:
            return await self._ask(member, call)
        except ConnectionFailed:
            self.ask_last(member)
            raise

    async def _hedged(
        self, call: Callable[[Member, _Metadata], Awaitable[R]], timeout_s: float
    ) -> R:
        """The first answer of any member; each is asked once at a time, one after the other."""
        pending: dict[asyncio.Task[R], Member] = {}
        last: list[ConnectionFailed] = []
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    for member in self.members:
                        if member not in pending.values():
                            task = asyncio.ensure_future(self._ask(member, call))
                            pending[task] = member
                        answered = await self._take(pending, last, HEDGE_S)
                        if answered is not None:
                            return self._answered(pending, answered)
                    await asyncio.sleep(ROUND_S)
        except TimeoutError:
            raise (last or [self._unanswered(f"within {timeout_s:g} s")])[-1] from None
        finally:
            for task in pending:
                task.cancel()

    async def _take(
        self,
        pending: dict[asyncio.Task[R], Member],
        last: list[ConnectionFailed],
        wait_s: float,
    ) -> asyncio.Task[R] | None:
        """Wait for an answer of those asked, as long as one may come; failures are taken out."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while pending and loop.time() < until:
            done, _ = await asyncio.wait(
                pending, timeout=until - loop.time(), return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                error = task.exception()
                if error is None:
                    return task
                del pending[task]
                if not isinstance(error, ConnectionFailed):
                    raise error
                last.append(error)
        return None

    def _answered(self, pending: dict[asyncio.Task[R], Member], task: asyncio.Task[R]) -> R:
        """Ask who answered first from now on."""
        member = pending.pop(task)
        if self._members[0] is not member:
            self._members.remove(member)
            self._members.insert(0, member)
        return task.result()

    async def _ask(self, member: Member, call: Callable[[Member, _Metadata], Awaitable[R]]) -> R:
        for attempt in (0, 1):
            metadata = await self._metadata(member)
            try:
                return await call(member, metadata)
            except grpc.aio.AioRpcError as error:
                details = error.details() or ""
                if attempt == 0 and metadata and any(old in details for old in _OLD_TOKEN):
                    self._forget(metadata)
                    continue
                raise failure(error, member.address) from None
        raise AssertionError("unreachable")

    async def _metadata(self, member: Member) -> _Metadata:
        """The token of the user, fetched when there is none."""
        options = self._options
        if not options.user:
            return ()
        if not self._token:
            request = api.AuthenticateRequest(name=options.user, password=options.password.reveal())
            try:
                answer = await member.authenticate(request, timeout=CHANGE_S)
            except grpc.aio.AioRpcError as error:
                raise failure(error, member.address) from None
            self._token = answer.token
        return (("token", self._token),)

    def _forget(self, refused: _Metadata) -> None:
        """Drop a token that a member refused, unless another call has fetched a new one since."""
        if refused == (("token", self._token),):
            self._token = ""

    def _unanswered(self, how: str) -> ConnectionFailed:
        addresses = self._options.members
        return ConnectionFailed(
            f"etcd at {', '.join(addresses)} did not answer {how}", addresses=addresses
        )


def failure(error: grpc.aio.AioRpcError, address: str) -> ConnectionFailed | ProtocolError:
    """What a failed call means: no answer, or a refusal that asking again won't change."""
    text = f"{error.code().name}: {error.details()}"
    if error.code() in _REFUSALS:
        return ProtocolError(f"etcd at {address} refused: {text}")
    return ConnectionFailed(f"etcd at {address} did not answer: {text}", addresses=[address])
