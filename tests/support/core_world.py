"""Core nodes in the test's process: one client, frames carried by hand, time as the test says.

Frames to other nodes lie in `wire` until they are carried, lost, or carried late.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Sequence

from spacegrid import _core

PARTITIONS = 4
STREAM = (1 << 32) | 1
GET, PUT, DELETE, INCR = 1, 2, 3, 4
OK, MISS, CONFLICT, NOT_PRIMARY, UNAVAILABLE, LOST = 0, 1, 2, 3, 4, 5
NOT_ENOUGH_COPIES, UNKNOWN = 6, 9
TTL, VERSION, IF_ABSENT = 1, 2, 8
CLIENT = 9
#: Frames of one `carry`; what a test starts ends after a few dozen.
CARRIED_MAX = 10_000

#: (number, status, value, copies, version)
Row = tuple[int, int, bytes, int, int]


def request(
    opcode: int,
    number: int,
    key: bytes,
    value: bytes = b"",
    *,
    ttl_ms: int = 0,
    version: int | None = None,
    lowest: int | None = None,
    if_absent: bool = False,
) -> bytes:
    """One operation of map `m`, as proto/FRAME.md lays it out."""
    flags = (TTL if ttl_ms else 0) | (VERSION if version is not None else 0)
    flags |= IF_ABSENT if if_absent else 0
    span = 0 if lowest is None else number - lowest
    body = struct.pack("<QQHB", STREAM, 0, 1, 1) + b"m" + struct.pack("<I", 0)
    body += struct.pack("<BBHIIHBBI", opcode, flags, 0, number, span, len(key), 0, 0, len(value))
    body += struct.pack("<Q", ttl_ms) if ttl_ms else b""
    body += struct.pack("<Q", version) if version is not None else b""
    body += key + value
    head = struct.pack("<2sBBII", b"SG", 1, 1, len(body), 1)
    return head + struct.pack("<I", zlib.crc32(body, zlib.crc32(head))) + body


def rows(frames: Sequence[tuple[int, bytes]]) -> list[Row]:
    """Every reply in these frames, by number."""
    found: list[Row] = []
    for _, data in frames:
        (count,) = struct.unpack_from("<I", data, 8)
        _, base = struct.unpack_from("<QQ", data, 16)
        at = 32
        for _ in range(count):
            delta, status, _, _, copies, length, version = struct.unpack_from("<IBBBBIQ", data, at)
            value = data[at + 20 : at + 20 + length]
            found.append((base + delta, status, value, copies, version))
            at += 20 + length
    return sorted(found)


class CoreWorld:
    """Some core nodes that share one ownership table."""

    def __init__(self, *copies: int, min_in_sync: int = 2) -> None:
        self.now_ms = 10_000_000_000
        self.nodes = {
            copy: _core.Node(copy, PARTITIONS, min_in_sync=min_in_sync) for copy in copies
        }
        self.wire: list[tuple[int, int, bytes]] = []
        self.answers: list[Row] = []
        self.changes: list[_core.ChangeRequest] = []
        self.revision = 0
        self.primary, self.in_sync, self.epoch = 0, [0], 0
        for copy in copies:
            for other in copies:
                if other != copy:
                    self.nodes[copy].peer_up(other)

    def table(
        self,
        primary: int,
        in_sync: list[int],
        *,
        epoch: int,
        joining: int = 0,
        tails: dict[int, tuple[int, int, int, int]] | None = None,
        late: Sequence[int] = (),
    ) -> Callable[[], None]:
        """Give every partition these owners, and tell all nodes.

        Args:
            primary: Who answers.
            in_sync: Complete copies.
            epoch: Of all partitions.
            joining: A copy that begins to join, under the new version as its session; 0: none.
            tails: Partition to its tail (copy, session, epoch, sequence).
            late: Nodes that are not told yet.

        Returns:
            What tells those.
        """
        self.revision += 1
        self.primary, self.in_sync, self.epoch = primary, in_sync, epoch
        join = [(joining, self.revision)] if joining else []
        entries: list[_core.TableEntry] = []
        for p in range(PARTITIONS):
            tail = [tails[p]] if tails else []
            row = (p, epoch, self.revision, 1, primary, in_sync, [], join, tail, 0)
            entries.append(row)
        revision = self.revision

        def tell(copies: Iterable[int]) -> None:
            for copy in copies:
                self.nodes[copy].apply_table(revision, entries, self.now_ms)

        tell(copy for copy in self.nodes if copy not in late)
        return lambda: tell(late)

    def join(self, copy: int) -> None:
        """Let a copy join all partitions: as a tail first, in sync once it is complete."""
        self.table(self.primary, self.in_sync, epoch=self.epoch, joining=copy)
        session = self.revision
        asked = self.wait_asked(copy, kind=1)
        tails = {p: (copy, session, change[5], change[6]) for p, change in asked.items()}
        self.table(self.primary, self.in_sync, epoch=self.epoch, tails=tails)
        self.wait_asked(copy, kind=2)
        self.table(self.primary, [*self.in_sync, copy], epoch=self.epoch)
        self.carry()

    def wait_asked(self, copy: int, kind: int) -> dict[int, _core.ChangeRequest]:
        """Let time pass until every partition's primary asks for this change of a copy."""
        for _ in range(100):
            self.tick(20)
            self.carry()
            asked = {c[0]: c for c in self.changes if (c[4], c[3]) == (copy, kind)}
            if len(asked) == PARTITIONS:
                self.changes.clear()
                return asked
        raise AssertionError(f"copy {copy}: change {kind} was not asked for: {self.changes}")

    def ask(self, copy: int, *frames: bytes) -> None:
        """A client's frames arrive at a node."""
        for data in frames:
            self.nodes[copy].on_client_frame(CLIENT, data, self.now_ms)
        self.collect()

    def collect(self) -> None:
        """Take what the nodes want done; frames to others go onto the wire."""
        for copy, node in self.nodes.items():
            while (effects := node.take_effects()) is not None:
                self.answers += rows(effects.client_frames)
                self.changes += effects.changes
                self.wire += [(copy, to, data) for to, data in effects.peer_frames]

    def carry(self, *, lose: Sequence[tuple[int, int]] = ()) -> None:
        """Carry frames until none is left; those of a direction in `lose` are lost.

        Raises:
            AssertionError: Nodes answer each other for ever.
        """
        self.collect()
        carried = 0
        while self.wire:
            carried += 1
            assert carried <= CARRIED_MAX, f"no end after {carried} frames, next {self.wire[:3]}"
            sender, to, data = self.wire.pop(0)
            if (sender, to) not in lose and to in self.nodes:
                self.nodes[to].on_peer_frame(sender, data, self.now_ms)
            self.collect()

    def tick(self, ms: int) -> None:
        """Time passes."""
        self.now_ms += ms
        for node in self.nodes.values():
            node.tick(self.now_ms)
        self.collect()

    def kill(self, copy: int) -> None:
        """A node and all that it holds is gone, and what it had on its way."""
        del self.nodes[copy]
        self.wire = [item for item in self.wire if item[0] != copy]
        for node in self.nodes.values():
            node.peer_down(copy)

    def heard(self) -> list[Row]:
        """What clients were answered since the last time."""
        found, self.answers = self.answers, []
        return found

    def does(self, copy: int, *frames: bytes) -> list[Row]:
        """Ask and carry everything; the answers."""
        self.heard()
        self.ask(copy, *frames)
        self.carry()
        return self.heard()
