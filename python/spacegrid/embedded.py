"""The grid inside one process: `open` for asyncio and `open_sync` for threads.

The same faces as `connect` and `connect_sync`, over a node that lives in this process and owns
every partition. Writes are in the memory of one process only, and replies say so (copies = 1);
with ``data=`` they are also kept on disk, and the next `open` of that folder has them again.

Who calls: users, tests of users' units.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spacegrid.client.asynchronous import AsyncGrid
from spacegrid.client.blocking import Grid
from spacegrid.client.common import DEFAULT_TIMEOUT_S, Duration
from spacegrid.transport.local import (
    LOCAL_ADDRESS,
    LocalBlockingTransport,
    LocalClientTransport,
)

if TYPE_CHECKING:
    from spacegrid.unit import Unit

__all__ = ["open", "open_sync"]


def _node(units: tuple[type[Any], ...], data: Any, sql: str | None) -> Any:
    # The node brings servers, sinks and units with it; a client of a cluster never needs them.
    from spacegrid.node.embedded import EmbeddedNode

    folder = None if data is None else Path(data)
    return EmbeddedNode(units, data=folder, sql=sql or "")


def open(
    *units: type[Unit],
    data: str | PathLike[str] | None = None,
    sql: str | None = None,
    timeout: Duration = DEFAULT_TIMEOUT_S,
) -> AsyncGrid:
    """Open a grid in this process, for asyncio.

    ``async with open(Shop) as grid:``, or ``grid = await open(Shop)``.

    Args:
        units: Processing units to install.
        data: Folder for what is kept on disk; nothing is when None.
        sql: URL of an SQL database that the maps with columns are written to.
        timeout: Seconds that an operation may take.

    Returns:
        A grid that is not open yet; awaiting or entering it starts the node.
    """
    transport = LocalClientTransport(_node(units, data, sql))
    return AsyncGrid(transport, (LOCAL_ADDRESS,), timeout=timeout)


def open_sync(
    *units: type[Unit],
    data: str | PathLike[str] | None = None,
    sql: str | None = None,
    timeout: Duration = DEFAULT_TIMEOUT_S,
) -> Grid:
    """Open a grid in this process, for threads. Reads go straight to the tables.

    Args:
        units: Processing units to install.
        data: Folder for what is kept on disk; nothing is when None.
        sql: URL of an SQL database that the maps with columns are written to.
        timeout: Seconds that an operation may take.
    """
    node = _node(units, data, sql)
    transport = LocalBlockingTransport(node)
    return Grid(transport, (LOCAL_ADDRESS,), timeout=timeout, local=node.core)
