"""Goal: another language can write and read frames from proto/FRAME.md alone.

Method: a reader and a writer made of `struct` and `zlib`, run over the vectors that Rust reads too.
"""

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import pytest
from spacegrid import _core

VECTORS = Path(__file__).parent.parent / "vectors" / "frame.txt"
TTL, VERSION, TOKEN, IF_ABSENT = 1, 2, 4, 8
INVOKE = 5


class Vector(NamedTuple):
    name: str
    kind: str
    verdict: str
    frame: bytes
    items: list[str]


def vectors() -> list[Vector]:
    """Lines of `name | kind | ok or error code | frame in hex | prefix | item | item ...`."""
    found = []
    for line in VECTORS.read_text().splitlines():
        if line and not line.startswith("#"):
            name, kind, verdict, frame, *items = (part.strip() for part in line.split("|"))
            found.append(Vector(name, kind, verdict, bytes.fromhex(frame), items))
    return found


def named(name: str) -> Vector:
    return next(vector for vector in vectors() if vector.name == name)


def text(data: bytes) -> str:
    return data.hex() or "-"


def envelope(kind: int, count: int, body: bytes) -> bytes:
    head = struct.pack("<2sBBII", b"SG", 1, kind, len(body), count)
    return head + struct.pack("<I", zlib.crc32(body, zlib.crc32(head))) + body


def open_envelope(frame: bytes) -> tuple[int, int, bytes]:
    magic, version, kind, length, count, crc = struct.unpack_from("<2sBBIII", frame)
    body = frame[16:]
    assert (magic, version, length) == (b"SG", 1, len(body))
    assert crc == zlib.crc32(body, zlib.crc32(frame[:12]))
    return kind, count, body


class Bytes:
    """Takes fields off the front."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def fields(self, layout: str) -> tuple[int, ...]:
        found = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return found

    def take(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]


def read_request(frame: bytes) -> list[str]:
    kind, count, body = open_envelope(frame)
    assert kind == 1
    data = Bytes(body)
    stream, base, map_count = data.fields("QQH")
    maps = []
    for _ in range(map_count):
        name = data.take(*data.fields("B")).decode()
        maps.append((name, *data.fields("I")))
    items = [f"stream={stream}"]
    for _ in range(count):
        head = data.fields("BBHIIHBBI")
        opcode, flags, index, delta, span, key_length, codec, reserved, value_length = head
        number = base + delta
        ttl = data.fields("Q")[0] if flags & TTL else 0
        version = data.fields("Q")[0] if flags & VERSION else 0
        token, chain = (stream, number, b"", number - span), []
        if flags & TOKEN:
            of, which, lowest, path_length = data.fields("QQQB")
            token = (of, which, data.take(path_length), lowest)
            if opcode == INVOKE:
                chain = [data.take(*data.fields("H")) for _ in range(data.fields("B")[0])]
        key, value = data.take(key_length), data.take(value_length)
        name, schema = maps[index]
        assert reserved == 0
        items.append(
            f"op={opcode} flags={flags} map={name} schema={schema} number={number} "
            f"token={token[0]}.{token[1]}.{text(token[2])}.{token[3]} "
            f"key={text(key)} codec={codec} value={text(value)} ttl={ttl} version={version} "
            f"chain={','.join(entry.hex() for entry in chain) or '-'}"
        )
    assert data.at == len(body)
    return items


def read_reply(frame: bytes) -> list[str]:
    kind, count, body = open_envelope(frame)
    assert kind == 2
    data = Bytes(body)
    stream, base = data.fields("QQ")
    items = [f"stream={stream}"]
    for _ in range(count):
        delta, status, flags, codec, copies, length, version = data.fields("IBBBBIQ")
        items.append(
            f"number={base + delta} status={status} flags={flags} codec={codec} copies={copies} "
            f"version={version} value={text(data.take(length))}"
        )
    assert data.at == len(body)
    return items


@pytest.mark.parametrize("vector", vectors(), ids=lambda vector: vector.name)
def test_f53_frames_of_this_version_stay_as_they_are(vector: Vector) -> None:
    if vector.verdict == "ok":
        read = read_request if vector.kind == "request" else read_reply
        assert read(vector.frame) == vector.items
        if vector.kind == "request":
            assert len(_core.decode_request(vector.frame)) == len(vector.items) - 1
    elif vector.kind == "request":
        with pytest.raises(_core.FrameError):
            _core.decode_request(vector.frame)
    else:
        with pytest.raises(_core.FrameError):
            _core.Client(7, 8).on_frame(0, vector.frame, 0)


def test_a_writer_made_of_struct_makes_the_same_bytes() -> None:
    prefix = struct.pack("<QQH", 7, 0, 1) + b"\x05stock" + struct.pack("<I", 0xABCD)
    get = struct.pack("<BBHIIHBBI", 1, 0, 0, 1, 0, 3, 0, 0, 0) + b"tea"
    assert envelope(1, 1, prefix + get) == named("get").frame
    put = struct.pack("<BBHIIHBBIQ", 2, TTL | IF_ABSENT, 0, 3, 2, 3, 0, 0, 2, 60_000) + b"tea10"
    assert envelope(1, 1, prefix + put) == named("put-if-absent-with-ttl").frame
    found = struct.pack("<QQIBBBBIQ", 7, 0, 1, 0, 0, 0, 2, 2, (3 << 40) | 9) + b"10"
    assert envelope(2, 1, found) == named("reply-ok").frame


def test_the_reply_writer_of_the_core_makes_the_same_bytes() -> None:
    assert _core.encode_reply(7, [(1, 0, 0, 0, 2, (3 << 40) | 9, b"10")]) == named("reply-ok").frame
