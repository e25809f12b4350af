"""The coordinator of a cluster on many machines: its state is in etcd.

Who calls: node/ and the command line. What it may import: what `spacegrid.coordinator` may.
"""

from spacegrid.coordinator.etcd.coordinator import EtcdCoordinator
from spacegrid.coordinator.etcd.options import EtcdOptions, EtcdTimes, SpaceSettings
from spacegrid.coordinator.etcd.upkeep import accept_restored, remove_space

__all__ = [
    "EtcdCoordinator",
    "EtcdOptions",
    "EtcdTimes",
    "SpaceSettings",
    "accept_restored",
    "remove_space",
]
