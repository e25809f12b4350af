"""From the core's answers to gRPC's: which status an unary call ends with.

Each error of the tree has a gRPC status of its own kind; its code travels in the trailing metadata
`spacegrid-code`, so that a stub in another language can tell errors of one gRPC status apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from spacegrid.errors import DeadlineExceeded, SpaceGridError
from spacegrid.wire.status import TIMEOUT, Status, error_of

if TYPE_CHECKING:
    from spacegrid._core import Completion

CODE_METADATA: Final = "spacegrid-code"
UNARY_TIMEOUT_S: Final = 5.0
"""How long an unary call is tried for a caller that set no deadline."""
UNARY_TIMEOUT_S_MAX: Final = 3600.0
_ANSWER_MARGIN: Final = 0.9
"""Part of the caller's time after which it is answered, so that the answer arrives before the
deadline.
"""


def failure(completion: Completion, what: str) -> SpaceGridError:
    """The error that a completion stands for.

    Args:
        completion: With any status but OK and MISS.
        what: The operation, begins the message.
    """
    _, status, value, version, *_ = completion
    data = value if isinstance(value, bytes) else None
    if status == TIMEOUT and version:
        return error_of(version, data, what)
    if status == TIMEOUT:
        return DeadlineExceeded(f"{what}: no answer in time; surely not applied")
    if status == Status.UNKNOWN:
        return DeadlineExceeded(
            f"{what}: no definite answer in time, it may have been applied\n"
            "hint: send it again with the same token",
            maybe_applied=True,
        )
    return error_of(status, data, what, version=version)


async def abort(context: Any, error: SpaceGridError) -> None:
    """End an unary call with an error of the tree."""
    await context.abort(
        getattr(grpc.StatusCode, error.grpc_status),
        str(error),
        ((CODE_METADATA, error.code),),
    )


def timeout_of(context: Any) -> int:
    """Milliseconds that the caller waits; a default where it did not say."""
    remaining_s = context.time_remaining()
    if remaining_s is None:
        return int(1000 * UNARY_TIMEOUT_S)
    return max(1, int(1000 * _ANSWER_MARGIN * min(remaining_s, UNARY_TIMEOUT_S_MAX)))


def token_of(request: Any) -> tuple[int, int, bytes, int] | None:
    """The request's token as the core takes it; None where the caller did not give one."""
    if not request.HasField("token"):
        return None
    token = request.token
    return token.stream, token.number, b"", token.lowest_open or token.number
