"""Keeps a node's registration, and ends those of nodes that are gone.

Three things at once: the etcd lease is renewed; the own keys are read, which is what the node's
belief that it is registered rests on (`valid_until_ms`); and nodes that lost their lease long
enough ago are ended. While etcd does not answer nothing ends: the node is only not sure any more,
and serves nothing until it is sure again. A lease that etcd let go although the node lives (a
leader that was paused does that) is replaced by a new one. The own record gone means that the node
was ended, for good.

Who calls: coordinator.py.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

from spacegrid import clock
from spacegrid.coordinator.etcd import decisions
from spacegrid.coordinator.etcd.absence import Absences
from spacegrid.coordinator.etcd.decisions import Done, Try
from spacegrid.coordinator.etcd.image import Image
from spacegrid.coordinator.etcd.options import EtcdTimes
from spacegrid.coordinator.etcd.space import Space
from spacegrid.coordinator.etcd.watcher import Watcher
from spacegrid.errors import ConnectionFailed, ProtocolError

__all__ = ["Keeper"]


class Keeper:
    """The registration of one node.

    Attributes:
        valid_until_ms: Until when the node may believe that it is registered.
    """

    def __init__(
        self,
        space: Space,
        watcher: Watcher,
        times: EtcdTimes,
        incarnation: int,
        lease: int,
        ended: Callable[[str], None],
        checked: Callable[[], None],
    ) -> None:
        """Keep what `decisions.join` made; `run` does.

        Args:
            space: Where it is registered.
            watcher: Is told which revisions were found.
            times: See there.
            incarnation: Of this node.
            lease: The etcd lease that its key is bound to.
            ended: Called with the reason when the registration is over.
            checked: Called after each read of the own keys.
        """
        self.valid_until_ms = 0
        self._space = space
        self._watcher = watcher
        self._times = times
        self._incarnation = incarnation
        self._lease = lease
        self._ended = ended
        self._checked = checked
        self._absences = Absences(times.end_ms)

    async def run(self) -> None:
        """Keep it until cancelled, or until it has ended."""
        async with asyncio.TaskGroup() as group:
            renewing = group.create_task(self._renew(), name="etcd lease")
            try:
                while True:
                    began_s = clock.monotonic_s()
                    await self._step()
                    pause_s = began_s + self._times.check_s - clock.monotonic_s()
                    await asyncio.sleep(max(0.01, pause_s))
            except ProtocolError as error:
                self.valid_until_ms = 0
                self._ended(str(error))
            finally:
                renewing.cancel()

    async def let_go(self, timeout_s: float) -> None:
        """End the lease, which is bound to nothing any more."""
        await self._space.client.revoke(self._lease, timeout_s)

    async def _step(self) -> None:
        try:
            await self._check()
            self._checked()
            await self._end_others()
        except ConnectionFailed:
            # Not sure until the next check; nothing has ended.
            return

    async def _check(self) -> None:
        """Read the own keys: sure from before the read, for as long as a read is good."""
        keys, incarnation = self._space.keys, self._incarnation
        watched = (keys.node(incarnation), keys.alive_of(incarnation), keys.head, keys.term)
        began_ms = clock.boottime_ms()
        found = await self._space.look(watched, self._times.valid_ms / 1_000)
        self._watcher.found(max(found.mod(key) for key in watched))
        if incarnation not in found.nodes:
            raise ProtocolError(f"incarnation {incarnation} has ended")
        if incarnation in found.alive:
            self.valid_until_ms = began_ms + self._times.valid_ms
        else:
            await self._revive()

    async def _revive(self) -> None:
        lease = await self._space.client.grant(self._times.lease_s)
        await self._space.decide(
            lambda image, _: decisions.revive(image, self._incarnation, lease),
            self._times.valid_ms / 1_000,
        )
        self._lease = lease

    async def _end_others(self) -> None:
        image, now_ms = self._space.image, clock.boottime_ms()
        for incarnation, seen in self._absences.observe(image, now_ms, self._incarnation):
            decide = functools.partial(_end, incarnation, seen)
            await self._space.decide(decide, self._times.valid_ms / 1_000)

    async def _renew(self) -> None:
        """Renew the lease; whether that helped is for the check to find out."""
        while True:
            try:
                await self._space.client.keep(self._lease, self._times.keep_s)
            except ConnectionFailed:
                await asyncio.sleep(min(0.05, self._times.keep_s))
                continue
            except ProtocolError:
                # Refused, as by an etcd whose users were changed: the check says what follows.
                pass
            await asyncio.sleep(self._times.keep_s)


def _end(incarnation: int, seen: int, image: Image, _in_doubt: bool) -> Try[bool] | Done[bool]:
    return decisions.end(image, incarnation, seen, proved=False)
