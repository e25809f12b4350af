"""What takes turns on a node where no unit is installed: it refuses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spacegrid import clock
from spacegrid.wire.status import Status

if TYPE_CHECKING:
    from spacegrid._core import Turn


class NoUnits:
    """Ends every turn with NO_SUCH_HANDLER."""

    def run(self, turns: list[Turn]) -> None:
        """Refuse turns, and those that waited behind them."""
        waiting = list(turns)
        while waiting:
            turn = waiting.pop()
            message = f"no unit is installed here, {turn.handler} can't run"
            waiting += turn.fail(Status.NO_SUCH_HANDLER, message.encode(), clock.now_ms())

    def settled(self, tickets: list[int]) -> None:
        """Nobody waits for a ticket."""
