"""A node's access to a space that is kept in etcd; implements `Coordinator`.

What is where: layout.py names the keys, decisions.py makes each change a transaction, image.py is
what the node knows, space.py asks and changes, watcher.py and keeper.py run for as long as the node
is registered. Everything here belongs to the loop that called `join`.

Who calls: node/ and the command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final

from spacegrid import clock
from spacegrid.coordinator import ControllerChanged, CoordinatorEvent, WriteResult, rules
from spacegrid.coordinator.etcd import decisions, layout
from spacegrid.coordinator.etcd.absence import Absences
from spacegrid.coordinator.etcd.client import EtcdClient
from spacegrid.coordinator.etcd.decisions import Done, Try
from spacegrid.coordinator.etcd.image import Image, News
from spacegrid.coordinator.etcd.keeper import Keeper
from spacegrid.coordinator.etcd.layout import Keys, Meta, NodeRecord, Term
from spacegrid.coordinator.etcd.options import EtcdOptions, EtcdTimes, SpaceSettings
from spacegrid.coordinator.etcd.space import LOAD_S, Space
from spacegrid.coordinator.etcd.watcher import Watcher
from spacegrid.coordinator.etcd.witness import Witness
from spacegrid.coordinator.local_server import process_start
from spacegrid.coordinator.view import View
from spacegrid.errors import ConfigError, ConnectionFailed, ProtocolError
from spacegrid.machine.table import PartitionEntry, Registration, Table, new_table

__all__ = ["EtcdCoordinator"]

#: Seconds that etcd gets to take a goodbye.
LEAVE_S: Final = 2.0
#: Seconds that a confirmation goes on asking; its answer is good for less than that.
CONFIRM_S: Final = 1.0
#: Seconds between two looks at whether an older registration of the same name has ended.
CLASH_S: Final = 0.25


class EtcdCoordinator:
    """One node's access to a space in etcd; see `Coordinator`."""

    def __init__(
        self,
        options: EtcdOptions,
        settings: SpaceSettings | None = None,
        *,
        times: EtcdTimes | None = None,
        timeout_s: float = 10.0,
        data: Path | None = None,
    ) -> None:
        """Not connected yet; see `join`.

        Args:
            options: Where etcd is.
            settings: What the space is created with if there is none; None: the defaults.
            times: Of the registration; None: the defaults.
            timeout_s: How long `join`, `update`, `write` and `stop_cluster` wait for an answer.
            data: The node's data folder, where it remembers how far etcd was; None: nowhere.

        Raises:
            ConfigError: What is remembered there is damaged.
        """
        self._witness = Witness(data)
        self._options = options
        self._settings = settings or SpaceSettings()
        self._times = times or EtcdTimes()
        self._timeout_s = timeout_s
        self._view = View()
        self._boot = secrets.token_bytes(16)
        self._host = host_identity()
        self._process_start = 0
        self._space: Space | None = None
        self._keeper: Keeper | None = None
        self._watcher: Watcher | None = None
        self._tasks: list[asyncio.Task[None]] = []

    # ---- what is known

    @property
    def registration(self) -> Registration:
        """The node's own registration as accepted."""
        return self._view.registration

    @property
    def table(self) -> Table:
        """The newest table seen."""
        return self._view.table

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """The nodes that have not ended, when last heard."""
        return self._view.registrations

    @property
    def stopping(self) -> bool:
        """Whether the whole cluster is stopping."""
        return self._view.stopping

    @property
    def controller(self) -> ControllerChanged:
        """Who may write the table, when last heard."""
        return self._view.controller

    @property
    def registered_until_ms(self) -> int:
        """Until when this node may believe that it is registered, by `clock.boottime_ms`."""
        return self._keeper.valid_until_ms if self._keeper is not None else 0

    def events(self) -> AsyncIterator[CoordinatorEvent]:
        """What changes; see `Coordinator.events`."""
        return self._view.events()

    # ---- joining

    async def join(self, registration: Registration) -> Registration:
        """Register the node, in a space that is created if there is none; see `Coordinator.join`.

        Waits for an older registration of the same name or store to end, unless its process is
        known to run.
        """
        client = EtcdClient(self._options)
        self._space = Space(client, Keys(self._options.space), self._tell, self._end)
        try:
            await self._find_or_create(self._space)
            lease = await self._register(self._space, registration)
            await self._space.load(LOAD_S)
        except BaseException:
            await self._shut()
            raise
        self._tell(None)
        watcher = self._watcher = Watcher(self._space, self._tell, self._end)
        self._keeper = Keeper(
            self._space,
            watcher,
            self._times,
            self.registration.incarnation,
            lease,
            self._end,
            self._remember,
        )
        self._tasks = [
            asyncio.create_task(self._guarded(watcher.run), name="etcd watch"),
            asyncio.create_task(self._guarded(self._keeper.run), name="etcd registration"),
        ]
        return self.registration

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run what must not end by itself: a node that would go on without it is ended, loudly."""
        try:
            await work()
        except Exception as error:
            self._end(f"a bug of spacegrid ended what keeps this node registered: {error!r}")
            raise

    async def _find_or_create(self, space: Space) -> None:
        image = await space.load(self._timeout_s)
        if image.meta is None:
            table, meta = self._new_space(space.answered_by)
            await space.decide(
                lambda image, _: decisions.create(image, meta, table), self._timeout_s
            )
            image = await space.load(self._timeout_s)
        self._check_space(space, image)
        space.pin()
        self._remember()

    def _new_space(self, etcd_cluster: int) -> tuple[Table, Meta]:
        settings = self._settings
        if settings.partitions > layout.PARTITIONS_MAX:
            raise ConfigError(
                f"partitions is {settings.partitions}, a space in etcd has at most "
                f"{layout.PARTITIONS_MAX}"
            )
        table = new_table(
            secrets.token_bytes(16),
            partition_count=settings.partitions,
            copies=settings.copies,
            min_in_sync=settings.min_in_sync,
            nodes_expected=settings.nodes,
        )
        meta = Meta(
            life=table.life,
            partition_count=table.partition_count,
            copies=table.copies,
            min_in_sync=table.min_in_sync,
            nodes_expected=table.nodes_expected,
            etcd_cluster=etcd_cluster,
        )
        return table, meta

    def _check_space(self, space: Space, image: Image) -> None:
        """Refuse a space that was created otherwise, or that came from another etcd."""
        meta, settings = image.meta, self._settings
        assert meta is not None
        asked = {
            "partitions": (settings.partitions, meta.partition_count),
            "copies": (settings.copies, meta.copies),
            "min_in_sync": (settings.min_in_sync, meta.min_in_sync),
        }
        for what, (wanted, there) in asked.items():
            if what in settings.given and wanted != there:
                raise ConfigError(
                    f"space {self._options.space!r} in etcd has {what} {there}, {wanted} was asked "
                    "for\nhint: it is set when a space is created"
                )
        if meta.etcd_cluster != space.answered_by:
            raise ProtocolError(
                f"space {self._options.space!r} belongs to etcd cluster {meta.etcd_cluster:016x}, "
                f"this one is {space.answered_by:016x}: it was restored from a backup\n"
                "hint: when no node of it runs any more, say so with `spacegrid etcd-restored`"
            )
        self._witness.check(meta, space.seen)

    def _remember(self) -> None:
        """Write down how far etcd is; a disk that does not take it takes no pump's data either."""
        space = self._space
        if space is not None and space.image.meta is not None:
            with contextlib.suppress(OSError):
                self._witness.remember(space.image.meta, space.seen)

    async def _register(self, space: Space, registration: Registration) -> int:
        """Register under a new incarnation; the lease that it is bound to."""
        with contextlib.suppress(OSError):
            self._process_start = process_start(registration.pid)
        record = self._record(registration)
        times = self._times
        give_up_s = clock.monotonic_s() + 2 * times.lease_s + times.end_ms / 1_000 + 1
        absences = Absences(times.end_ms)
        while True:
            image = await space.small(self._timeout_s)
            if await self._in_use(space, image, absences, registration):
                if clock.monotonic_s() > give_up_s:
                    rules.check_new(image.registrations, registration)
                await asyncio.sleep(CLASH_S)
                continue
            lease = await space.client.grant(times.lease_s)
            decide = functools.partial(self._join_decision, record, lease)
            accepted = await space.decide(decide, self._timeout_s)
            if accepted is not None:
                self._view.registration = accepted
                return lease

    def _join_decision(
        self, record: NodeRecord, lease: int, image: Image, _in_doubt: bool
    ) -> Try[Registration | None] | Done[Registration | None]:
        """Register; None: another node of that name is there, or was faster."""
        other = rules.clash(image.registrations, record.registration)
        if other is not None and image.nodes[other.incarnation].boot != self._boot:
            return Done(None)
        return decisions.join(image, record, lease)

    async def _in_use(
        self, space: Space, image: Image, absences: Absences, registration: Registration
    ) -> bool:
        """Whether an older registration stands in the way; one that is surely over is ended.

        Raises:
            ProtocolError: Its process runs on this machine.
        """
        other = rules.clash(image.registrations, registration)
        if other is None or image.nodes[other.incarnation].boot == self._boot:
            return False
        incarnation = other.incarnation
        proof = self._process_gone(image.nodes[incarnation])
        if proof is False:
            rules.check_new(image.registrations, registration)
        due = dict(absences.observe(image, clock.boottime_ms()))
        if not proof and incarnation not in due:
            return True
        seen = image.mod(image.keys.node(incarnation))
        ended = await space.decide(
            lambda image, _: decisions.end(image, incarnation, seen, proved=bool(proof)),
            self._timeout_s,
        )
        return not ended

    def _process_gone(self, record: NodeRecord) -> bool | None:
        """Whether the process of a record is gone; None: it is not of this machine, who knows."""
        if not record.host or record.host != self._host or not record.process_start:
            return None
        try:
            return process_start(record.registration.pid) != record.process_start
        except OSError:
            return True

    # ---- verbs of a registered node

    async def update(self, registration: Registration) -> None:
        """Replace the registration; see `Coordinator.update`."""
        record = self._record(registration)
        await self._joined().decide(
            lambda image, _: decisions.update(image, record), self._timeout_s
        )
        self._view.registration = registration

    async def campaign(self, known_term: int) -> ControllerChanged:
        """Take the next term; see `Coordinator.campaign`."""
        incarnation = self.registration.incarnation
        controller = await self._joined().decide(
            lambda image, _: decisions.campaign(image, incarnation, known_term), self._timeout_s
        )
        self._view.push_controller(controller)
        return controller

    async def confirm(self) -> ControllerChanged:
        """Read who holds the term; see `Coordinator.confirm`."""
        space = self._joined()
        term = (await space.look((space.keys.term,), CONFIRM_S)).term
        controller = ControllerChanged(term.incarnation, term.term)
        self._view.push_controller(controller)
        return controller

    async def write(
        self, term: int, expected_revision: int, entries: Iterable[PartitionEntry]
    ) -> WriteResult:
        """Write the table; see `Coordinator.write`."""
        space = self._joined()
        table = space.image.table
        if table.revision != expected_revision:
            return WriteResult(False, table.revision)
        holder = Term(self.registration.incarnation, term)
        changed, mark = tuple(entries), secrets.token_bytes(8)
        return await space.decide(
            lambda image, in_doubt: decisions.write(
                image, table, changed, term=holder, write=mark, in_doubt=in_doubt
            ),
            self._timeout_s,
            image=space.image,
        )

    async def stop_cluster(self) -> None:
        """Mark the cluster as stopping; see `Coordinator.stop_cluster`."""
        mark = secrets.token_bytes(8)
        await self._joined().decide(
            lambda image, _: decisions.stop_cluster(image, mark), self._timeout_s
        )

    async def close(self) -> None:
        """End the registration and disconnect; see `Coordinator.close`."""
        registered = self._keeper is not None and not self._view.closed
        await self._stop_tasks()
        if registered and self._space is not None:
            with contextlib.suppress(ConnectionFailed, ProtocolError):
                await self._leave(self._space)
        await self._shut()

    async def _leave(self, space: Space) -> None:
        """End the own registration, whatever its record's revision is by now."""
        incarnation = self.registration.incarnation
        await space.decide(
            lambda image, _: decisions.end(
                image, incarnation, image.mod(image.keys.node(incarnation)), proved=True
            ),
            LEAVE_S,
        )
        if self._keeper is not None:
            await self._keeper.let_go(LEAVE_S)

    # ---- what is heard

    def _tell(self, news: News | None) -> None:
        """Tell the view what is different; None: everything may be."""
        space = self._space
        if space is None or space.image.meta is None or self._view.closed:
            return
        image, view = space.image, self._view
        if news is None or news.table:
            view.push_table(image.table, None if news is None else tuple(sorted(news.changed)))
        if news is None or news.nodes:
            view.push_registrations(image.registrations, image.stopping)
        if news is None or news.term:
            view.push_controller(ControllerChanged(image.term.incarnation, image.term.term))
        own = self.registration.incarnation
        if self._keeper is not None and own not in image.nodes:
            self._end(f"incarnation {own} has ended")

    def _end(self, reason: str) -> None:
        """The registration is over; nothing more is heard or kept."""
        if self._keeper is not None:
            self._keeper.valid_until_ms = 0
        if not self._view.closed:
            self._view.push_ended(reason)

    def _record(self, registration: Registration) -> NodeRecord:
        return NodeRecord(registration, self._boot, self._host, self._process_start)

    def _joined(self) -> Space:
        if self._space is None:
            raise ConnectionFailed("not joined yet", addresses=self._options.members)
        return self._space

    async def _stop_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _shut(self) -> None:
        self._view.close()
        await self._stop_tasks()
        if self._space is not None:
            await self._space.client.close()


def host_identity() -> str:
    """What tells this machine, since it was started, and this pid namespace from any other.

    Two processes of the same identity can look for each other by pid. Empty: it can't be told.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
