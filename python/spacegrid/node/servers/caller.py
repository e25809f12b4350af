"""Who makes a call that came through the node's port: the port says so, in headers of its own.

The port (rust/net) lets a call in or not, by the table of all calls; it removes these headers from
what comes from outside. What is left to check here is what only the message says: a node speaks for
itself. Runs on the grid loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import grpc

from spacegrid.node.log import get_logger
from spacegrid.security.access import Role, rights

__all__ = ["Caller", "caller_of", "require_name"]

_ROLE: Final = "spacegrid-caller-role"
_NAME: Final = "spacegrid-caller-name"

_log = get_logger("security")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls.

    Attributes:
        role: What it is to the cluster.
        name: Name of its node or token.
    """

    role: Role
    name: str

    @property
    def rights(self) -> int:
        """What it may do with data."""
        return rights(self.role)


def caller_of(context: Any) -> Caller:
    """Who makes a call. Without the port's headers it is nobody, with no role."""
    found = dict(context.invocation_metadata() or ())
    role, name = found.get(_ROLE), found.get(_NAME)
    if not isinstance(role, str) or not isinstance(name, str):
        return Caller(Role(0), "")
    return Caller(Role[role.upper()], name)


async def require_name(context: Any, name: str) -> None:
    """End a call of a node that says it is another one than its certificate names."""
    caller = caller_of(context)
    if caller.role is Role.LOCAL or (caller.role is Role.NODE and caller.name == name):
        return
    _log.warning("refused", reason="wrong_name", caller=caller.name, says=name)
    await context.abort(
        grpc.StatusCode.PERMISSION_DENIED,
        f"the certificate names {caller.name!r}, the hello names {name!r}",
    )
