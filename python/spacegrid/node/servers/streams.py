"""Frames of clients over gRPC streams: one connection of the core per stream, with bounded output.

A connection whose replies are not being taken is not read any more until they are. Invariants: what waits for a client
is at most OUTPUT_BYTES_MAX plus the replies of one frame for each frame it has sent; replies leave in the order in which
the core made them. Runs on the grid loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

import grpc
import grpc.aio

from spacegrid._core import FrameError
from spacegrid.node.engine import Engine
from spacegrid.v1 import data_pb2

OUTPUT_BYTES_MAX: Final = 4 << 20
"""Replies waiting for one connection; past it no more requests are read from it."""
END_TIMEOUT_S: Final = 10.0
"""How long replies may still come after a client has said it has no more requests."""
_COUNT_OFFSET: Final = 8


def reply_count(frame: bytes) -> int:
    """Number of replies in a reply frame, read from its envelope (proto/FRAME.md)."""
    return int.from_bytes(frame[_COUNT_OFFSET : _COUNT_OFFSET + 4], "little")


class FrameConnection:
    """One client's stream: requests to the core, replies to the client."""

    def __init__(self, engine: Engine, context: Any) -> None:
        self._engine = engine
        self._context = context
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._open_operations = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._settled = asyncio.Event()
        self._settled.set()
        self._number = engine.open_connection(self._deliver)

    async def run(self) -> None:
        """Carry frames both ways until the client ends the stream or breaks the rules."""
        writer = asyncio.get_running_loop().create_task(self._write())
        try:
            await self._read()
            async with asyncio.timeout(END_TIMEOUT_S):
                await self._settled.wait()
        except TimeoutError:
            await self._context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED, "requests were still open at the end of the stream"
            )
        finally:
            self._engine.close_connection(self._number)
            writer.cancel()

    async def _read(self) -> None:
        read, engine, eof = self._context.read, self._engine, grpc.aio.EOF
        while (message := await read()) is not eof:
            try:
                self._open_operations += engine.client_frame(self._number, message.data)
            except FrameError as error:
                await self._context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            except BaseException as error:
                engine.fatal(error)
                raise
            if self._open_operations:
                self._settled.clear()
            if self._queued_bytes > OUTPUT_BYTES_MAX:
                self._room.clear()
                await self._room.wait()

    async def _write(self) -> None:
        queue, write, frame_message = self._queue, self._context.write, data_pb2.Frame
        while True:
            while queue:
                frame = queue.popleft()
                await write(frame_message(data=frame))
                self._queued_bytes -= len(frame)
                self._open_operations -= reply_count(frame)
            if self._queued_bytes <= OUTPUT_BYTES_MAX:
                self._room.set()
            if self._open_operations <= 0:
                self._settled.set()
            self._wake.clear()
            await self._wake.wait()

    def _deliver(self, frame: bytes) -> None:
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        self._wake.set()
