"""Tokens of clients: made here, kept as salted hashes in a file that the nodes read.

A token is shown once, when it is made. The file has a line a token: id, name, role, salt, hash;
each node has a copy and reads it again when it changes. Two tokens may have one name: that is how
one is replaced without a gap. Checking a token is the gate's (`rust/core/src/gate/tokens.rs`).

Who calls: `spacegrid token`, `up`, the nodes' settings. Invariant: a file that is written here has
mode 0600 and is never seen half written.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spacegrid._core import Gate, token_hash
from spacegrid.errors import ConfigError
from spacegrid.security.access import ROLE_NAMES
from spacegrid.security.secret import Secret, check_private

__all__ = ["TokenRow", "add", "read", "remove", "rows", "write_private"]

_HEAD: Final = "# spacegrid tokens: id name role salt hash\n"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_ID_BYTES: Final = 6
_SALT_BYTES: Final = 16
_SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class TokenRow:
    """What is kept of a token, without salt and hash.

    Attributes:
        id: Second part of the token.
        name: Who it was given to.
        role: read, write or admin.
    """

    id: str
    name: str
    role: str


def read(path: Path) -> str:
    """The text of a file of tokens, checked.

    Raises:
        ConfigError: It is not there, others can read it, or a line is no token.
    """
    check_private(path, "token file")
    text = path.read_text()
    try:
        Gate("", {}).set_tokens(text)
    except ValueError as error:
        raise ConfigError(f"token file {path}: {error}") from None
    return text


def rows(path: Path) -> list[TokenRow]:
    """Whose tokens a file has. Raises as `read`."""
    lines = (line.split("#")[0].split() for line in read(path).splitlines())
    return [TokenRow(*words[:3]) for words in lines if words]


def add(path: Path, name: str, role: str) -> Secret:
    """Make a token and put its hash into the file, which is made if it is not there.

    Args:
        path: The file.
        name: Who it is for: letters, digits, dots, dashes and underscores.
        role: read, write or admin.

    Returns:
        The token. It can't be had again.

    Raises:
        ConfigError: The name or the role does not fit, or as `read`.
    """
    if not _NAME.match(name):
        raise ConfigError(
            f"token name {name!r} is not 1 to 100 letters, digits, dots, dashes and underscores"
        )
    if role not in ROLE_NAMES:
        raise ConfigError(f"role {role!r} is not one of {', '.join(ROLE_NAMES)}")
    before = read(path) if path.exists() else _HEAD
    token_id, secret = secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES)
    salt = secrets.token_bytes(_SALT_BYTES)
    line = f"{token_id} {name} {role} {salt.hex()} {bytes(token_hash(salt, secret)).hex()}\n"
    write_private(path, before + ("" if before.endswith("\n") or not before else "\n") + line)
    return Secret(f"sg1.{token_id}.{secret}")


def remove(path: Path, who: str) -> int:
    """Take the tokens of a name, or the one of an id, out of the file; how many there were."""
    kept, removed = [], 0
    for line in read(path).splitlines():
        words = line.split("#")[0].split()
        if words and who in words[:2]:
            removed += 1
        else:
            kept.append(line + "\n")
    if removed:
        write_private(path, "".join(kept))
    return removed


def write_private(path: Path, content: str | bytes) -> None:
    """Write a file that only its owner can read, whole or not at all.

    Raises:
        ConfigError: The folder does not take it.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror}") from error
