"""The node's port: what strangers send ends their own call or connection, and nothing else."""

import asyncio
import contextlib
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import spacegrid
import uvloop
from spacegrid import _core
from spacegrid.testing import LocalCluster
from spacegrid.v1 import data_pb2, data_pb2_grpc, peers_pb2

pytestmark = pytest.mark.timeout(120)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
HELLO = data_pb2.Frame(hello=data_pb2.Hello(protocol_version=1)).SerializeToString()
STREAM = "/spacegrid.v1.Data/Stream"
LINK = "/spacegrid.v1.Peers/Link"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(nodes=1, copies=1, data=tmp_path_factory.mktemp("front")) as cluster:
        with spacegrid.connect_sync(cluster.addresses[0]) as grid:
            grid.map("bytes", key=str, value=bytes).put("large", bytes(500_000))
        yield cluster


@pytest.fixture(autouse=True)
def _the_node_still_serves(node: LocalCluster) -> Iterator[None]:
    yield
    with spacegrid.connect_sync(node.addresses[0], timeout=5.0) as grid:
        assert len(grid.map("bytes", key=str, value=bytes).get("large") or b"") == 500_000


def connected(node: LocalCluster) -> socket.socket:
    host, port = node.addresses[0].rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=10)


def read_to_end(stranger: socket.socket) -> bytes:
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while data := stranger.recv(65536):
            received += data
    return bytes(received)


HOSTILE = {
    "no HTTP/2": b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    "a preface that breaks off": PREFACE[:10] + b"\0" * 30,
    "a frame past its limit": PREFACE + SETTINGS + b"\xff\xff\xff\0\0\0\0\0\1" + bytes(100),
    "data of no call": PREFACE + SETTINGS + b"\0\0\5\0\0\0\0\0\1hello",
    "headers that are none": PREFACE + SETTINGS + b"\0\0\4\1\4\0\0\0\1\xff\xff\xff\xff",
    "settings of a wrong size": PREFACE + b"\0\0\5\4\0\0\0\0\0hello",
    "a window of nothing": PREFACE + SETTINGS + b"\0\0\4\x08\0\0\0\0\0\0\0\0\0",
    "a call of an even number": PREFACE + SETTINGS + b"\0\0\1\1\5\0\0\0\2\x82",
}


@pytest.mark.parametrize("sent", HOSTILE.values(), ids=HOSTILE)
def test_bytes_that_break_the_rules_end_the_connection(node: LocalCluster, sent: bytes) -> None:
    with connected(node) as stranger:
        stranger.sendall(sent)
        read_to_end(stranger)


def call(
    node: LocalCluster, path: str, *messages: bytes, to_the_end: bool = True
) -> tuple[grpc.StatusCode, str, list[bytes]]:
    """Send raw messages; the status and the answers."""
    options = [("grpc.max_send_message_length", -1)]
    answers: list[bytes] = []
    done = threading.Event()

    def requests() -> Iterator[bytes]:
        yield from messages
        if not to_the_end:
            done.wait(20)

    with grpc.insecure_channel(node.addresses[0], options=options) as channel:
        stream = channel.stream_stream(
            path, request_serializer=lambda m: m, response_deserializer=lambda m: m
        )(requests(), timeout=10)
        with contextlib.suppress(grpc.RpcError):
            answers.extend(stream)
        done.set()
        return stream.code(), stream.details(), answers


def frame(data: bytes) -> bytes:
    return data_pb2.Frame(data=data).SerializeToString()


def test_a_stream_is_let_in_only_with_a_hello_that_fits(node: LocalCluster) -> None:
    def hello(**fields: Any) -> bytes:
        return data_pb2.Frame(hello=data_pb2.Hello(**fields)).SerializeToString()

    refused = grpc.StatusCode.FAILED_PRECONDITION
    assert call(node, STREAM, HELLO) == (grpc.StatusCode.OK, "", [])
    assert call(node, STREAM)[0] == grpc.StatusCode.OK
    code, details, _ = call(node, STREAM, hello(protocol_version=9))
    assert (code, "protocol version 9" in details) == (refused, True), details
    code, details, _ = call(node, STREAM, hello(protocol_version=1, cluster_id=b"x" * 16))
    assert (code, "expects cluster 7878" in details) == (refused, True), details
    code, details, _ = call(node, STREAM, frame(b"SG"))
    assert (code, "protocol version 0" in details) == (refused, True), details


def test_a_stream_ends_with_what_was_wrong_in_it(node: LocalCluster) -> None:
    code, details, _ = call(node, STREAM, HELLO, frame(b"not a frame"), to_the_end=False)
    assert code == grpc.StatusCode.INVALID_ARGUMENT, details
    code, details, _ = call(node, STREAM, HELLO, b"\xff\xff\xff\xff", to_the_end=False)
    assert code == grpc.StatusCode.INVALID_ARGUMENT, details
    code, details, _ = call(node, STREAM, HELLO, bytes(2 << 20), to_the_end=False)
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED, details
    assert f"message of {2 << 20} bytes, the limit is 1115136" in details


def test_another_node_is_let_in_only_if_it_means_this_one(node: LocalCluster) -> None:
    def hello(**fields: Any) -> bytes:
        return peers_pb2.PeerFrame(hello=peers_pb2.PeerHello(**fields)).SerializeToString()

    code, details, _ = call(node, LINK, hello(protocol_version=1, cluster_id=b"x" * 16))
    assert (code, "peer is of cluster 7878" in details) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        True,
    ), details
    life = node.status().cluster_id
    code, details, _ = call(
        node, LINK, hello(protocol_version=1, cluster_id=life, incarnation=7, receiver=999)
    )
    assert (code, "peer means incarnation 999" in details) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        True,
    ), details


def test_a_damaged_frame_of_another_node_ends_its_link(node: LocalCluster) -> None:
    status = node.status()
    hello = peers_pb2.PeerHello(
        protocol_version=1,
        cluster_id=status.cluster_id,
        node="stranger",
        incarnation=999,
        receiver=status.self.incarnation,
    )
    code, details, answers = call(
        node,
        LINK,
        peers_pb2.PeerFrame(hello=hello).SerializeToString(),
        peers_pb2.PeerFrame(data=b"not a frame").SerializeToString(),
        to_the_end=False,
    )
    assert code == grpc.StatusCode.INVALID_ARGUMENT, details
    mine = peers_pb2.PeerFrame.FromString(answers[0]).hello
    assert (mine.incarnation, mine.receiver) == (status.self.incarnation, 999)


def test_calls_that_are_no_frames_go_through_with_their_trailers(node: LocalCluster) -> None:
    with grpc.insecure_channel(node.addresses[0]) as channel:
        stub = data_pb2_grpc.DataStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Put(data_pb2.PutRequest(map="bytes", key=b"k", value=bytes(2 << 20)), timeout=5)
        trailers = dict(refused.value.trailing_metadata())  # type: ignore[attr-defined]
        assert trailers["spacegrid-code"] == "too_large"
        with pytest.raises(grpc.RpcError) as unknown:
            channel.unary_unary("/spacegrid.v1.Data/NoSuchCall")(b"", timeout=5)
        assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
        large = stub.Get(data_pb2.GetRequest(map="bytes", key=b"large"), timeout=5)
        assert len(large.value.data) == 500_000
        # A caller that gives up ends its call behind the port too, and the connection stays.
        waiting = stub.Get.future(data_pb2.GetRequest(map="bytes", key=b"large"), timeout=5)
        waiting.cancel()
        assert stub.GetRoutes(data_pb2.RoutesRequest(), timeout=5).revision > 0


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def core_client(address: str) -> _core.Client:
    """A client's core with its routes, and no link yet."""
    with grpc.insecure_channel(address) as channel:
        opened = data_pb2_grpc.DataStub(channel).Open(
            data_pb2.OpenRequest(hello=data_pb2.Hello(protocol_version=1)), timeout=5
        )
    partitions = len(opened.routes.primaries)
    core = _core.Client(opened.stream, partitions)
    core.set_routes(opened.routes.revision, [0] * partitions)
    return core


def test_a_client_that_takes_no_replies_is_not_read_any_more(node: LocalCluster) -> None:
    """It asks for two gigabytes; what waits for it stays bounded, and nobody else waits."""
    address = node.addresses[0]
    pid = node.status().self.pid
    core = core_client(address)
    values = core.map("bytes")
    link = _core.FrameLink(address, b"")
    before = resident_bytes(pid)
    with connected(node) as greedy:
        greedy.settimeout(0.5)
        asked = 0
        with contextlib.suppress(TimeoutError):
            while asked < 4000:
                for _ in range(40):
                    core.get(values, b"large", object(), 60_000)
                    asked += 1
                    for _slot, request in core.take_frames(asked):
                        link.send(request)
                greedy.sendall(link.output())
        with spacegrid.connect_sync(address, timeout=5.0) as grid:
            other = grid.map("bytes", key=str, value=bytes)
            for number in range(50):
                other.put(f"other-{number}", b"v")
        assert resident_bytes(pid) - before < 200 << 20


def test_small_frames_that_ask_for_gigabytes_are_answered_bit_by_bit(node: LocalCluster) -> None:
    """A frame of 25 KB asks for half a gigabyte, five times on each of four connections."""
    address = node.addresses[0]
    pid = node.status().self.pid
    core = core_client(address)
    values = core.map("bytes")
    for _ in range(1000):
        core.get(values, b"large", object(), 60_000)
    asked = [request for _slot, request in core.take_frames(0)]
    before = resident_bytes(pid)
    with contextlib.ExitStack() as open_sockets:
        for _ in range(4):
            link = _core.FrameLink(address, b"")
            for request in asked * 5:
                link.send(request)
            open_sockets.enter_context(connected(node)).sendall(link.output())
        with spacegrid.connect_sync(address, timeout=5.0) as grid:
            other = grid.map("bytes", key=str, value=bytes)
            for number in range(50):
                other.put(f"other-{number}", b"v")
        assert resident_bytes(pid) - before < 200 << 20


def test_a_client_gets_more_large_values_than_a_node_answers_at_once(node: LocalCluster) -> None:
    with spacegrid.connect_sync(node.addresses[0], timeout=20.0) as grid:
        values = grid.map("bytes", key=str, value=bytes)
        names = [f"large-{number}" for number in range(80)]
        values.put_many({name: name.encode().ljust(500_000, b".") for name in names})
        got = values.get_many(names)
        assert all(got[name].rstrip(b".") == name.encode() for name in names)
        values.delete_many(names)


def test_calls_that_are_never_finished_keep_nobody_out(node: LocalCluster) -> None:
    """One connection begins as many calls as it may; their requests never come."""
    fields = {":method": "POST", ":scheme": "http", ":path": "/spacegrid.v1.Data/Get"}
    fields |= {":authority": "x", "content-type": "application/grpc", "te": "trailers"}
    # Literal fields without a table: each a zero, then two texts with their lengths.
    texts = [text.encode() for field in fields.items() for text in field]
    packed = [bytes([len(text)]) + text for text in texts]
    head = b"".join(b"\0" + packed[at] + packed[at + 1] for at in range(0, len(packed), 2))
    begun = b"".join(
        len(head).to_bytes(3, "big") + b"\1\4" + number.to_bytes(4, "big") + head
        for number in range(1, 2048, 2)
    )
    with connected(node) as stranger:
        stranger.sendall(PREFACE + SETTINGS + begun)
        # Half of what the node takes, for one connection; the rest is refused, one head each.
        with stranger.makefile("rb") as frames:
            refused = 0
            while refused < 512:
                size, kind = struct.unpack(">xHBxxxxx", frames.read(9))
                frames.read(size)
                refused += kind == 1
        with spacegrid.connect_sync(node.addresses[0], timeout=5.0) as grid:
            grid.map("bytes", key=str, value=bytes).put("beside", b"v")


def test_a_silent_connection_is_closed(node: LocalCluster) -> None:
    with connected(node) as silent:
        began = time.monotonic()
        read_to_end(silent)
        assert time.monotonic() - began < 9


def test_a_cut_message_is_an_error(node: LocalCluster) -> None:
    """The last message's prefix promises more than comes; written by hand, as no library would."""
    link = _core.FrameLink(node.addresses[0], b"")
    head = link.output()
    # The call's head ends before its first data frame: stream 1, kind 0.
    at = head.index(HELLO) - 5 - 9
    cut = b"\0" + struct.pack(">I", 100) + b"abc"
    data = len(cut).to_bytes(3, "big") + b"\0\1" + (1).to_bytes(4, "big") + cut
    with connected(node) as stranger:
        stranger.sendall(head[: at + 9 + 5 + len(HELLO)] + data)
        stranger.settimeout(5)
        frames = b""
        while b"grpc-status" not in frames and link.down is None:
            received = stranger.recv(65536)
            assert received
            link.receive(received)
            frames += received
    assert "the last message is cut" in (link.down or "")


def threads_of(pid: int) -> list[str]:
    names = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it may have ended since it was listed
            names.append((thread / "comm").read_text().strip())
    return sorted(names)


def test_a_client_leaves_no_socket_behind(node: LocalCluster) -> None:
    pid = node.status().self.pid
    assert "spacegrid-net" in threads_of(pid)

    def open_files() -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))

    with spacegrid.connect_sync(node.addresses[0]) as grid:
        grid.map("bytes", key=str, value=bytes).get("large")
    before, until = open_files(), time.monotonic() + 10
    for _ in range(20):
        with contextlib.suppress(OSError), connected(node) as stranger:
            stranger.sendall(PREFACE + SETTINGS)
            stranger.recv(100)
    while open_files() > before:
        assert time.monotonic() < until, (open_files(), before)
        time.sleep(0.02)


HOLDER = """
import time

from spacegrid import Unit, handler


class Holder(Unit):
    @handler(route_by="key")
    def hold(self, key: str) -> float:
        began = time.monotonic()
        # Calls of C that give the interpreter to nobody, each well below a lease: whoever holds it
        # for longer than that sends no heartbeat, and hands over.
        for _ in range(100):
            sum(range(300_000))
        return time.monotonic() - began
"""


async def test_replication_goes_on_while_python_is_held(
    start_cluster: Callable[..., LocalCluster], tmp_path: Path
) -> None:
    (tmp_path / "holder.py").write_text(HOLDER)
    sys.path.insert(0, str(tmp_path))
    try:
        from holder import Holder  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    cluster = start_cluster(
        nodes=2, units=["holder:Holder"], lmdb=False, environment={"PYTHONPATH": str(tmp_path)}
    )
    async with await spacegrid.connect(*cluster.addresses, timeout=50.0) as grid:
        entries = grid.map("bytes", key=str, value=bytes)
        await asyncio.gather(*(entries.put(f"k{n}", b"before") for n in range(64)))
        holding = asyncio.gather(*(grid.call(Holder.hold, f"h{n}") for n in range(5)))
        waits = []
        while not holding.done():
            began = time.monotonic()
            await entries.put(f"k{len(waits) % 64}", b"after")
            waits.append(time.monotonic() - began)
        held = max(await holding)
    assert len(waits) > 50, "writes on two copies went on meanwhile"
    assert max(waits) < held / 2, (max(waits), held)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_an_asyncio_client_leaves_no_thread_and_no_socket_behind(
    node: LocalCluster, loop: str
) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def main() -> None:
        async with spacegrid.connect(node.addresses[0]) as first:
            await first.map("bytes", key=str, value=bytes).get("large")
            threads, files = set(threading.enumerate()), descriptors()
            async with spacegrid.connect(node.addresses[0]) as grid:
                values = grid.map("bytes", key=str, value=bytes)
                sizes = await asyncio.gather(*(values.get("large") for _ in range(50)))
                assert {len(value or b"") for value in sizes} == {500_000}
                # One of before may have ended; none has begun.
                assert set(threading.enumerate()) <= threads
            until = time.monotonic() + 5
            while descriptors() > files:
                assert time.monotonic() < until, (descriptors(), files)
                await asyncio.sleep(0.01)

    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
