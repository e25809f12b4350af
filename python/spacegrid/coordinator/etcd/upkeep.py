"""What an operator does to a space in etcd while no node of it runs.

Who calls: the command line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from spacegrid.coordinator.etcd import decisions
from spacegrid.coordinator.etcd.client import EtcdClient
from spacegrid.coordinator.etcd.layout import Keys
from spacegrid.coordinator.etcd.options import EtcdOptions
from spacegrid.coordinator.etcd.space import LOAD_S, Space

__all__ = ["accept_restored", "remove_space"]

#: Numbers skipped after a restore: more incarnations, terms and revisions than can have been given
#: since the backup was made.
SKIP: Final = 1 << 20

T = TypeVar("T")


def accept_restored(options: EtcdOptions) -> None:
    """Go on with an etcd that was restored from a backup; see `decisions.restored`.

    Args:
        options: Where etcd is.

    Raises:
        ConnectionFailed: etcd does not answer.
        ProtocolError: There is no such space in it.
    """

    async def accept(space: Space) -> None:
        image = await space.small(LOAD_S)
        cluster, told = space.answered_by, image.meta.restored if image.meta else 0
        await space.decide(
            lambda image, _: (
                decisions.Done(None)
                if image.meta is not None and image.meta.restored > told
                else decisions.restored(image, cluster, SKIP)
            ),
            LOAD_S,
        )

    _run(options, accept)


def remove_space(options: EtcdOptions) -> bool:
    """Remove a space and everything in it; whether there was one.

    Args:
        options: Where etcd is.

    Raises:
        ConnectionFailed: etcd does not answer.
        ProtocolError: Nodes are registered in it.
    """

    async def remove(space: Space) -> bool:
        return await space.decide(lambda image, _: decisions.remove(image), LOAD_S)

    return _run(options, remove)


def _run(options: EtcdOptions, work: Callable[[Space], Awaitable[T]]) -> T:
    async def main() -> T:
        client = EtcdClient(options)
        try:
            return await work(Space(client, Keys(options.space), lambda _: None, lambda _: None))
        finally:
            await client.close()

    return asyncio.run(main())
