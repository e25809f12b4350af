"""What both demos do around their orders: kill a node, probe the gap, read everything back."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from spacegrid import AsyncGrid, AsyncMap, Map
from spacegrid._core import encode_key, partition_of
from spacegrid.errors import ConfigError, DeadlineExceeded, SpaceGridError
from spacegrid.testing import LocalCluster

from .check import Rows, lmdb_rows

T = TypeVar("T")

PROBE_MAP = "probes"
REQUEST_TIMEOUT_S = 5.0
FLUSH_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Targets:
    """Where the sinks are, and whether what is there may be replaced."""

    sql: Path
    lmdb: Path
    fresh: bool

    @classmethod
    def prepare(cls, sql: str | None, lmdb: Path | None, scratch: Path, fresh: bool) -> Targets:
        """Check the targets and clear them when asked to.

        Args:
            sql: `sqlite:///PATH`; None: a file in `scratch`.
            lmdb: Folder for the nodes' stores; None: a folder in `scratch`.
            scratch: Folder of this run only.
            fresh: Replace what is there.

        Raises:
            ConfigError: A target exists and `fresh` is not set, or the URL is no SQLite URL.
        """
        if sql is not None and not sql.startswith("sqlite:///"):
            raise ConfigError(f"--sql {sql!r} is not of the form sqlite:///PATH")
        path = Path(sql.removeprefix("sqlite:///")) if sql else scratch / "demo.db"
        folder = lmdb or scratch / "nodes"
        for target in (path, folder):
            if target.exists() and (target.is_file() or any(target.iterdir())):
                if not fresh:
                    raise ConfigError(
                        f"{target} exists; choose another place, or replace it with --fresh"
                    )
                if target.is_dir():
                    shutil.rmtree(target)
                else:
                    for piece in (target, Path(f"{target}-wal"), Path(f"{target}-shm")):
                        piece.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(path.resolve(), folder.resolve(), fresh)

    @property
    def sql_url(self) -> str:
        """The SQL target as the nodes take it."""
        return f"sqlite:///{self.sql}"


async def until_definite(request: Callable[[], Awaitable[T]]) -> T:
    """Send a request, and the same request again, until the answer is definite.

    An unknown outcome is asked for again under the same token, so it is applied once; a request
    that surely was not applied starts anew.
    """
    again: Callable[[], Awaitable[T]] = request
    while True:
        try:
            return await again()
        except DeadlineExceeded as error:
            again = error.resend if error.maybe_applied else request
        except SpaceGridError as error:
            if not error.retryable:
                raise
            again = request


def probe_keys(partition_count: int) -> list[str]:
    """Find one key for each partition; `probe-N` in order of N, so always the same ones."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < partition_count:
        key = f"probe-{number}"
        found.setdefault(partition_of(encode_key(key), partition_count), key)
        number += 1
    return [found[partition] for partition in range(partition_count)]


async def kill_and_probe(
    cluster: LocalCluster, grid: AsyncGrid, name: str, keys: Sequence[str]
) -> float:
    """Kill a node with SIGKILL and measure how long its partitions take no writes.

    Args:
        cluster: The running nodes.
        grid: A client that is already connected.
        name: Node to kill.
        keys: One key a partition, from `probe_keys`.

    Returns:
        Milliseconds from the kill to the slowest first acknowledgement.
    """
    primaries = await asyncio.to_thread(cluster.primaries)
    orphaned = [partition for partition, node in primaries.items() if node == name]
    probes = grid.map(PROBE_MAP, key=str, value=bytes)
    killed_at = time.monotonic()
    await asyncio.to_thread(cluster.kill, name)

    async def probe(key: str) -> float:
        await until_definite(lambda: probes.put(key, b"1", timeout=30.0))
        return time.monotonic()

    acknowledged = await asyncio.gather(*(probe(keys[partition]) for partition in orphaned))
    return (max(acknowledged) - killed_at) * 1000 if acknowledged else 0.0


async def grid_rows(grid: AsyncGrid, maps: Sequence[Map[Any, Any]]) -> dict[str, Rows]:
    """Read whole maps through the client, as plain rows by key."""
    rows: dict[str, Rows] = {}
    for spec in maps:
        handle: AsyncMap[Any, Any] = grid.map(spec)
        rows[spec.name] = {
            tuple(str(part) for part in key)
            if isinstance(key, tuple)
            else (str(key),): msgspec.to_builtins(value)
            async for key, value in handle.items()
        }
    return rows


def stored_rows(
    cluster: LocalCluster, maps: Sequence[Map[Any, Any]]
) -> tuple[dict[str, Rows], int]:
    """Flush every pump, then read the maps from the LMDB store of each partition's live primary."""
    cluster.flush(timeout_s=FLUSH_TIMEOUT_S)
    folders = {
        partition: cluster.nodes[name].data / "lmdb"
        for partition, name in cluster.primaries().items()
    }
    return lmdb_rows(folders, frozenset(spec.name for spec in maps))
