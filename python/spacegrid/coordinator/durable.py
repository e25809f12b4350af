"""The coordinator's durable file: all of its state, replaced as a whole.

Layout: magic "SGCO", version u16, zero u16, length u32, crc32 u32 of the body, body (msgpack), all
little endian. A new state is written beside it, synced, renamed over it, and the folder is synced,
so after a crash the file is the old state or the new one. What is damaged is refused, never
repaired: a coordinator that guesses would give an incarnation or a term twice.

Who calls: local_server.py, and an embedded grid that restarts from disk.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from pathlib import Path

import msgspec

from spacegrid.coordinator.authority import AuthorityState
from spacegrid.errors import ConfigError, InvariantViolation

__all__ = ["FILE_BYTES_MAX", "DurableFile"]

#: A table of 65,535 partitions with three copies has about 4 MiB.
FILE_BYTES_MAX = 256 << 20
_VERSION = 1
_HEADER = struct.Struct("<4sHHII")
_MAGIC = b"SGCO"


class DurableFile:
    """One file, held under a lock from opening to `close`."""

    def __init__(self, path: Path) -> None:
        """Lock the file.

        Args:
            path: The file; its folder is made. A lock file of the same name plus ``.lock`` stays.

        Raises:
            ConfigError: Another process holds it.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ConfigError(f"{path} is in use by another coordinator") from None

    def load(self) -> AuthorityState | None:
        """The state as it was saved last; None when there is no file yet.

        Raises:
            ConfigError: The file is damaged or of another version.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        body = self._body(data)
        try:
            state = msgspec.msgpack.decode(body, type=AuthorityState)
            state.table.check()
        except (msgspec.MsgspecError, InvariantViolation) as error:
            raise ConfigError(f"{self.path} is damaged: {error}") from None
        return state

    def save(self, state: AuthorityState) -> None:
        """Make a state durable.

        Raises:
            OSError: It is not; the file is as it was before.

        Cost: one write, one fsync of the file and one of its folder.
        """
        body = msgspec.msgpack.encode(state)
        new = self.path.with_name(self.path.name + ".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(_HEADER.pack(_MAGIC, _VERSION, 0, len(body), zlib.crc32(body)))
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._lock)

    def _body(self, data: bytes) -> bytes:
        hint = "\nhint: restore it from a copy; without one the cluster has to be made anew"
        if not _HEADER.size <= len(data) <= FILE_BYTES_MAX:
            raise ConfigError(f"{self.path} is damaged: it has {len(data)} bytes{hint}")
        magic, version, _, length, checksum = _HEADER.unpack_from(data)
        body = data[_HEADER.size :]
        if magic != _MAGIC:
            raise ConfigError(f"{self.path} is no coordinator file: it begins with {magic!r}")
        if version != _VERSION:
            raise ConfigError(f"{self.path} has version {version}, this one reads {_VERSION}")
        if length != len(body):
            raise ConfigError(f"{self.path} is damaged: {len(body)} bytes, {length} expected{hint}")
        if checksum != zlib.crc32(body):
            raise ConfigError(
                f"{self.path} is damaged: checksum {zlib.crc32(body):#010x}, "
                f"{checksum:#010x} stored{hint}"
            )
        return body
