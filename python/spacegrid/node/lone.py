"""A node without a cluster: it is its own authority, in memory or in its data folder.

The same machine as in a cluster decides, through an authority of the same process. Callers: the
daemon without `--coordinator`, and the embedded grid.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final

from spacegrid.coordinator.authority import Authority
from spacegrid.coordinator.durable import DurableFile
from spacegrid.coordinator.memory import MemoryCoordinator, open_authority
from spacegrid.machine.table import new_table

if TYPE_CHECKING:
    from spacegrid.config import NodeConfig

TABLE_FILE: Final = "table"


def lone_authority(
    *, partitions: int, copies: int, min_in_sync: int, data: Path | None
) -> tuple[Authority, DurableFile | None]:
    """The authority of a lone node.

    Args:
        partitions: Partition count of a new space.
        copies: Copies wanted.
        min_in_sync: Copies that a write needs.
        data: Folder to go on from and to keep it in; None: in memory only.

    Returns:
        The authority, and the file behind it, to be closed at the end.

    Raises:
        ConfigError: The folder is in use, damaged, or holds a space that was created otherwise.
    """
    file = DurableFile(data / TABLE_FILE) if data is not None else None
    table = new_table(
        secrets.token_bytes(16),
        partition_count=partitions,
        copies=copies,
        min_in_sync=min_in_sync,
    )
    try:
        return open_authority(table, file), file
    except BaseException:
        if file is not None:
            file.close()
        raise


def lone_coordinator(config: NodeConfig) -> MemoryCoordinator:
    """The coordinator of a node that runs without a cluster; its file is held until the process
    ends.
    """
    authority, _file = lone_authority(
        partitions=config.partitions,
        copies=config.copies,
        min_in_sync=config.write_copies,
        data=config.data,
    )
    return MemoryCoordinator(authority)
