"""Keeps a space's image up to date: one watch over all its keys, resumed where it ended.

A watch can end (a member dies or loses etcd's leader), fall silent (a member is paused), or lag (a
member is cut off and does not know). So the stream is asked for a sign of life, and what the watch
has told is compared with what linearizable reads have found (`behind`); either way another member
is asked next. Where the revision to go on from was compacted away, everything is read again.

Who calls: coordinator.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import grpc.aio

from spacegrid import clock
from spacegrid.coordinator.etcd import api_pb2 as api
from spacegrid.coordinator.etcd.client import Member, WatchStream, failure
from spacegrid.coordinator.etcd.image import News
from spacegrid.coordinator.etcd.space import LOAD_S, Space
from spacegrid.errors import ConnectionFailed, ProtocolError

__all__ = ["Watcher"]

#: Seconds between two questions for a sign of life.
PACE_S: Final = 0.2
#: Seconds of silence, or of being behind, after which another member is asked.
SILENCE_S: Final = 0.7
RETRY_FIRST_S: Final = 0.02
RETRY_MAX_S: Final = 0.5


class Watcher:
    """The watch of one node over its space."""

    def __init__(
        self, space: Space, tell: Callable[[News | None], None], refused: Callable[[str], None]
    ) -> None:
        """Watch nothing yet; `run` does.

        Args:
            space: Whose image is kept up to date; it was loaded.
            tell: Called with what is different; None: everything was read again.
            refused: Called with the reason when what etcd has can't be.
        """
        self._space = space
        self._tell = tell
        self._refused = refused
        self._heard_s = 0.0
        self._behind_since_s: float | None = None
        self._compacted = False

    def found(self, revision: int) -> None:
        """Hear of a revision at which a key of the space was changed, from a linearizable read."""
        if revision <= self._space.image.revision:
            self._behind_since_s = None
        elif self._behind_since_s is None:
            self._behind_since_s = clock.monotonic_s()

    async def run(self) -> None:
        """Watch until cancelled, or until what etcd has can't be."""
        wait_s = RETRY_FIRST_S
        while True:
            member = self._space.client.members[0]
            try:
                if self._compacted:
                    await self._space.load(LOAD_S)
                    self._compacted = False
                    self._tell(None)
                if await self._follow(member):
                    wait_s = RETRY_FIRST_S
            except ConnectionFailed:
                pass
            except ProtocolError as error:
                self._refused(str(error))
                return
            if not self._compacted:
                self._space.client.ask_last(member)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, RETRY_MAX_S)

    async def _follow(self, member: Member) -> bool:
        """One stream from its request to its end; whether anything came."""
        space = self._space
        stream = await space.client.watch(member)
        self._heard_s = clock.monotonic_s()
        self._behind_since_s = None
        pacer = asyncio.create_task(self._pace(stream), name="etcd watch pacer")
        heard = False
        try:
            await stream.write(_create(space))
            async for response in stream:
                self._heard_s = clock.monotonic_s()
                if not self._take(response):
                    break
                heard = True
        except grpc.aio.AioRpcError as error:
            raise failure(error, member.address) from None
        except asyncio.InvalidStateError:
            raise ConnectionFailed(f"etcd at {member.address} ended the watch") from None
        except asyncio.CancelledError:
            # A stream that was cancelled by the pacer says so with the same error as a task.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
        finally:
            pacer.cancel()
            stream.cancel()
        return heard

    def _take(self, response: api.WatchResponse) -> bool:
        """Take what the watch says; False: it is over."""
        if response.compact_revision:
            self._compacted = True
            return False
        if response.canceled:
            raise ConnectionFailed(f"etcd ended the watch: {response.cancel_reason}")
        if response.events:
            space = self._space
            revision = max(event.kv.mod_revision for event in response.events)
            space.seen = max(space.seen, revision)
            self._tell(space.image.hear(response.events, revision))
        return True

    async def _pace(self, stream: WatchStream) -> None:
        """Ask for signs of life, and end the stream where there are none."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await asyncio.sleep(PACE_S)
                now_s = clock.monotonic_s()
                since_s = self._behind_since_s
                behind = since_s is not None and now_s - since_s > SILENCE_S
                if behind or now_s - self._heard_s > SILENCE_S:
                    stream.cancel()
                    return
                await stream.write(api.WatchRequest(progress=api.WatchProgress()))


def _create(space: Space) -> api.WatchRequest:
    """Everything of the space from the revision after the last one that is known in full."""
    return api.WatchRequest(
        create=api.WatchCreate(
            key=space.keys.prefix,
            range_end=space.keys.end,
            start_revision=space.image.revision + 1,
        )
    )
