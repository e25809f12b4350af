"""Tools for tests of applications that use spacegrid.

Real clusters on this machine (`LocalCluster`), faults on their links (`FaultLinks`), chaos under a
workload of your own (`ChaosRun`), and the checkers of what clients saw (`check_history`).
"""

from spacegrid.testing.chaos import ChaosOptions, ChaosRun, Mixed, Recorder, Workload
from spacegrid.testing.checks import Violation, check_history
from spacegrid.testing.cluster import LocalCluster
from spacegrid.testing.history import Operation, Status
from spacegrid.testing.links import FaultLinks

__all__ = [
    "ChaosOptions",
    "ChaosRun",
    "FaultLinks",
    "LocalCluster",
    "Mixed",
    "Operation",
    "Recorder",
    "Status",
    "Violation",
    "Workload",
    "check_history",
]
