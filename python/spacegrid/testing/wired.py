"""A cluster whose links all pass through fault proxies, on a local coordinator or an etcd."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from spacegrid.errors import ConfigError
from spacegrid.testing.cluster import LocalCluster
from spacegrid.testing.etcd import Etcd
from spacegrid.testing.links import FaultLinks

SPARE: Final = "node-9"
"""A node that may join later."""
ETCD_MEMBERS: Final = 3
COORDINATORS: Final = ("local", "etcd")


@dataclass
class Wired:
    """A cluster, its links, and the etcd below it.

    Attributes:
        cluster: Its nodes.
        links: Between them, and to the coordinator.
        etcd: The etcd; None: a local coordinator.
    """

    cluster: LocalCluster
    links: FaultLinks
    etcd: Etcd | None

    def start(self, timeout_s: float) -> None:
        """Start everything, and wait until every partition has all its copies."""
        self.cluster.start(timeout_s)

    def stop(self, *, in_order: bool) -> None:
        """End everything: with all data flushed, or at once."""
        with contextlib.ExitStack() as ends:
            if self.etcd is not None:
                ends.callback(self.etcd.stop)
            ends.callback(self.links.close)
            ends.callback(self.cluster.kill_all)
            if in_order:
                self.cluster.stop()


def wired(
    coordinator: str, nodes: int, folder: Path, space: str = "chaos", **settings: Any
) -> Wired:
    """Make a cluster with links; an etcd is started, the cluster is not.

    Args:
        coordinator: `local` or `etcd`.
        nodes: Number of nodes.
        folder: Where everything keeps its data.
        space: Name of the space in etcd.
        settings: Of `LocalCluster`.

    Raises:
        ConfigError: No such coordinator, or no etcd here.
    """
    if coordinator not in COORDINATORS:
        raise ConfigError(f"coordinator {coordinator!r} is not one of {', '.join(COORDINATORS)}")
    names = [*(f"node-{number}" for number in range(1, nodes + 1)), SPARE]
    if coordinator == "local":
        links = FaultLinks(names)
        cluster = LocalCluster(nodes, data=folder, links=links, **settings)
        return Wired(cluster, links, None)
    etcd = Etcd(folder / "etcd", ETCD_MEMBERS)
    etcd.start()

    def told(addresses: Sequence[str]) -> str:
        return f"etcd://{','.join(addresses)}/{space}"

    links = FaultLinks(names, [member.name for member in etcd.members], told)
    for member in etcd.members:
        links.set_target(member.name, member.address)
    cluster = LocalCluster(
        nodes, data=folder, links=links, coordinator=told(etcd.addresses), **settings
    )
    return Wired(cluster, links, etcd)
