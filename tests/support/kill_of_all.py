"""SIGKILL for a whole cluster at once."""

import os
import signal

from spacegrid.testing import LocalCluster


def kill_everything(cluster: LocalCluster) -> None:
    """SIGKILL for all processes, before any of them can hear of another's end.

    A coordinator in etcd is none of the cluster's processes and goes on.
    """
    children = [child for child in (cluster.coordinator, *cluster.nodes.values()) if child]
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
    cluster.kill_all()
