"""One request frame, one reply frame with all its answers: for callers without a stream.

Runs on the grid loop.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from typing import Final

from spacegrid.errors import TooLarge
from spacegrid.limits import FRAME_BYTES_HARD_MAX
from spacegrid.node.front import Front

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


async def exchange(front: Front, request: bytes, rights: int) -> bytes:
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

    number = front.open_connection(deliver)
    try:
        open_operations = front.client_frame(number, request, rights)
        while sum(map(reply_count, frames)) < open_operations:
            arrived.clear()
            await arrived.wait()
    finally:
        front.close_connection(number)
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
