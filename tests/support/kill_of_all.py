"""SIGKILL for several processes of a cluster at once."""

import os
import signal

from spacegrid.node.processes import Child
from spacegrid.testing import LocalCluster


def kill_everything(cluster: LocalCluster) -> None:
    """SIGKILL for all processes, before any of them can hear of another's end.

    A coordinator in etcd is none of the cluster's processes and goes on.
    """
    _kill([child for child in (cluster.coordinator, *cluster.nodes.values()) if child])


def kill_together(cluster: LocalCluster, *names: str) -> None:
    """SIGKILL for some nodes, before any of these can hear of another's end.

    Those that are left hear of one end after the other.
    """
    _kill([cluster.nodes[name] for name in names])


def _kill(children: list[Child]) -> None:
    # Stopped first: nobody decides anything while this process is kept from the next kill.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for child in children:
            os.kill(child.pid, number)
    for child in children:
        child.kill()
