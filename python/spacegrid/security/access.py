"""The table of every call and the roles that may make it. What is not in it is refused.

Roles of tokens: read < write < admin. A node shows itself by its certificate and has a role of its
own, which is none of these. `Data.Stream` and `Data.Exchange` carry operations of many kinds: there
the right is checked once more for each operation (`rust/core/src/gate/rights.rs`), so a token that
may only read gets PERMISSION for each put in its frames.

A test compares the table with the services in `proto/`: a new call without a row fails it.
"""

from __future__ import annotations

from enum import IntFlag, unique
from typing import Final

__all__ = ["METHODS", "RIGHTS_ALL", "ROLE_NAMES", "Role", "methods", "rights"]


@unique
class Role(IntFlag):
    """What a caller is to the cluster; the bits are those of `rust/core/src/gate/rights.rs`."""

    READ = 1
    WRITE = 2
    ADMIN = 4
    NODE = 8
    LOCAL = 16


ROLE_NAMES: Final = ("read", "write", "admin")
"""Roles that a token can have."""

RIGHTS_ALL: Final = 3
_RIGHTS_READ: Final = 1


def rights(role: Role) -> int:
    """What a role may do with data, as the core takes it: 1 read, 2 write and call."""
    if not role:
        return 0
    return _RIGHTS_READ if role is Role.READ else RIGHTS_ALL


_READERS: Final = Role.READ | Role.WRITE | Role.ADMIN
_WRITERS: Final = Role.WRITE | Role.ADMIN
_NODES: Final = Role.NODE

METHODS: Final[dict[str, dict[str, Role]]] = {
    "spacegrid.v1.Data": {
        "Open": _READERS,
        "GetRoutes": _READERS,
        "Stream": _READERS | _NODES,
        "Exchange": _READERS,
        "Get": _READERS,
        "GetMany": _READERS,
        "Put": _WRITERS,
        "PutMany": _WRITERS,
        "Delete": _WRITERS,
    },
    "spacegrid.v1.Units": {"Invoke": _WRITERS},
    "spacegrid.v1.Peers": {
        "Link": _NODES,
        "RequestChanges": _NODES,
        "Heartbeat": _NODES,
        "Drain": _NODES,
        "Reloaded": _NODES,
    },
    "spacegrid.v1.Coordinator": {
        "Join": _NODES,
        "Write": _NODES,
        "Campaign": _NODES,
        "Confirm": _NODES,
        "StopCluster": _NODES,
    },
    "spacegrid.v1.Admin": {
        "Status": _READERS,
        "Partitions": _READERS,
        "Accept": Role.ADMIN,
        "Reload": Role.ADMIN,
        "Flush": _WRITERS,
        "Stop": Role.ADMIN,
    },
    "grpc.health.v1.Health": {"Check": _READERS, "Watch": _READERS, "List": _READERS},
}
"""Service to call to the roles that may make it."""


def methods() -> dict[str, int]:
    """The table as the gate takes it: path of each call to bits of roles."""
    return {
        f"/{service}/{call}": int(roles)
        for service, calls in METHODS.items()
        for call, roles in calls.items()
    }
