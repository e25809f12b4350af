"""What primaries ask of a controller that hangs is asked of the one that follows it, at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc.aio
import pytest
from spacegrid.coordinator import ControllerChanged
from spacegrid.machine.events import ChangeKind
from spacegrid.machine.table import Registration, new_table
from spacegrid.node.controller_runner import FORWARD_TIMEOUT_S, ControllerRunner
from spacegrid.node.view import ClusterView
from spacegrid.security.client import PLAIN
from spacegrid.v1 import peers_pb2, peers_pb2_grpc

CHANGE = (0, 3, 9, int(ChangeKind.TAIL), 3, 0, 0)


class Node(peers_pb2_grpc.PeersServicer):
    """Counts what it is asked for; one that hangs answers nothing."""

    def __init__(self, *, hangs: bool) -> None:
        self.hangs = hangs
        self.asked = asyncio.Event()

    async def RequestChanges(self, request: Any, context: Any) -> Any:
        self.asked.set()
        if self.hangs:
            await asyncio.Event().wait()
        return peers_pb2.ChangesReply()


@pytest.fixture
async def nodes() -> AsyncIterator[dict[int, tuple[Node, str]]]:
    found, servers = {}, []
    for incarnation in (2, 3):
        node, server = Node(hangs=incarnation == 2), grpc.aio.server()
        peers_pb2_grpc.add_PeersServicer_to_server(node, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        found[incarnation] = node, f"127.0.0.1:{port}"
    yield found
    for server in servers:
        await server.stop(None)


async def test_what_a_controller_that_hangs_was_asked_is_asked_of_its_follower(
    nodes: dict[int, tuple[Node, str]],
) -> None:
    table = new_table(bytes(16), partition_count=1, copies=2, min_in_sync=2, nodes_expected=3)
    view = ClusterView(table)
    others = tuple(
        Registration(name=f"node-{incarnation}", incarnation=incarnation, address=address)
        for incarnation, (_, address) in nodes.items()
    )
    view.set_registrations((Registration(name="node-1", incarnation=1), *others))

    def fatal(error: BaseException) -> None:
        raise error

    coordinator: Any = None
    security: Any = SimpleNamespace(client=PLAIN)
    runner = ControllerRunner(coordinator, "node-1", 1, view, fatal, security)
    try:
        for term, incarnation in enumerate(nodes, start=1):
            view.controller = ControllerChanged(incarnation, term)
            runner.controller_changed(view.controller)
            runner.request_changes([CHANGE])
            async with asyncio.timeout(FORWARD_TIMEOUT_S / 2):
                await nodes[incarnation][0].asked.wait()
    finally:
        await runner.close()
