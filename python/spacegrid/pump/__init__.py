"""Data pumps: threads that carry committed records from the log into a sink, behind the request.

Who calls: `spacegrid.node`.
"""

from spacegrid.pump.pump import Pump
from spacegrid.pump.status import PumpStatus

__all__ = ["Pump", "PumpStatus"]
