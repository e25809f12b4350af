"""Text that must not be seen: in no log, no repr, no traceback of a frame's locals."""

from __future__ import annotations

import hmac
import os
import stat
from pathlib import Path

from spacegrid.errors import ConfigError

__all__ = ["Secret", "check_private", "read_secret"]


class Secret:
    """A text whose repr does not show it; `reveal` gives it to the one place that needs it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(
            self._text.encode(), other._text.encode()
        )

    def __hash__(self) -> int:
        return hash(Secret)

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"


def check_private(path: Path, what: str) -> None:
    """Refuse a file that others than its owner can read or change.

    Raises:
        ConfigError: It is not there, or its mode is wider than 0600.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError(f"can't read {what} {path}: {error.strerror}") from error
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(
            f"{what} {path} has mode {stat.S_IMODE(found.st_mode):04o}, allowed is 0600: others "
            f"can read it\nhint: chmod 600 {path}"
        )
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"{what} {path} belongs to user {found.st_uid}, not to the one that runs this"
        )


def read_secret(path: Path, what: str) -> Secret:
    """Read a secret from a file that only its owner can read.

    Raises:
        ConfigError: As `check_private`, or it is empty.
    """
    check_private(path, what)
    text = path.read_text().strip()
    if not text:
        raise ConfigError(f"{what} {path} is empty")
    return Secret(text)
