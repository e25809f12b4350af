"""What a node has installed beside its data: units by name, and the maps they declare.

Callers: the daemon and the embedded grid, at start.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from spacegrid.errors import ConfigError
from spacegrid.types import Map
from spacegrid.unit import Unit, handlers_of, maps_of


def load_units(names: Iterable[str]) -> list[type[Unit]]:
    """Import unit classes; modules of the folder where the node was started are found too.

    Args:
        names: Each `module:Class`.

    Raises:
        ConfigError: A module or class is not there, or the class is no unit.
    """
    look_here()
    return [_load(name) for name in names]


def look_here() -> None:
    """Find modules of the current folder, which an installed command does not by itself."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def _load(name: str) -> type[Unit]:
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"unit {name!r}: can't import {module_name!r}: {error}\n"
            f"hint: modules are looked for in this folder ({Path.cwd()}) and on PYTHONPATH"
        ) from error
    found = getattr(module, class_name, None)
    if found is None:
        raise ConfigError(f"unit {name!r}: module {module_name!r} has no {class_name!r}")
    if not (isinstance(found, type) and issubclass(found, Unit)):
        raise ConfigError(f"unit {name!r} is no class derived from spacegrid.Unit")
    return found


def declared_maps(units: Sequence[type[Unit]]) -> list[Map[Any, Any]]:
    """All maps that the units declare."""
    return [declared for unit in units for declared in maps_of(unit).values()]


def route_arguments(units: Sequence[type[Unit]]) -> dict[str, str]:
    """Full name of each handler to the argument that carries its routing key."""
    return {one.full_name: one.route_by for unit in units for one in handlers_of(unit).values()}
