"""Frames of clients over gRPC streams: one connection of the core per stream, with bounded output.

A connection whose replies are not being taken is not read any more until they are. Invariants: what
waits for a client is at most OUTPUT_BYTES_MAX plus the replies of one frame for each frame it has
sent; replies leave in the order in which the core made them. Runs on the grid loop.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections import deque
from typing import Any, Final

import grpc
import grpc.aio

from spacegrid._core import FrameError
from spacegrid.errors import TooLarge
from spacegrid.limits import FRAME_BYTES_HARD_MAX
from spacegrid.node.engine import Engine
from spacegrid.v1 import data_pb2

OUTPUT_BYTES_MAX: Final = 4 << 20
"""Replies waiting for one connection; past it no more requests are read from it."""
END_TIMEOUT_S: Final = 10.0
"""How long replies may still come after a client has said it has no more requests."""
_COUNT_OFFSET: Final = 8
_ENVELOPE_BYTES: Final = 16
_BASE_OFFSET: Final = 24
_REPLIES_OFFSET: Final = 32
_REPLY_BYTES: Final = 20
_REPLY: Final = struct.Struct("<I4sI")
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


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
                grpc.StatusCode.DEADLINE_EXCEEDED,
                "requests were still open at the end of the stream",
            )
        finally:
            self._engine.close_connection(self._number)
            writer.cancel()
            # A write that failed because the client is gone is no news: so did the reading.
            writer.add_done_callback(lambda task: task.cancelled() or task.exception())

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


async def exchange(engine: Engine, request: bytes) -> bytes:
    """Carry out one request frame on its own and give all its answers as one reply frame.

    Raises:
        FrameError: The bytes are no valid frame; nothing was carried out.
        TooLarge: It was carried out, and its answers don't fit into one frame.
    """
    frames: list[bytes] = []
    arrived = asyncio.Event()

    def deliver(frame: bytes) -> None:
        frames.append(frame)
        arrived.set()

    number = engine.open_connection(deliver)
    try:
        open_operations = engine.client_frame(number, request)
        while sum(map(reply_count, frames)) < open_operations:
            arrived.clear()
            await arrived.wait()
    finally:
        engine.close_connection(number)
    return frames[0] if len(frames) == 1 else join_replies(frames)


def join_replies(frames: list[bytes]) -> bytes:
    """Join reply frames of one request frame; all their numbers count from the lowest base."""
    base = min(_U64.unpack_from(frame, _BASE_OFFSET)[0] for frame in frames)
    body = bytearray(frames[0][_ENVELOPE_BYTES:_BASE_OFFSET]) + _U64.pack(base)
    for frame in frames:
        shift = _U64.unpack_from(frame, _BASE_OFFSET)[0] - base
        at = _REPLIES_OFFSET
        for _ in range(reply_count(frame)):
            delta, rest, value_length = _REPLY.unpack_from(frame, at)
            end = at + _REPLY_BYTES + value_length
            body += _U32.pack(delta + shift) + rest + frame[at + 8 : end]
            at = end
    size = _ENVELOPE_BYTES + len(body)
    if size > FRAME_BYTES_HARD_MAX:
        raise TooLarge(
            f"answers of {size} bytes for one exchange, the limit is {FRAME_BYTES_HARD_MAX}\n"
            "hint: ask for less at once, or use Data.Stream"
        )
    head = frames[0][:4] + struct.pack("<II", len(body), sum(map(reply_count, frames)))
    return head + _U32.pack(zlib.crc32(body, zlib.crc32(head))) + bytes(body)
