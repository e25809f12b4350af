"""Futures that finish a reply: for results that the core can't give as the caller wants them.

The core settles plain futures by itself. These are for the rest: defaults, entries with their
version, pages, and calls of many keys.

Who calls: `async_map`, `session`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

__all__ = ["ManyReply", "Reply"]

T = TypeVar("T")


class Reply(asyncio.Future[T]):
    """A future that turns the core's plain result into what the caller was promised.

    Args:
        loop: The session's loop.
        convert: Applied to the result.
        expected_version: The version that the request named, for `VersionMismatch`.
        raw: Whether the bytes are no value of a map (a page, an entry): only `convert` reads them.
    """

    __slots__ = ("convert", "expected_version", "raw")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        convert: Callable[[Any], T] | None = None,
        *,
        expected_version: int | None = None,
        raw: bool = False,
    ) -> None:
        super().__init__(loop=loop)
        self.convert = convert
        self.expected_version = expected_version
        self.raw = raw

    def set_result(self, value: Any) -> None:
        """Settle with the converted value, or with what the conversion raised."""
        if self.convert is None:
            super().set_result(value)
            return
        try:
            converted = self.convert(value)
        except Exception as error:
            super().set_exception(error)
        else:
            super().set_result(converted)


class ManyReply(Reply[T]):
    """The future of a ``*_many`` call; also settled key by key when some failed.

    Args:
        loop: The session's loop.
        keys: What the caller gave, in order.
        convert: Applied to the plain list of results.
        read: Turns one key's status, value, version and codec into its result, for the rest.
    """

    __slots__ = ("keys", "read")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        keys: Sequence[Any],
        convert: Callable[[Any], T],
        read: Callable[[int, Any, int, int], Any],
    ) -> None:
        super().__init__(loop, convert)
        self.keys = keys
        self.read = read
