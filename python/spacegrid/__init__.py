"""Space-Based Architecture for Python: a replicated in-memory data grid, units beside their data.

The public names. They are imported when they are first used, so that ``import spacegrid`` is light:
a client needs no node, a hash ring needs no client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spacegrid import errors
    from spacegrid._core import HashRing, __version__
    from spacegrid.client.asynchronous import AsyncGrid, AsyncMap, connect
    from spacegrid.client.blocking import BlockingMap, Grid, connect_sync
    from spacegrid.embedded import open, open_sync
    from spacegrid.errors import SpaceGridError
    from spacegrid.types import Entry, Map, Stale
    from spacegrid.unit import Unit, handler

__all__ = [
    "AsyncGrid",
    "AsyncMap",
    "BlockingMap",
    "Entry",
    "Grid",
    "HashRing",
    "Map",
    "SpaceGridError",
    "Stale",
    "Unit",
    "__version__",
    "connect",
    "connect_sync",
    "errors",
    "handler",
    "open",
    "open_sync",
]

_HOMES = {
    "AsyncGrid": "client.asynchronous",
    "AsyncMap": "client.async_map",
    "BlockingMap": "client.blocking_map",
    "Entry": "types",
    "Grid": "client.blocking",
    "HashRing": "_core",
    "Map": "types",
    "SpaceGridError": "errors",
    "Stale": "types",
    "Unit": "unit",
    "__version__": "_core",
    "connect": "client.asynchronous",
    "connect_sync": "client.blocking",
    "handler": "unit",
    "open": "embedded",
    "open_sync": "embedded",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("spacegrid.errors")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'spacegrid' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"spacegrid.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
