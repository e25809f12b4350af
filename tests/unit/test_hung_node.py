"""A node that hangs keeps its sockets open and says nothing: clients learn from others who owns."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
from core_cluster import PARTITIONS, BlockingWire, CoreNode, Wire
from spacegrid import _core
from spacegrid.client.asynchronous import AsyncGrid
from spacegrid.client.blocking import Grid
from spacegrid.errors import ConnectionFailed
from spacegrid.security.client import PLAIN
from spacegrid.transport.base import ExchangeFailed, Opened, RouteNode, Routes
from spacegrid.transport.client_grpc import GrpcBlockingTransport
from spacegrid.transport.sockets import LinkBroken

HANGS, TAKES_OVER = "one:1", "two:1"
HUNG_S = 1.0
"""How long a question hangs before it is given up."""


def routes(revision: int, primary: int) -> Routes:
    nodes = (RouteNode("one", HANGS, 1), RouteNode("two", TAKES_OVER, 2))
    return Routes(revision, nodes, [primary] * PARTITIONS)


class News:
    """What the second node says of routes: when it was asked a few times it owns everything."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def hear(self, address: str) -> Routes:
        self.asked.append(address)
        return routes(2, 2) if self.asked.count(TAKES_OVER) > 2 else routes(1, 1)


class HungBlockingWire(BlockingWire):
    def __init__(self) -> None:
        super().__init__(CoreNode(1, HANGS), CoreNode(2, TAKES_OVER))
        for node in self.nodes.values():
            node.start_inline()
        self.news = News()

    def open(self, address: str, cluster_id: bytes, timeout_s: float) -> Opened:
        opened = super().open(address, cluster_id, timeout_s)
        return dataclasses.replace(opened, routes=routes(1, 1))

    def routes(self, address: str, timeout_s: float) -> Routes:
        found = self.news.hear(address)
        if address == HANGS:
            time.sleep(HUNG_S)
            raise ConnectionFailed("no answer in time", addresses=(address,))
        return found

    def exchange(
        self,
        frames: Sequence[tuple[str, bytes]],
        timeout_s: float,
        go_on: Callable[[str], bool],
    ) -> list[list[bytes] | ExchangeFailed]:
        if all(address != HANGS for address, _ in frames):
            return super().exchange(frames, timeout_s, go_on)
        until = time.monotonic() + timeout_s
        while time.monotonic() < until and go_on(HANGS):
            time.sleep(0.01)
        return [ExchangeFailed("no answer in time", True) for _ in frames]


def test_a_blocking_client_asks_others_while_it_waits() -> None:
    wire = HungBlockingWire()
    with Grid(wire, (HANGS, TAKES_OVER), timeout=10.0) as grid:
        began = time.monotonic()
        grid.map("stock", key=str, value=bytes).put("k", b"v")
        took_s = time.monotonic() - began
    assert took_s < 0.8, "it was found out before the attempt was over"
    assert HANGS not in wire.news.asked, "who is silent is not asked while others answer"


class HungWire(Wire):
    def __init__(self) -> None:
        super().__init__(CoreNode(1, HANGS), CoreNode(2, TAKES_OVER))
        self.news = News()
        self.table = routes(1, 1)

    async def routes(self, address: str, timeout_s: float) -> Routes:
        found = self.news.hear(address)
        if address == HANGS:
            await asyncio.sleep(HUNG_S)
            raise ConnectionFailed("no answer in time", addresses=(address,))
        return found

    def link(self, address, cluster_id, on_frame, on_down):  # type: ignore[no-untyped-def]
        def told(frame: bytes) -> None:
            if address != HANGS:
                on_frame(frame)

        return super().link(address, cluster_id, told, on_down)


async def test_an_asyncio_client_does_not_wait_for_the_word_of_the_one_that_hangs() -> None:
    wire = HungWire()
    async with AsyncGrid(wire, (HANGS, TAKES_OVER), timeout=10.0) as grid:
        began = time.monotonic()
        await grid.map("stock", key=str, value=bytes).put("k", b"v")
        took_s = time.monotonic() - began
    assert wire.news.asked.count(TAKES_OVER) > 2
    assert took_s < 1.3, "every question to it hangs for a second"


def test_a_frame_is_waited_for_only_as_long_as_its_sender_wants() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    client = _core.Client(1, 4)
    client.set_routes(1, [0] * 4)
    client.get(client.map("m"), b"k", object(), 1000)
    [(_slot, frame)] = client.take_frames(0)
    looks: list[str] = []

    def go_on(silent: str) -> bool:
        looks.append(silent)
        return len(looks) < 3

    transport = GrpcBlockingTransport(PLAIN)
    began = time.monotonic()
    [failed] = transport.exchange([(address, frame)], 30.0, go_on)
    assert time.monotonic() - began < 5.0
    assert looks == [address] * 3
    assert isinstance(failed, ExchangeFailed)
    assert failed.sent, "nobody knows whether it was read"
    transport.close()
    listener.close()


def test_an_answer_that_came_while_another_node_was_waited_for_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Link:
        def __init__(self, address: str) -> None:
            self.address = address

        def send(self, frame: bytes, timeout_s: float) -> None:
            pass

        def answers(self, look_s: float, timeout_s: float) -> list[bytes]:
            if self.address == TAKES_OVER and timeout_s > 0:
                return [b"reply"]
            time.sleep(max(0.0, timeout_s))
            raise LinkBroken("no answer in time", sent=True, waits=True)

    links = SimpleNamespace(
        take=lambda address, _: Link(address),
        give_back=lambda *_: None,
        drop=lambda _: None,
        close=lambda: None,
    )
    transport = GrpcBlockingTransport(PLAIN)
    monkeypatch.setattr(transport, "_links", links)
    frames = [(HANGS, b""), (TAKES_OVER, b"")]
    failed, replies = transport.exchange(frames, 0.05, lambda _: True)
    assert isinstance(failed, ExchangeFailed)
    assert replies == [b"reply"]
    transport.close()
