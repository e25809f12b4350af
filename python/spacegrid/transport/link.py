"""A link to one node over a socket of the event loop: request frames out, reply frames in.

The protocol is `_core.FrameLink`, which has no socket; the loop (asyncio's or uvloop's) owns that
and hands over what comes, so whatever one read brings is one step. There is no thread behind it. A
link fails fast: whoever uses it decides when to try again.

Invariants: a link reports being down once, and nothing comes after it; `sent` is False only if no
frame was given to the socket, or the node did not let the stream in. Used on one loop.

Who calls: `client_grpc` for clients, the node's own client.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

from spacegrid._core import FrameLink
from spacegrid.config import split_address
from spacegrid.security.client import PLAIN, ClientSecurity
from spacegrid.transport.base import OnDown, OnFrame

__all__ = ["StreamLink"]

CONNECT_TIMEOUT_S: Final = 2.0
PING_S: Final = 2.0
"""A process that is stopped but not dead keeps its sockets open; only a ping tells, by the next."""


class StreamLink(asyncio.Protocol):
    """One stream to one node; begins to connect at once, frames may be sent meanwhile.

    Args:
        address: host:port of the node.
        cluster_id: The cluster expected; empty for any.
        on_frame: Takes each reply frame.
        on_down: Takes the reason and whether a frame may have left, once.
        security: How this side proves itself.
        server_name: The name that the node's certificate must have; None: the address's host.
    """

    def __init__(
        self,
        address: str,
        cluster_id: bytes,
        on_frame: OnFrame,
        on_down: OnDown,
        security: ClientSecurity = PLAIN,
        server_name: str | None = None,
    ) -> None:
        self._address = address
        self._security = security
        self._server_name = server_name
        self._core = FrameLink(address, cluster_id, security.authorization)
        self._on_frame = on_frame
        self._on_down = on_down
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._queued = self._sent = self._over = False
        self._ping: asyncio.TimerHandle | None = None
        self._lost = self._loop.create_future()
        self._connecting = self._loop.create_task(self._connect())

    def send(self, frame: bytes) -> None:
        """Queue a frame; dropped once the link is down."""
        if self._over:
            return
        self._core.send(frame)
        if self._transport is None:
            self._queued = True
        else:
            self._sent = True
            self._transport.write(self._core.output())

    def close(self) -> None:
        """Drop the connection without a callback."""
        self._over = True
        self._connecting.cancel()
        if self._ping is not None:
            self._ping.cancel()
        if self._transport is not None:
            self._transport.abort()

    @property
    def over(self) -> bool:
        """Whether nothing of the link is left."""
        return self._over and self._connecting.done() and (not self._transport or self._lost.done())

    async def ended(self) -> None:
        """Wait until nothing of the link is left on the loop; after `close`."""
        await asyncio.gather(self._connecting, return_exceptions=True)
        if self._transport is not None:
            await self._lost

    async def _connect(self) -> None:
        host, port = split_address(self._address)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                context = self._security.context
                name = self._server_name or host.strip("[]")
                await self._loop.create_connection(
                    lambda: self,
                    host.strip("[]"),
                    port,
                    ssl=context,
                    server_hostname=name if context else None,
                )
        except (OSError, TimeoutError) as error:
            self._end(str(error) or "no connection in time")

    def _end(self, reason: str) -> None:
        if not self._over:
            self.close()
            self._on_down(f"{self._address}: {reason}", self._sent and not self._core.refused)

    def _keep_alive(self) -> None:
        if self._transport is None or self._over:
            return
        if self._core.ping():
            self._transport.write(self._core.output())
            self._ping = self._loop.call_later(PING_S, self._keep_alive)
        else:
            self._end("no sign of life")

    # ---- what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the stream, and send what was queued meanwhile."""
        # uvloop's transports are asyncio's by what they do, not by their class.
        self._transport = cast("asyncio.Transport", transport)
        if self._over:
            self._transport.abort()
            return
        self._sent = self._queued
        self._transport.write(self._core.output())
        self._ping = self._loop.call_later(PING_S, self._keep_alive)

    def data_received(self, data: bytes) -> None:
        """Hand on every reply frame that is whole."""
        core = self._core
        frames = core.receive(data)
        for frame in frames:
            if self._over:
                return
            self._on_frame(frame)
        if self._over or self._transport is None:
            return
        if output := core.output():
            self._transport.write(output)
        if (reason := core.down) is not None:
            self._end(reason)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        if not self._lost.done():
            self._lost.set_result(None)
        self._core.receive_end()
        self._end(str(exc) if exc else self._core.down or "the node ended the connection")
