"""The node's face to the net thread: what it needs of Python, on the grid loop.

The net thread (rust/net) owns the port, the links to other nodes and the core's effects. Frames of
clients and nodes never come here; what does is what only Python can do: turns and settled tickets
for the unit host, wanted changes for the controller, replies to the node's own client, and lines
for the log. Each batch costs one wake-up of the loop. Invariants: an error in here, or a panic over
there, is a bug and goes to `fatal`, never past it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from spacegrid import clock
from spacegrid._core import Net
from spacegrid.node.engine import Deliver, Units
from spacegrid.node.log import get_logger
from spacegrid.node.security import NodeSecurity
from spacegrid.security.access import RIGHTS_ALL

if TYPE_CHECKING:
    from spacegrid._core import ChangeRequest, Effects, Heart, Node

_log = get_logger("net")


Peer = tuple[str, str, int]
"""Another node: its name, address and incarnation."""


class Front:
    """A node's port and what its core wants of Python.

    Attributes:
        port: The port that is bound.
        node: The core node, once joined. Thread-safe; after a call, `wake()`.
        units: The unit host; None: no units.
        changes: Takes requests for changes of the ownership table.
        fatal: Takes an error that must not be: the process ends.
    """

    node: Node

    def __init__(
        self,
        listen: str,
        upstream: Path,
        security: NodeSecurity,
        fatal: Callable[[BaseException], None],
        busy_poll_us: int = 0,
    ) -> None:
        """Bind and serve. Called on the grid loop.

        Args:
            listen: host:port.
            upstream: Unix socket of the server that answers whatever is no frame.
            security: Who is let in, and what the port shows.
            fatal: See above.
            busy_poll_us: Microseconds that the net thread looks for more frames before it sleeps.

        Raises:
            OSError: The address can't be bound.
        """
        self.fatal = fatal
        self.units: Units | None = None
        self.changes: Callable[[list[ChangeRequest]], None] = _no_changes
        self._deliver: dict[int, Deliver] = {}
        self._loop = asyncio.get_running_loop()
        material = security.material
        pem = material.pem if material else None
        self._net = Net(listen, upstream, security.gate, pem, busy_poll_us)
        security.changed = lambda changed: self._net.set_tls(changed.pem)
        self.port = self._net.port
        self._loop.add_reader(self._net.fileno(), self._take)

    # ---- life

    def join(self, node: Node, cluster_id: bytes, name: str, incarnation: int) -> None:
        """Carry out the effects of this node from now on."""
        self.node = node
        self._net.join(node, cluster_id, name, incarnation)

    def serve(self, serving: bool) -> None:
        """Let clients and other nodes in, or no longer."""
        self._net.set_serving(serving)

    def link(self, alive: Iterable[Peer]) -> None:
        """Link to exactly these nodes; this one is left out."""
        self._net.link(list(alive))

    def beat(self, heart: Heart, alive: Iterable[Peer]) -> None:
        """Send heartbeats to exactly these nodes, and give the core the leases they bring."""
        self._net.beat(heart, list(alive))

    async def close(self) -> None:
        """Close port and links; replies that are there still leave."""
        self._loop.remove_reader(self._net.fileno())
        await asyncio.to_thread(self._net.close)

    # ---- the node's own client

    def open_connection(self, deliver: Deliver) -> int:
        """Number a connection inside this process; its replies go to `deliver`, on the loop."""
        number = self._net.open_local()
        self._deliver[number] = deliver
        return number

    def close_connection(self, connection: int) -> None:
        """Forget a connection; what it asked for is still carried out."""
        if self._deliver.pop(connection, None) is not None:
            self.node.close_connection(connection)

    def client_frame(self, connection: int, frame: bytes, rights: int = RIGHTS_ALL) -> int:
        """Carry out one request frame; the number of its operations.

        Args:
            connection: One of this process.
            frame: The bytes.
            rights: What whoever asks may do; everything for the node's own client.

        Raises:
            FrameError: The bytes are no valid frame; nothing was carried out.
        """
        count = self.node.on_client_frame(connection, frame, clock.now_ms(), rights)
        self.wake()
        return count

    # ---- effects

    def wake(self) -> None:
        """Let effects be taken soon; from any thread."""
        self._net.wake()

    def _take(self) -> None:
        try:
            effects, notes, panic = self._net.take()
            for level, text in notes:
                getattr(_log, level)(text)
            if panic is not None:
                raise RuntimeError(f"the net thread ended: {panic}")
            if effects is not None:
                self._hand_on(effects)
        except BaseException as error:
            self.fatal(error)
            raise

    def _hand_on(self, effects: Effects) -> None:
        if effects.turns and self.units is not None:
            self.units.run(effects.turns)
        for connection, frame in effects.client_frames:
            deliver = self._deliver.get(connection)
            if deliver is not None:
                deliver(frame)
        if effects.settled and self.units is not None:
            self.units.settled(effects.settled)
        if effects.changes:
            self.changes(effects.changes)


def _no_changes(_changes: list[ChangeRequest]) -> None:
    """Drop requests for changes: nobody else owns anything."""
