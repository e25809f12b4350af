"""One space in etcd, as one node reads and changes it.

Every linearizable answer is held to what was known when it was asked for: an answer of another etcd
cluster counts as no answer, and one that is older than what this node has seen means that etcd was
put back to an earlier state. Then nothing of it can be trusted (numbers would be given twice), and
`lost` is called once.

Who calls: coordinator.py, watcher.py, keeper.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from spacegrid import clock
from spacegrid.coordinator.etcd import api_pb2 as api
from spacegrid.coordinator.etcd import decisions
from spacegrid.coordinator.etcd.client import EtcdClient
from spacegrid.coordinator.etcd.decisions import Done, Try
from spacegrid.coordinator.etcd.image import Image, News
from spacegrid.coordinator.etcd.layout import Keys
from spacegrid.errors import ConnectionFailed, ProtocolError

__all__ = ["LOAD_S", "Space"]

#: Seconds that one read goes on asking.
READ_S: Final = 1.0
#: Seconds that a full read goes on asking.
LOAD_S: Final = 10.0
#: Seconds between two attempts at a change while etcd does not answer.
RETRY_S: Final = 0.05

T = TypeVar("T")
Decide = Callable[[Image, bool], Try[T] | Done[T]]


class Space:
    """The keys of a space, their image, and the way to change them.

    Attributes:
        client: The members.
        keys: Names of the keys.
        image: All of it, kept up to date by the watcher and by own changes.
        seen: Revision that etcd is known to have reached.
        etcd_cluster: Identity of the etcd cluster; 0: any.
        answered_by: Identity of the etcd cluster that answered last.
    """

    def __init__(
        self,
        client: EtcdClient,
        keys: Keys,
        tell: Callable[[News], None],
        lost: Callable[[str], None],
    ) -> None:
        """Know nothing yet.

        Args:
            client: The members.
            keys: Names of the keys.
            tell: Called with what an own change made different.
            lost: Called with the reason when etcd was put back.
        """
        self.client = client
        self.keys = keys
        self.image = Image(keys)
        self.seen = 0
        self.etcd_cluster = 0
        self.answered_by = 0
        self._meta_mod = 0
        self._tell = tell
        self._lost = lost

    async def load(self, timeout_s: float) -> Image:
        """Read all of it; the image is a new one afterwards.

        Raises:
            ConnectionFailed: etcd does not answer.
            ProtocolError: What it has can't be, or it was put back.
        """
        seen = self.seen
        request = api.RangeRequest(key=self.keys.prefix, range_end=self.keys.end)
        answer = await self.client.range(request, timeout_s)
        image = Image(self.keys)
        image.read(answer.kvs, answer.header.revision)
        image.check()
        self._verify(answer.header, seen, image.mod(self.keys.meta))
        self.image = image
        return image

    def pin(self) -> None:
        """Hold every later answer to the etcd cluster and the space as they are now."""
        assert self.image.meta is not None
        self.etcd_cluster = self.image.meta.etcd_cluster
        self._meta_mod = self.image.mod(self.keys.meta)

    async def small(self, timeout_s: float = READ_S) -> Image:
        """Everything but the table's entries, read anew.

        Raises:
            ConnectionFailed: etcd does not answer.
            ProtocolError: What it has can't be, or it was put back.
        """
        return await self._read(decisions.small_read(self.keys), timeout_s)

    async def look(self, keys: Iterable[bytes], timeout_s: float) -> Image:
        """An image of single keys and of meta, which tells that they are of this space."""
        return await self._read(decisions.read_keys((self.keys.meta, *keys)), timeout_s)

    async def decide(self, decide: Decide[T], timeout_s: float, *, image: Image | None = None) -> T:
        """Carry out a change: decide, send, and decide again on what is there, until it is done.

        Args:
            decide: From an image, and whether an earlier attempt is in doubt, to what to do.
            timeout_s: How long to go on trying.
            image: What to decide on first; None: read it.

        Returns:
            The change's result.

        Raises:
            ConnectionFailed: No answer in time: it may be carried out.
            ProtocolError: It can't be carried out.
        """
        deadline = clock.monotonic_s() + timeout_s
        in_doubt = False
        while True:
            sent = False
            try:
                step = decide(image if image is not None else await self.small(), in_doubt)
                if isinstance(step, Done):
                    return step.result
                sent = True
                if await self._carried_out(step):
                    return step.result
            except ConnectionFailed:
                in_doubt = in_doubt or sent
                if clock.monotonic_s() > deadline:
                    raise
                await asyncio.sleep(RETRY_S)
            image = None

    async def _carried_out(self, step: Try[T]) -> bool:
        seen = self.seen
        answer = await self.client.change(step.request)
        self._verify(answer.header, seen, self._meta_mod)
        if answer.succeeded:
            self._tell(self.image.wrote(step.request.success, answer.header.revision))
        return answer.succeeded

    async def _read(self, request: api.TxnRequest, timeout_s: float) -> Image:
        seen = self.seen
        answer = await self.client.read(request, timeout_s)
        image = Image(self.keys)
        kvs = [kv for response in answer.responses for kv in response.range.kvs]
        image.read(kvs, answer.header.revision)
        self._verify(answer.header, seen, image.mod(self.keys.meta))
        return image

    def _verify(self, header: api.Header, seen: int, meta_mod: int) -> None:
        """Refuse the answer of an etcd that is not the one known, or not as far as it was.

        Args:
            header: Of a linearizable answer.
            seen: The revision that was known when it was asked for.
            meta_mod: Revision of the meta key in the answer.
        """
        if self.etcd_cluster not in (0, header.cluster_id):
            raise ConnectionFailed(
                f"etcd answered as cluster {header.cluster_id:016x}, "
                f"{self.etcd_cluster:016x} is the one of this space"
            )
        reason = ""
        if header.revision < seen:
            reason = f"etcd is at revision {header.revision} and has been at {seen}"
        elif self._meta_mod not in (0, meta_mod):
            reason = "the space in etcd is another one now"
        if reason:
            reason += ": was it restored from a backup?"
            self._lost(reason)
            raise ProtocolError(reason)
        self.seen = max(self.seen, header.revision)
        self.answered_by = header.cluster_id
