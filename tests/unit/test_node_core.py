"""The compiled node as Python drives it: frames in, effects out, turns, pumps, copies.

The protocol itself is tested in rust/core/tests; this is its Python face. Frames are written here
by hand, after proto/FRAME.md, so that nothing but bytes is shared with the code under test.
"""

from __future__ import annotations

import gc
import struct
import threading
import zlib

import pytest
from spacegrid import _core

PARTITIONS = 4
STREAM = (1 << 32) | 1
GET, PUT, INCR, INVOKE = 1, 2, 4, 5
OK, MISS, NOT_PRIMARY, NOT_ENOUGH_COPIES, UNKNOWN, HANDLER_ERROR = 0, 1, 3, 6, 9, 14
PERMISSION = 20
READ_RIGHTS = 1

Row = tuple[int, int, bytes, int]


def frame(*operations: tuple[int, int, str, bytes, bytes], stream: int = STREAM) -> bytes:
    """A request frame of (opcode, number, map, key, value)."""
    maps = sorted({operation[2] for operation in operations})
    body = struct.pack("<QQH", stream, 0, len(maps))
    for name in maps:
        body += struct.pack("<B", len(name)) + name.encode() + struct.pack("<I", 0)
    for opcode, number, name, key, value in operations:
        body += struct.pack(
            "<BBHIIHBBI", opcode, 0, maps.index(name), number, 0, len(key), 0, 0, len(value)
        )
        body += key + value
    head = struct.pack("<2sBBII", b"SG", 1, 1, len(body), len(operations))
    return head + struct.pack("<I", zlib.crc32(body, zlib.crc32(head))) + body


def replies(effects: _core.Effects | None) -> list[Row]:
    """(number, status, value, copies) of every reply, by number."""
    rows: list[Row] = []
    for _, data in effects.client_frames if effects else []:
        (count,) = struct.unpack_from("<I", data, 8)
        _, base = struct.unpack_from("<QQ", data, 16)
        at = 32
        for _ in range(count):
            delta, status, _, _, copies, length, _ = struct.unpack_from("<IBBBBIQ", data, at)
            rows.append((base + delta, status, data[at + 20 : at + 20 + length], copies))
            at += 20 + length
    return sorted(rows)


def entry(
    partition: int, primary: int, in_sync: list[int], *, epoch: int = 1, version: int = 1
) -> _core.TableEntry:
    return (partition, epoch, version, 1, primary, in_sync, [], [], [], 0)


def lone(*, shared: bool = False, local: bool = False, quota: int = 0) -> _core.Node:
    node = _core.Node(
        1,
        PARTITIONS,
        min_in_sync=1,
        shared_sink=shared,
        local_sink=local,
        quota_bytes=quota,
    )
    node.apply_table(1, [entry(p, 1, [1]) for p in range(PARTITIONS)], 0)
    return node


def ask(node: _core.Node, *operations: tuple[int, int, str, bytes, bytes]) -> list[Row]:
    assert node.on_client_frame(9, frame(*operations), 0) == len(operations)
    return replies(node.take_effects())


def test_in_one_frame_a_reader_may_read_and_not_change() -> None:
    node = lone()
    ask(node, (PUT, 1, "m", b"a", b"1"))
    mixed = frame(
        (GET, 2, "m", b"a", b""), (PUT, 3, "m", b"a", b"2"), (INVOKE, 4, "Shop.buy", b"a", b"\x80")
    )
    assert node.on_client_frame(9, mixed, 0, READ_RIGHTS) == 3
    assert [row[:3] for row in replies(node.take_effects())] == [
        (2, OK, b"1"),
        (3, PERMISSION, b""),
        (4, PERMISSION, b""),
    ]
    assert node.on_client_frame(9, mixed, 0, 0) == 3
    assert {row[1] for row in replies(node.take_effects())} == {PERMISSION}
    assert ask(node, (GET, 5, "m", b"a", b""))[0][2] == b"1"


def test_put_and_get_travel_in_frames() -> None:
    node = lone()
    rows = ask(node, (PUT, 1, "m", b"a", b"1"), (PUT, 2, "m", b"b", b"2"), (GET, 3, "m", b"c", b""))
    assert rows == [(1, OK, b"", 1), (2, OK, b"", 1), (3, MISS, b"", 1)]
    assert ask(node, (GET, 4, "m", b"a", b"")) == [(4, OK, b"1", 1)]
    assert node.take_effects() is None
    assert node.idle()


def test_a_repeated_request_is_applied_once() -> None:
    node = lone()
    one = (1).to_bytes(8, "little")
    for _ in range(3):
        assert ask(node, (INCR, 1, "m", b"n", one)) == [(1, OK, b"\x01", 1)]


def test_bad_frames_are_refused_and_change_nothing() -> None:
    node = lone()
    data = frame((PUT, 1, "m", b"a", b"1"))
    for bad in (b"", data[:-1], data + b"x", data[:20] + b"\xff" + data[21:]):
        with pytest.raises(_core.FrameError):
            node.on_client_frame(9, bad, 0)
        with pytest.raises(_core.FrameError):
            node.on_peer_frame(2, bad, 0)
    assert node.status()["entries"] == 0


def test_reading_in_the_process() -> None:
    node = lone()
    ask(node, (PUT, 1, "m", b"a", b"1"))
    assert node.read("m", b"a", 0) == b"1"
    assert node.read("m", b"z", 0) is None
    found = node.read_entry("m", b"a", 0)
    assert found is not None
    assert (found[0], found[1], found[3]) == (b"1", 0, 0)
    partition = _core.partition_of(b"a", PARTITIONS)
    node.apply_table(2, [entry(partition, 2, [2], epoch=2, version=2)], 0)
    with pytest.raises(_core.KeyNotHere, match=f"partition {partition}"):
        node.read("m", b"a", 0)
    assert ask(node, (GET, 2, "m", b"a", b""))[0][1] == NOT_PRIMARY


def test_a_turn_writes_one_record_and_the_next_one_follows() -> None:
    node = lone(shared=True)
    call = (INVOKE, 1, "Shop.buy", b"tea", b"\x80")
    node.on_client_frame(9, frame(call), 0)
    node.on_client_frame(9, frame((INVOKE, 2, "Shop.buy", b"tea", b"\x80")), 0)
    effects = node.take_effects()
    assert effects is not None
    (turn,) = effects.turns
    assert (turn.handler, turn.arguments, turn.routing_key) == ("Shop.buy", b"\x80", b"tea")
    assert (turn.token, turn.chain) == ((STREAM, 1, b"", 1), [])
    assert turn.get("stock", b"tea") is None
    turn.put("stock", 0, b"tea", b"9", 0)
    turn.put("orders", 0, b"{tea}1", b"o", 0, 5000)
    assert turn.get("stock", b"tea") == b"9"
    assert turn.get_entry("orders", b"{tea}1") == (b"o", 0, 0, 5000)
    assert turn.delete("stock", b"{tea}2") is False
    assert turn.barrier() is None
    with pytest.raises(_core.WrongRoutingKey, match="milk"):
        turn.get("stock", b"milk")
    with pytest.raises(ValueError, match="the key"):
        turn.put("stock", 0, b"{tea}" + b"k" * 4096, b"", 0)
    (follower,) = turn.finish(b"\xc3", 0)
    assert replies(node.take_effects()) == [(1, OK, b"\xc3", 1)]
    with pytest.raises(_core.TurnOver):
        turn.get("stock", b"tea")
    assert follower.get("stock", b"tea") == b"9"
    assert follower.fail(HANDLER_ERROR, b"\x80", 0) == []
    assert replies(node.take_effects()) == [(2, HANDLER_ERROR, b"\x80", 1)]
    partition = turn.partition
    assert node.set_cursor("shared", partition, 0, 0)
    batch = node.read_log("shared", partition, 10, 1 << 20)
    assert batch is not None
    assert batch[:4] == (1, (1, 1), (1, 1), 1)
    assert [change[:3] for change in batch[4]] == [("orders", 0, b"{tea}1"), ("stock", 0, b"tea")]
    assert ask(node, call) == [(1, OK, b"\xc3", 1)]


def test_a_dropped_turn_does_not_hold_up_its_routing_key() -> None:
    node = lone()
    node.on_client_frame(9, frame((INVOKE, 1, "Shop.buy", b"tea", b"\x80")), 0)
    effects = node.take_effects()
    assert effects is not None
    assert len(effects.turns) == 1
    assert not node.idle()
    del effects
    gc.collect()
    assert replies(node.take_effects()) == [(1, UNKNOWN, b"", 1)]
    assert node.idle()


def test_pumps_read_what_is_committed_and_pin_the_log() -> None:
    node = lone(local=True)
    ask(node, *((PUT, n + 1, "m", b"{k}%d" % n, b"v") for n in range(10)))
    partition = _core.partition_of(b"k", PARTITIONS)
    assert node.pump_ready("shared") == list(range(PARTITIONS))
    assert node.read_log("local", partition, 10, 1 << 20) is None
    assert node.cursor("local", partition) is None
    assert node.set_cursor("local", partition, 0, 0)
    batch = node.read_log("local", partition, 4, 1 << 20)
    assert batch is not None
    assert batch[1:4] == ((1, 1), (1, 4), 4)
    assert batch[4][0] == ("m", 0, b"{k}0", b"v", 0, (1 << 40) | 1, 0, False)
    assert node.advance_cursor("local", partition, 1, 4)
    assert not node.set_cursor("local", partition, 0, 0), "that part of the log is gone"
    assert node.advance_cursor("local", partition, 1, 10)
    assert partition not in node.pump_ready("local")
    assert node.status()["log_bytes"] == 0
    with pytest.raises(ValueError, match="neither"):
        node.pump_ready("other")


def test_a_snapshot_comes_in_chunks_and_is_loaded_again() -> None:
    node = lone()
    ask(node, *((PUT, n + 1, "m", b"{k}%d" % n, b"v" * 50) for n in range(40)))
    partition = _core.partition_of(b"k", PARTITIONS)
    entries: list[_core.StoredEntry] = []
    after = b""
    while True:
        position, chunk, after = node.snapshot(partition, after, 500)
        assert position == (1, 40)
        entries += chunk
        if not after:
            break
    assert len({row[2] for row in entries}) == len(entries) == 40
    again = _core.Node(7, PARTITIONS, min_in_sync=1)
    again.load(partition, 1, 40, entries[:15], b"", False)
    again.load(partition, 1, 40, entries[15:], node.streams(partition), True)
    assert again.roles()[0][:2] == (partition, 5)
    again.apply_table(1, [entry(partition, 7, [7], epoch=2, version=9)], 0)
    assert again.roles() == [(partition, 1, 2, 9, 1, 40, 40, again.roles()[0][7])]
    assert ask(again, (PUT, 40, "m", b"{k}39", b"v" * 50)) == [(40, OK, b"", 1)]
    found = again.read_entry("m", b"{k}39", 0)
    assert found is not None
    assert found[2] == (1 << 40) | 40, "the repeat was answered, not applied"
    with pytest.raises(_core.KeyNotHere):
        again.snapshot((partition + 1) % PARTITIONS, b"", 500)


def test_two_nodes_replicate_before_they_answer() -> None:
    nodes = {copy: _core.Node(copy, PARTITIONS, min_in_sync=2) for copy in (1, 2)}
    for copy, node in nodes.items():
        node.apply_table(1, [entry(p, 1, [1, 2]) for p in range(PARTITIONS)], 0)
        node.peer_up(3 - copy)
    rows: list[Row] = []

    def exchange() -> None:
        while any(effects := [node.take_effects() for node in nodes.values()]):
            for sender, effect in zip(nodes, effects, strict=True):
                rows.extend(replies(effect))
                for to, data in effect.peer_frames if effect else []:
                    nodes[to].on_peer_frame(sender, data, 0)

    exchange()
    nodes[1].on_client_frame(9, frame((PUT, 1, "m", b"a", b"1")), 0)
    assert rows == []
    partition = _core.partition_of(b"a", PARTITIONS)
    assert nodes[1].when_committed(partition, 1, 77) is False
    effects = nodes[1].take_effects()
    assert effects is not None
    assert effects.client_frames == []
    for to, data in effects.peer_frames:
        nodes[to].on_peer_frame(1, data, 0)
    effects = nodes[2].take_effects()
    assert effects is not None
    for to, data in effects.peer_frames:
        nodes[to].on_peer_frame(2, data, 0)
    effects = nodes[1].take_effects()
    assert replies(effects) == [(1, OK, b"", 2)]
    assert effects is not None
    assert effects.settled == [77]
    assert nodes[1].when_committed(partition, 1, 78) is True


def test_arguments_are_checked() -> None:
    for copy, partition_count in ((0, 4), (1, 0), (1, 70_000)):
        with pytest.raises(ValueError, match="partition count"):
            _core.Node(copy, partition_count, min_in_sync=1)
    node = lone(quota=100)
    with pytest.raises(ValueError, match="state 9"):
        node.apply_table(1, [(0, 1, 1, 9, 1, [1], [], [], [], 0)], 0)
    with pytest.raises(ValueError, match="position"):
        node.set_cursor("local", 0, 1 << 24, 0)
    with pytest.raises(ValueError, match="ticket"):
        node.when_committed(0, 1, 0)
    assert node.revision == 1
    assert (node.copy, node.partition_count) == (1, PARTITIONS)


def test_threads_share_a_node() -> None:
    node = lone()
    threads = 4
    one = (1).to_bytes(8, "little")

    def work(worker: int) -> None:
        for n in range(200):
            operation = (INCR, n + 1, "m", b"n%d" % (n % 8), one)
            node.on_client_frame(worker, frame(operation, stream=STREAM + worker), 0)
            node.read("m", b"n0", 0)

    workers = [threading.Thread(target=work, args=(worker,)) for worker in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rows = replies(node.take_effects())
    assert len(rows) == 800
    values = [node.read("m", b"n%d" % n, 0) for n in range(8)]
    assert values == [b"\x64"] * 8, "each of 8 keys was raised 100 times"
