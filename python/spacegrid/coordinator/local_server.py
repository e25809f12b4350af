"""The coordinator of one machine: a small process with a durable file.

``python -m spacegrid.coordinator.local_server --file F --listen 127.0.0.1:0`` prints one line of
JSON when it is ready (``{"event": "ready", "address": ..., "cluster_id": ..., "pid": ...}``) and
stops cleanly on SIGTERM or SIGINT.

The end of a node's *process* ends its registration, at once (pidfd). A stream that breaks while the
process lives is no death: the node comes back with the same incarnation. After a restart of the
coordinator the processes it had are looked for by pid and start time.

Who calls: ``spacegrid up``, tests. Talks to: local.py.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import msgspec

from spacegrid import limits
from spacegrid.coordinator import (
    ControllerChanged,
    CoordinatorEvent,
    RegistrationsChanged,
    TableChanged,
)
from spacegrid.coordinator.authority import Authority, AuthorityState
from spacegrid.coordinator.durable import DurableFile
from spacegrid.coordinator.view import View
from spacegrid.errors import ConfigError, ProtocolError, SpaceGridError
from spacegrid.machine.table import PartitionEntry, Registration, Table, new_table
from spacegrid.v1 import coordinator_pb2 as pb
from spacegrid.v1 import coordinator_pb2_grpc as rpc
from spacegrid.wire import ownership

__all__ = ["CHANNEL_OPTIONS", "PROTOCOL_VERSION", "LocalServer", "main"]

PROTOCOL_VERSION = 1
#: A whole table of 65,535 partitions is about 4 MiB.
MESSAGE_BYTES_MAX = 64 << 20
CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.so_reuseport", 0),
    # A coordinator that comes back is found at once, however long it was away.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]
#: Seconds that streams get to end by themselves when the coordinator stops.
_STOP_GRACE_S = 0.2


class ProcessWatch:
    """Calls back when a process ends. Used from one loop."""

    def __init__(self) -> None:
        self._fds: dict[int, int] = {}

    def watch(self, pid: int, started: int, on_end: Callable[[], None]) -> int:
        """Watch a process.

        Args:
            pid: The process.
            started: Its start time as this method returned it before; 0: whichever has the pid.
            on_end: Called once, from the loop.

        Returns:
            Its start time, in clock ticks since the machine started.

        Raises:
            ProcessLookupError: There is no such process any more.
        """
        fd = os.pidfd_open(pid)
        try:
            found = process_start(pid)
        except OSError:
            os.close(fd)
            raise ProcessLookupError(f"process {pid} has ended") from None
        if started not in (0, found):
            os.close(fd)
            raise ProcessLookupError(f"process {pid} is another one now")
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(fd)
            os.close(fd)
            del self._fds[fd]
            on_end()

        self._fds[fd] = pid
        loop.add_reader(fd, ended)
        return found

    def close(self) -> None:
        """Watch nothing any more."""
        loop = asyncio.get_running_loop()
        for fd in self._fds:
            loop.remove_reader(fd)
            os.close(fd)
        self._fds.clear()


class LocalServer(rpc.CoordinatorServicer):
    """The service over an `Authority`; used from one loop."""

    def __init__(self, authority: Authority) -> None:
        """Serve an authority; `start` begins."""
        self.authority = authority
        self._watch = ProcessWatch()
        self._server: grpc.aio.Server | None = None
        self._converted: dict[int, tuple[PartitionEntry, pb.PartitionEntry]] = {}

    async def start(self, listen: str) -> str:
        """Watch the processes that are registered, then serve.

        Args:
            listen: host:port on loopback; port 0 takes a free one.

        Returns:
            The address it listens at.

        Raises:
            ConfigError: The address is not a loopback one, or it is in use.
        """
        host, _, _port = listen.rpartition(":")
        if host not in ("127.0.0.1", "localhost", "[::1]"):
            raise ConfigError(
                f"listen address {listen!r} is not on loopback\n"
                "hint: the local coordinator serves one machine; use 127.0.0.1:PORT"
            )
        self._find_processes()
        self._server = grpc.aio.server(options=CHANNEL_OPTIONS)
        rpc.add_CoordinatorServicer_to_server(self, self._server)
        try:
            port = self._server.add_insecure_port(listen)
        except RuntimeError as error:
            raise ConfigError(f"can't listen at {listen}: {error}") from None
        await self._server.start()
        return f"{host}:{port}"

    async def stop(self) -> None:
        """Serve nothing more; registrations stay as they are."""
        if self._server is not None:
            await self._server.stop(_STOP_GRACE_S)
        self._watch.close()

    async def Join(
        self,
        request_iterator: AsyncIterator[pb.JoinRequest],
        context: grpc.aio.ServicerContext[pb.JoinRequest, pb.JoinEvent],
    ) -> AsyncIterator[pb.JoinEvent]:
        """Register the caller, then tell it what changes until it leaves or its process ends."""
        first = await anext(aiter(request_iterator), None)
        if first is None:
            return
        registration = await self._accept(first, context)
        view = View()
        view.registration = registration
        self.authority.watch(view)
        reader = asyncio.create_task(self._read(request_iterator, view))
        try:
            yield pb.JoinEvent(accepted=ownership.registration_to_pb(registration))
            async for event in view.events():
                for message in self._messages(event):
                    yield message
        finally:
            self.authority.unwatch(view)
            reader.cancel()

    async def Campaign(
        self,
        request: pb.CampaignRequest,
        context: grpc.aio.ServicerContext[pb.CampaignRequest, pb.Controller],
    ) -> pb.Controller:
        """Give the next term to the caller, if it knows the last one."""
        try:
            controller = self.authority.campaign(request.incarnation, request.known_term)
        except ProtocolError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        _log("controller", incarnation=controller.incarnation, term=controller.term)
        return pb.Controller(incarnation=controller.incarnation, term=controller.term)

    async def Confirm(
        self,
        request: pb.ConfirmRequest,
        context: grpc.aio.ServicerContext[pb.ConfirmRequest, pb.Controller],
    ) -> pb.Controller:
        """Who holds the term: this process alone gives it."""
        controller = self.authority.controller
        return pb.Controller(incarnation=controller.incarnation, term=controller.term)

    async def Write(
        self,
        request: pb.WriteRequest,
        context: grpc.aio.ServicerContext[pb.WriteRequest, pb.WriteReply],
    ) -> pb.WriteReply:
        """Write entries under the current term at the known revision."""
        try:
            entries = [ownership.entry_from_pb(entry) for entry in request.entries]
            result = self.authority.write(request.term, request.expected_revision, entries)
        except ProtocolError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return pb.WriteReply(accepted=result.accepted, revision=result.revision)

    async def StopCluster(
        self,
        request: pb.StopClusterRequest,
        context: grpc.aio.ServicerContext[pb.StopClusterRequest, pb.StopClusterReply],
    ) -> pb.StopClusterReply:
        """Mark the cluster as stopping."""
        self.authority.stop_cluster()
        return pb.StopClusterReply()

    async def _accept(
        self,
        request: pb.JoinRequest,
        context: grpc.aio.ServicerContext[pb.JoinRequest, pb.JoinEvent],
    ) -> Registration:
        try:
            self._check_hello(request)
            registration = ownership.registration_from_pb(request.registration)
            if registration.incarnation:
                return self.authority.register(registration)
            return self._register_new(registration)
        except ProtocolError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))

    def _check_hello(self, request: pb.JoinRequest) -> None:
        if request.protocol_version != PROTOCOL_VERSION:
            raise ProtocolError(
                f"protocol version {request.protocol_version} is not {PROTOCOL_VERSION}"
            )
        life = self.authority.state.table.life
        if request.cluster_id not in (b"", life):
            raise ProtocolError(
                f"cluster {request.cluster_id.hex()} was expected, this one is {life.hex()}"
            )

    def _register_new(self, registration: Registration) -> Registration:
        """Watch first, so that a process that ends at once is not registered for ever."""
        incarnation = 0

        def ended() -> None:
            if incarnation:
                self._process_ended(incarnation)

        try:
            started = self._watch.watch(registration.pid, 0, ended)
        except (OSError, OverflowError) as error:
            raise ProtocolError(f"process {registration.pid} can't be watched: {error}") from None
        registration = self.authority.register(registration, started)
        incarnation = registration.incarnation
        _log("registered", node=registration.name, incarnation=incarnation, pid=registration.pid)
        return registration

    async def _read(self, requests: AsyncIterator[pb.JoinRequest], view: View) -> None:
        """Take newer words of a registered node; its goodbye ends the registration."""
        async for request in requests:
            try:
                registration = ownership.registration_from_pb(request.registration)
                if registration.incarnation != view.registration.incarnation:
                    raise ProtocolError(
                        f"incarnation {registration.incarnation} on the stream of "
                        f"{view.registration.incarnation}"
                    )
                view.registration = self.authority.register(registration)
            except ProtocolError as error:
                view.push_ended(str(error))
                return
            if request.leave:
                _log("left", node=registration.name, incarnation=registration.incarnation)
                self.authority.end(registration.incarnation, crashed=not registration.stopped)
                view.close()
                return

    def _find_processes(self) -> None:
        """Watch the processes that were registered before a restart; end those that are gone.

        How they ended is unknown, so what they had not said to be complete on disk is not.
        """
        state = self.authority.state
        for registration in state.registrations:
            incarnation = registration.incarnation
            started = state.process_starts.get(incarnation, 0)
            try:
                ended = functools.partial(self._process_ended, incarnation)
                self._watch.watch(registration.pid, started, ended)
            except OSError:
                self.authority.end(incarnation, crashed=not registration.stopped)

    def _process_ended(self, incarnation: int) -> None:
        registration = self.authority.registered(incarnation)
        if registration is None:
            return
        _log("ended", node=registration.name, incarnation=incarnation, clean=registration.stopped)
        self.authority.end(incarnation, crashed=not registration.stopped)

    def _messages(self, event: CoordinatorEvent) -> list[pb.JoinEvent]:
        match event:
            case TableChanged(table, None):
                return [pb.JoinEvent(table=self._table(table))]
            case TableChanged(table, changed) if changed is not None:
                change = pb.TableChange(
                    revision=table.revision,
                    entries=[self._entry(table.entries[partition]) for partition in changed],
                    stores=ownership.stores_to_pb(table.stores),
                    stopped=table.stopped,
                )
                return [pb.JoinEvent(change=change)]
            case RegistrationsChanged(registrations, stopping):
                alive = [ownership.registration_to_pb(item) for item in registrations]
                message = pb.Registrations(alive=alive, stopping=stopping)
                return [pb.JoinEvent(registrations=message)]
            case ControllerChanged(incarnation, term):
                controller = pb.Controller(incarnation=incarnation, term=term)
                return [pb.JoinEvent(controller=controller)]
            case _:
                return []

    def _table(self, table: Table) -> pb.Table:
        bare = msgspec.structs.replace(table, entries=())
        message = ownership.table_to_pb(bare)
        message.entries.extend(self._entry(entry) for entry in table.entries)
        return message

    def _entry(self, entry: PartitionEntry) -> pb.PartitionEntry:
        """Converted once for all watchers: a failover tells each of them hundreds of entries."""
        known = self._converted.get(entry.partition)
        if known is None or known[0] is not entry:
            known = (entry, ownership.entry_to_pb(entry))
            self._converted[entry.partition] = known
        return known[1]


def process_start(pid: int) -> int:
    """Start time of a process in clock ticks since boot: with the pid it names the process.

    Raises:
        OSError: There is no such process, or it has ended and its parent has not reaped it yet.
    """
    process = Path(f"/proc/{pid}")
    stat = (process / "stat").read_bytes()
    # The name in parentheses may hold anything, so count from its end: fields 3 and 22 of proc(5).
    fields = stat[stat.rindex(b")") + 2 :].split()
    # The first thread of a process may end before the others, so look for those as well.
    if fields[0] in (b"Z", b"X") and len(list((process / "task").iterdir())) <= 1:
        raise ProcessLookupError(f"process {pid} has ended")
    return int(fields[19])


def open_state(
    file: DurableFile, *, partitions: int, copies: int, min_in_sync: int, nodes: int
) -> AuthorityState:
    """The file's state, or a new space.

    Args:
        file: Where it is kept.
        partitions: Partition count of a new space.
        copies: Complete copies wanted in a new space.
        min_in_sync: Copies that a write needs in a new space.
        nodes: Nodes that a new space waits for before its first placement.

    Raises:
        ConfigError: The file is damaged, or holds a space that was created otherwise.
    """
    state = file.load()
    if state is None:
        table = new_table(
            secrets.token_bytes(16),
            partition_count=partitions,
            copies=copies,
            min_in_sync=min_in_sync,
            nodes_expected=nodes,
        )
        state = AuthorityState(table)
        file.save(state)
        return state
    asked = {"partition_count": partitions, "copies": copies, "min_in_sync": min_in_sync}
    for what, wanted in asked.items():
        if getattr(state.table, what) != wanted:
            raise ConfigError(
                f"{file.path} holds a space with {what} {getattr(state.table, what)}, "
                f"{wanted} was asked for\nhint: it is set when a space is created"
            )
    return state


async def serve(arguments: argparse.Namespace) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    file = DurableFile(Path(arguments.file))
    try:
        state = open_state(
            file,
            partitions=arguments.partitions,
            copies=arguments.copies,
            min_in_sync=arguments.min_in_sync or arguments.copies,
            nodes=arguments.nodes or arguments.copies,
        )
        server = LocalServer(Authority(state, file.save))
        address = await server.start(arguments.listen)
        ready = {
            "event": "ready",
            "address": address,
            "cluster_id": state.table.life.hex(),
            "pid": os.getpid(),
        }
        sys.stdout.write(msgspec.json.encode(ready).decode() + "\n")
        sys.stdout.flush()
        await stop.wait()
        await server.stop()
    finally:
        file.close()


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and serve; the exit code is 2 for a wrong setting."""
    parser = argparse.ArgumentParser(
        prog="spacegrid-coordinator", description="Coordinator of one machine."
    )
    parser.add_argument("--file", required=True, help="where its state is kept")
    parser.add_argument("--listen", default="127.0.0.1:0", help="loopback host:port")
    parser.add_argument(
        "--partitions", type=_number(1, limits.PARTITIONS_MAX), default=1024, help="of a new space"
    )
    parser.add_argument(
        "--copies", type=_number(1, ownership.COPIES_MAX // 2), default=2, help="of a new space"
    )
    parser.add_argument(
        "--min-in-sync", type=_number(0, ownership.COPIES_MAX // 2), default=0, help="0: --copies"
    )
    parser.add_argument(
        "--nodes", type=_number(0, 1000), default=0, help="to wait for before placing; 0: --copies"
    )
    arguments = parser.parse_args(argv)
    if arguments.min_in_sync > arguments.copies:
        parser.error(f"--min-in-sync {arguments.min_in_sync} is over --copies {arguments.copies}")
    try:
        asyncio.run(serve(arguments))
    except SpaceGridError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is outside {low}..{high}")
        return value

    return parse


def _log(event: str, **fields: object) -> None:
    """One line of JSON on stderr: data goes to stdout, logs do not."""
    sys.stderr.write(msgspec.json.encode({"event": event, **fields}).decode() + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
