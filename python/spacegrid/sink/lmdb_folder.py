"""The folder of an LMDB store: whose it is, and who has it open.

``store.json`` names the cluster, the layout and the store; ``owner.lock`` is locked for as long as
a process has the store open, so that a store that can be opened is proof that its last process has
ended.

Who calls: `spacegrid.sink.lmdb`.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from spacegrid.errors import SinkMismatch, SinkUnavailable
from spacegrid.sink.lmdb_layout import STORE_FORMAT

__all__ = ["Identity", "StoreFolder"]


class Identity(msgspec.Struct):
    """Content of store.json."""

    format: int
    life: str
    partition_count: int
    store_id: str


class StoreFolder:
    """The files beside LMDB's own.

    Args:
        folder: Where they are; made when it is first locked.
        name: What to call the store in messages.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._descriptor: int | None = None

    def lock(self) -> None:
        """Let no other process open the store, and no other sink of this one.

        Raises:
            SinkUnavailable: Another has it open.
            OSError: The disk refuses.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / "owner.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise SinkUnavailable(
                f"{self._name} is open in process {holder or 'unknown'}", sink=self._name
            ) from None
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def unlock(self) -> None:
        """Let others open it. Safe to call twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def read(self, life: str, partition_count: int) -> Identity | None:
        """Whose store it is; None: there is none yet.

        Raises:
            SinkMismatch: It is another cluster's, has another layout, or can't be read.
        """
        try:
            data = (self._folder / "store.json").read_bytes()
        except FileNotFoundError:
            return None
        try:
            identity = msgspec.json.decode(data, type=Identity)
        except msgspec.MsgspecError as error:
            raise SinkMismatch(f"{self._name}: store.json is damaged: {error}") from error
        for what, stored, ours in (
            ("format", identity.format, STORE_FORMAT),
            ("cluster", identity.life, life),
            ("partition count", identity.partition_count, partition_count),
        ):
            if stored != ours:
                raise SinkMismatch(
                    f"{self._name} holds {what} {stored}, this node needs {what} {ours}\n"
                    "hint: name another folder, or delete this one (spacegrid up: --fresh)",
                    sink=self._name,
                )
        return identity

    def data_file(self) -> tuple[int, int] | None:
        """Device and inode of data.mdb; None: there is none."""
        try:
            found = os.stat(self._folder / "data.mdb")
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def reserve(self, size: int) -> None:
        """Have the disk set so many bytes aside for data.mdb.

        A full disk is met here, where nothing is written yet. Inside of a transaction LMDB could
        not tell it from a broken one: a write that is cut short is EIO to it.

        Raises:
            OSError: There is no room.
        """
        descriptor = os.open(self._folder / "data.mdb", os.O_RDWR)
        try:
            os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(descriptor)

    def write(self, identity: Identity) -> None:
        """Replace store.json so that it is, after any crash, the old one or the new one.

        Raises:
            OSError: The disk refuses.
        """
        path = self._folder / "store.json"
        new = path.with_suffix(".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.write(descriptor, msgspec.json.encode(identity))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(new, path)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
