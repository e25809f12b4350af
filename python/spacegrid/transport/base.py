"""What a client asks of whatever carries its frames, and of a node in its own process.

Two stacks with one meaning: `ClientTransport` for asyncio (links with many frames in flight) and
`BlockingTransport` (one frame, one answer). gRPC and the in-process transport implement both; a
test's fake needs no more than these methods.

Invariants:
    - `send()` never waits and keeps the order of frames.
    - `on_down` comes exactly once per link, and nothing comes after it; a link that is closed by
      its owner stays silent.

Who calls: client. Who implements: `client_grpc`, `local`, tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from spacegrid._core import Node
    from spacegrid.errors import SpaceGridError

__all__ = [
    "LOOK_S",
    "BlockingTransport",
    "ClientLink",
    "ClientTransport",
    "ExchangeFailed",
    "LocalNode",
    "OnDown",
    "OnFrame",
    "Opened",
    "RouteNode",
    "Routes",
]

LOOK_S: Final = 0.1
"""How often a thread that waits for answers looks up."""
OnFrame: TypeAlias = Callable[[bytes], None]
"""Takes one reply frame, on the loop's own thread."""
OnDown: TypeAlias = Callable[[str, bool], None]
"""Takes the reason, and whether any frame may have left this process."""


@dataclass(frozen=True, slots=True)
class RouteNode:
    """A node as clients reach it.

    Attributes:
        name: Node name.
        address: host:port of its client port.
        incarnation: One boot of the node.
    """

    name: str
    address: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Routes:
    """Which node is the primary of which partition.

    Attributes:
        revision: Revision of the ownership table it was read from.
        nodes: The nodes named by `primaries`.
        primaries: One entry a partition: index into `nodes` plus one, 0 for nobody.
        backups: One entry a partition: likewise, of the other complete copies; none when empty.
    """

    revision: int
    nodes: tuple[RouteNode, ...]
    primaries: Sequence[int]
    backups: Sequence[Sequence[int]] = ()


@dataclass(frozen=True, slots=True)
class Opened:
    """A request stream of the caller's own.

    Attributes:
        cluster_id: 16 bytes.
        stream: Requests are numbered in it; never given twice.
        routes: Where the partitions are.
    """

    cluster_id: bytes
    stream: int
    routes: Routes


@dataclass(frozen=True, slots=True)
class ExchangeFailed:
    """A frame without an answer.

    Attributes:
        reason: For messages.
        sent: Whether the frame may have left this process.
        error: Set when asking again can't help.
    """

    reason: str
    sent: bool
    error: SpaceGridError | None = None


class ClientLink(Protocol):
    """One connection to one node."""

    def send(self, frame: bytes) -> None:
        """Queue a request frame; after the link is down it is dropped."""

    def close(self) -> None:
        """Drop the connection; no callback comes any more."""


class ClientTransport(Protocol):
    """How an asyncio client reaches nodes. Used on one loop."""

    async def open(self, address: str, cluster_id: bytes, timeout_s: float) -> Opened:
        """Ask a node for a request stream and the routes.

        Args:
            address: host:port.
            cluster_id: The cluster expected; empty for any.
            timeout_s: Seconds to wait at most.

        Raises:
            ConnectionFailed: It does not answer.
            ProtocolError: It is of another cluster or version.
        """

    async def routes(self, address: str, timeout_s: float) -> Routes:
        """Ask a node for the routes it knows. Raises as `open`."""

    def link(
        self, address: str, cluster_id: bytes, on_frame: OnFrame, on_down: OnDown
    ) -> ClientLink:
        """Begin to connect to a node; frames may be sent at once and wait."""

    async def close(self) -> None:
        """Let go of everything; links that are still open are dropped without a callback."""


class BlockingTransport(Protocol):
    """How a blocking client reaches nodes. Methods may be called from several threads at once."""

    def open(self, address: str, cluster_id: bytes, timeout_s: float) -> Opened:
        """As `ClientTransport.open`, waiting."""

    def routes(self, address: str, timeout_s: float) -> Routes:
        """As `ClientTransport.routes`, waiting."""

    def exchange(
        self,
        frames: Sequence[tuple[str, bytes]],
        timeout_s: float,
        go_on: Callable[[str], bool],
    ) -> list[list[bytes] | ExchangeFailed]:
        """Send frames, each to its address, together, and wait for all answers.

        Args:
            frames: Address and frame of each.
            timeout_s: How long to wait.
            go_on: Asked every `LOOK_S` with an address whose answers are not all here: whether to
                go on waiting for it.

        Returns:
            Per frame the reply frames with all its answers, or why there are none.
        """

    def close(self) -> None:
        """Let go of everything."""


class LocalNode(Protocol):
    """A node in this process, with no socket: what an embedded grid runs on.

    Its partitions are all its own. `start` belongs to the loop that the grid is used on, and
    `start_inline` to a grid without one; one of them is called, once.
    """

    @property
    def cluster_id(self) -> bytes:
        """16 bytes."""

    @property
    def core(self) -> Node:
        """The core node: co-located reads go to it directly."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve on this loop; called on it."""

    def start_inline(self) -> None:
        """Serve in whichever thread hands in a frame."""

    def open_stream(self) -> int:
        """Return a new request stream."""

    def routes(self) -> Routes:
        """Return the routes; the only node's address is `address`."""

    def open_connection(self, deliver: OnFrame) -> int:
        """Number a new connection whose reply frames go to `deliver`."""

    def client_frame(self, connection: int, frame: bytes) -> int:
        """Carry out one request frame; return its number of operations. Raises FrameError."""

    def close_connection(self, connection: int) -> None:
        """Forget a connection; what it asked for is still carried out."""

    def stop(self) -> None:
        """Finish what runs, flush to disk and sinks, and stop; waits.

        Called after `close_connection`; on a loop it is called in a worker thread while the loop
        runs on.
        """
