"""Which database a URL names: the one place that knows the shared sinks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from spacegrid.errors import ConfigError
from spacegrid.sink.base import SharedSink, without_password
from spacegrid.types import Map


def open_shared_sink(
    url: str, *, life: bytes, owner: int, partition_count: int, maps: Iterable[Map[Any, Any]]
) -> SharedSink:
    """Make the shared sink of a URL; its pump connects.

    Args:
        url: `sqlite:///PATH`.
        life: Id of the cluster.
        owner: This node's incarnation.
        partition_count: Partitions of the cluster.
        maps: Maps that the installed units declare; those with columns become tables.

    Raises:
        ConfigError: No such kind of database, or maps that make no tables.
    """
    scheme = url.partition(":")[0]
    if scheme == "sqlite":
        from spacegrid.sink.sqlite import SqliteSink

        return SqliteSink(
            url, life=life.hex(), owner=owner, partition_count=partition_count, maps=maps
        )
    raise ConfigError(
        f"sql {without_password(url)!r}: no sink for {scheme!r}, known is sqlite:///PATH"
    )
