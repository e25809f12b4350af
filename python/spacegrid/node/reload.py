"""Filling partitions that nobody serves again from the shared sink, on the node that is asked.

The node reads the tables and the checkpoint at one moment, takes the rows into its core as a copy
at the checkpoint's position, and offers it to the controller, which decides under the version that
the operator saw. So the pump goes on where it was, and nothing is written anew. What the controller
refuses is forgotten; what nobody knows the fate of is kept until the table tells, since a node that
is named without its copy would answer from nothing. Runs on the grid loop, which it never holds up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from spacegrid.errors import SpaceGridError
from spacegrid.machine.acceptance import Choice, How
from spacegrid.machine.table import PartitionEntry, State
from spacegrid.node.log import get_logger
from spacegrid.v1 import admin_pb2

if TYPE_CHECKING:
    from spacegrid.node.daemon import Daemon
    from spacegrid.sink.base import ReadBack

READ_TIMEOUT_S: Final = 120.0
SHOWN_TIMEOUT_S: Final = 5.0
"""All leases of before are over by then, and the table is written."""
_SEQUENCE_BITS: Final = 40

_log = get_logger("reload")


async def reload(daemon: Daemon, seen: Mapping[int, int]) -> admin_pb2.ReloadReply:
    """Fill partitions again, and wait until the table shows it.

    Args:
        daemon: The node.
        seen: Partition to the version of its entry that the operator saw.
    """
    refused = {p: why for p, version in seen.items() if (why := _why_not(daemon, p, version))}
    found = await _read_back(daemon, [p for p in seen if p not in refused], refused)
    taken = await _load(daemon, found, refused)
    if taken:
        choices = [
            Choice(p, seen[p], How.RELOADED, daemon.incarnation, found[p].epoch) for p in taken
        ]
        told = await daemon.controller.offer_reloaded(choices)
        for partition, reason in (told or {}).items():
            daemon.front.node.unload(partition)
            refused[partition] = reason
        await _shown(daemon, {p: seen[p] for p in taken if p not in refused}, refused)
    done = [p for p in taken if p not in refused]
    _log.warning("filled again from the database", partitions=len(done), refused=len(refused))
    return admin_pb2.ReloadReply(
        reloaded=[_line(partition, found[partition]) for partition in done],
        refused=[
            admin_pb2.AcceptReply.Refused(partition=partition, reason=reason)
            for partition, reason in sorted(refused.items())
        ],
        maps_without_columns=daemon.maps_without_columns(),
    )


def _why_not(daemon: Daemon, partition: int, version: int) -> str:
    table = daemon.view.table
    if partition >= table.partition_count:
        return f"there is no partition {partition}"
    entry = table.entries[partition]
    if entry.state is State.OK:
        return "it is served"
    if entry.epoch == 0:
        return "it was never placed: it begins by itself"
    if entry.version != version:
        return f"it changed meanwhile: version {entry.version}, not {version}"
    return ""


async def _read_back(
    daemon: Daemon, wanted: list[int], refused: dict[int, str]
) -> dict[int, ReadBack]:
    """What the database has of them; what can't be read is refused."""
    pump = daemon.pumps.get("sql")
    if pump is None or not wanted:
        refused.update(dict.fromkeys(wanted, f"{daemon.config.name} has no SQL sink (--sql)"))
        return {}
    try:
        found = await asyncio.to_thread(pump.read_back, wanted, READ_TIMEOUT_S)
    except (SpaceGridError, TimeoutError) as error:
        reason = str(error) or f"the database gave no answer within {READ_TIMEOUT_S:g} s"
        refused.update(dict.fromkeys(wanted, reason))
        return {}
    nothing = "the database has no position of it; what is left is to accept"
    refused.update(dict.fromkeys((p for p in wanted if p not in found), nothing))
    return found


async def _load(
    daemon: Daemon, found: Mapping[int, ReadBack], refused: dict[int, str]
) -> list[int]:
    """Take what was read into the core; the partitions of which that went well."""
    taken = []
    for partition, content in found.items():
        epoch, sequence = content.position
        # All that is known of a row's age is that it is not newer than the checkpoint.
        version = epoch << _SEQUENCE_BITS | sequence
        # Before the first record there is nothing of the grid in the table.
        rows = content.entries if version else []
        entries = [(*row, version, 0) for row in rows]
        try:
            await asyncio.to_thread(daemon.front.node.reload, partition, epoch, sequence, entries)
        except ValueError as error:
            refused[partition] = f"{daemon.config.name}: {error}"
        else:
            taken.append(partition)
    return taken


async def _shown(daemon: Daemon, waits: Mapping[int, int], refused: dict[int, str]) -> None:
    """Wait until the table says what became of them."""

    def entry(partition: int) -> PartitionEntry:
        return daemon.view.table.entries[partition]

    def decided() -> bool:
        return all(entry(partition).version > version for partition, version in waits.items())

    await daemon.until(decided, SHOWN_TIMEOUT_S)
    for partition, version in waits.items():
        if entry(partition).version <= version:
            refused[partition] = "the table does not show it yet: look again"
        elif daemon.incarnation not in entry(partition).in_sync:
            refused[partition] = "it changed meanwhile"


def _line(partition: int, content: ReadBack) -> admin_pb2.ReloadReply.Reloaded:
    epoch, sequence = content.position
    return admin_pb2.ReloadReply.Reloaded(
        partition=partition,
        epoch=epoch,
        sequence=sequence,
        entries=len(content.entries) if sequence else 0,
        held_keys=content.held_keys,
    )
