"""Chaos on real processes: load, a fault, its repair, and a check of everything that was answered.

`spacegrid chaos` on the command line; here for tests of applications::

    report = asyncio.run(ChaosRun(ChaosOptions(cycles=5, workload="shop_chaos:Sales")).run())
    assert report.ok, report.violations
"""

from spacegrid.testing.chaos.recorder import Recorder
from spacegrid.testing.chaos.run import ChaosOptions, ChaosRun, Progress
from spacegrid.testing.chaos.workload import Mixed, Workload

__all__ = ["ChaosOptions", "ChaosRun", "Mixed", "Progress", "Recorder", "Workload"]
