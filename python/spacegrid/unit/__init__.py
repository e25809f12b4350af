"""Processing units: business logic that runs in the node that owns its data.

`Unit` and `handler` define one, `UnitHost` runs them. See `definition`, `turn` and `host`.
"""

from .definition import AsyncHandler, Handler, PlainHandler, Unit, handler, handlers_of, maps_of
from .host import UnitHost
from .turn import OutgoingCall, TurnTable

__all__ = [
    "AsyncHandler",
    "Handler",
    "OutgoingCall",
    "PlainHandler",
    "TurnTable",
    "Unit",
    "UnitHost",
    "handler",
    "handlers_of",
    "maps_of",
]
