"""Fault proxies: every directed link between nodes, and to the coordinator, passes through here.

For each ordered pair (x, y) a listener on loopback stands for y as x sees it: node x is started
with `--via y=ADDRESS`, and dials that. A connection that x made carries bytes in both directions,
so the direction x to y is two things: what x sends on connections that it made, and what it answers
on those that y made. Both wait at one gate a direction. A closed gate loses nothing and resets
nothing: as with a cable pulled out, bytes and the ends of connections wait and arrive late, or the
other side gives up first.

Runs on a thread and loop of its own; every method may be called from any thread. Who calls:
`testing.cluster`, `testing.chaos`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from itertools import permutations
from typing import Any, Final, Self, TypeVar

COORDINATOR: Final = "coordinator"
PIECE_BYTES: Final = 256 << 10
_TICKS_TO_END: Final = 5

T = TypeVar("T")


class FaultLinks:
    """The directed links of one cluster, each with a gate.

    Args:
        names: Every node that there will ever be.
        authorities: What the coordinator is made of: one process, or the members of etcd.
        coordinator: What a node is told about the coordinator, from the addresses of these.
    """

    def __init__(
        self,
        names: Iterable[str],
        authorities: Sequence[str] = (COORDINATOR,),
        coordinator: Callable[[Sequence[str]], str] = lambda found: f"local://{found[0]}",
    ) -> None:
        self.names = tuple(names)
        self.authorities = tuple(authorities)
        self._coordinator = coordinator
        self._targets: dict[str, str] = {}
        self._addresses: dict[tuple[str, str], str] = {}
        self._gates: dict[tuple[str, str], asyncio.Event] = {}
        self._passed: dict[tuple[str, str], int] = {}
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="spacegrid-links", daemon=True)
        self._thread.start()
        self._do(self._listen())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- how processes are told

    def address(self, source: str, target: str) -> str:
        """host:port under which `source` reaches `target`."""
        return self._addresses[source, target]

    def arguments_of(self, name: str) -> list[str]:
        """What a node's command line needs so that it reaches everyone through here."""
        authorities = [self.address(name, authority) for authority in self.authorities]
        arguments = ["--coordinator", self._coordinator(authorities)]
        for other in self.names:
            if other != name:
                arguments += ["--via", f"{other}={self.address(name, other)}"]
        return arguments

    def set_target(self, name: str, address: str) -> None:
        """Say where a node, or the coordinator, really listens; refused until then."""
        self._targets[name] = address

    # ---- faults

    def cut(self, source: str, target: str) -> None:
        """Let nothing pass in this direction."""
        self._call(self._gates[source, target].clear)

    def heal(self, source: str, target: str) -> None:
        """Let pass again, beginning with what waited."""
        self._call(self._gates[source, target].set)

    def isolate(self, name: str, others: Iterable[str]) -> None:
        """Cut both directions between a node and others."""
        for other in others:
            self.cut(name, other)
            self.cut(other, name)

    def heal_all(self) -> None:
        """Let everything pass again."""
        for source, target in self.cuts():
            self.heal(source, target)

    def cuts(self) -> list[tuple[str, str]]:
        """The directions that are cut."""
        return [link for link, gate in self._gates.items() if not gate.is_set()]

    def node_bytes(self) -> int:
        """Bytes that have passed between nodes, in all directions."""
        return sum(count for link, count in self._passed.items() if set(link) <= set(self.names))

    def close(self) -> None:
        """End every connection and the thread."""
        if self._loop.is_closed():
            return
        self._do(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # ---- inside, on the own loop

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _call(self, action: Callable[[], object]) -> None:
        async def act() -> None:
            action()

        self._do(act())

    async def _listen(self) -> None:
        pairs = [
            (source, target)
            for source, target in permutations((*self.names, *self.authorities), 2)
            if source in self.names or target in self.names
        ]
        for pair in pairs:
            self._gates[pair] = asyncio.Event()
            self._gates[pair].set()
        for source, target in pairs:
            if source in self.names:
                await self._listen_for(source, target)

    async def _listen_for(self, source: str, target: str) -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            if self._closing:
                writer.transport.abort()
                return
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._carry(source, target, reader, writer)

        server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=PIECE_BYTES)
        host, port = server.sockets[0].getsockname()[:2]
        self._addresses[source, target] = f"{host}:{port}"
        self._servers.append(server)

    async def _carry(
        self,
        source: str,
        target: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """One connection, from its first packet to its end."""
        there, back = self._gates[source, target], self._gates[target, source]
        writers = [writer]
        try:
            # No connection comes about while either direction is cut.
            await there.wait()
            await back.wait()
            address = self._targets.get(target)
            if address is None:
                return
            host, _, port = address.rpartition(":")
            far_reader, far_writer = await asyncio.open_connection(
                host, int(port), limit=PIECE_BYTES
            )
            writers.append(far_writer)
            await _first_end(
                (
                    self._pump(reader, far_writer, (source, target)),
                    self._pump(far_reader, writer, (target, source)),
                ),
            )
        finally:
            for each in writers:
                # A side that takes nothing would keep a polite end waiting for ever.
                if self._closing:
                    each.transport.abort()
                else:
                    each.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: tuple[str, str]
    ) -> None:
        gate = self._gates[link]
        with contextlib.suppress(OSError):
            while True:
                piece = await reader.read(PIECE_BYTES)
                # What was read when the gate closed waits here, and so does the stream's end.
                await gate.wait()
                if not piece:
                    return
                self._passed[link] = self._passed.get(link, 0) + len(piece)
                writer.write(piece)
                await writer.drain()

    async def _shut(self) -> None:
        self._closing = True
        for server in self._servers:
            server.close()
        # What was accepted a moment ago has no task in the list yet, and an end takes a loop tick.
        for _ in range(_TICKS_TO_END):
            await asyncio.sleep(0)
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


async def _first_end(pumps: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run until one side has ended; then the connection has."""
    tasks = [asyncio.ensure_future(pump) for pump in pumps]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
