"""Asks the grid, and writes down what was asked, when, and how it ended.

An outcome that is unknown is asked for again under its token until it is definite, as an
application would: so the history knows of almost every operation whether it happened.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from spacegrid.errors import (
    DeadlineExceeded,
    PartitionLost,
    SpaceGridError,
    StaleRequest,
    VersionMismatch,
)
from spacegrid.testing.history import Operation, Status

RESEND_TIMEOUT_S: Final = 2.0
GIVE_UP_S: Final = 45.0
"""Seconds after which an outcome stays unknown; longer than any fault and its repair."""
AFTER_FAILURE_S: Final = 0.02


class Recorder:
    """One worker's way to the grid.

    Attributes:
        history: Where operations go, in the order in which they ended.
        worker: Number of the worker.
    """

    def __init__(self, history: list[Operation], worker: int) -> None:
        self.history = history
        self.worker = worker

    async def ask(
        self,
        operation: Operation,
        send: Callable[[], Awaitable[Any]],
        read: Callable[[Any], tuple[Any, int]] = lambda answer: (answer, 0),
    ) -> Operation:
        """Carry one operation out and keep it.

        Args:
            operation: Kind, key, argument and partition; the rest is filled in.
            send: Sends it for the first time.
            read: Makes result and version of the answer.

        Returns:
            The operation, as it ended.
        """
        operation.worker = self.worker
        operation.began = time.monotonic()
        try:
            answer = await self._until_definite(operation, send)
        except VersionMismatch:
            operation.result, operation.status = False, Status.OK
        except PartitionLost as error:
            operation.status, operation.note = Status.LOST, str(error)
        except StaleRequest as error:
            operation.status, operation.note = Status.UNKNOWN, str(error)
        except SpaceGridError as error:
            operation.status = Status.UNKNOWN if error.maybe_applied else Status.FAILED
            operation.note = f"{error.code}: {error}"
        else:
            operation.result, operation.version = read(answer)
            operation.status = Status.OK
        operation.ended = time.monotonic()
        self.history.append(operation)
        if operation.status is not Status.OK:
            await asyncio.sleep(AFTER_FAILURE_S)
        return operation

    async def _until_definite(
        self, operation: Operation, send: Callable[[], Awaitable[Any]]
    ) -> Any:
        while True:
            try:
                return await send()
            except DeadlineExceeded as error:
                late = time.monotonic() - operation.began > GIVE_UP_S
                if not error.maybe_applied or late:
                    raise
                operation.sends += 1
                send = partial(error.resend, RESEND_TIMEOUT_S)
