"""A unit that burns a core, for the busy-node row."""

import time

import msgspec
from spacegrid import Map, Unit, handler


class Burned(msgspec.Struct):
    """How long one burn took."""

    milliseconds: int


class Burner(Unit):
    """Burns CPU in Python beside the grid's own work."""

    burned = Map(str, Burned)

    @handler(route_by="name")
    async def burn(self, name: str, seconds: float) -> bool:
        """Compute for `seconds` without ever yielding."""
        until = time.monotonic() + seconds
        number = 0
        while time.monotonic() < until:
            number = (number * 31 + 7) % 1_000_003
        return True
