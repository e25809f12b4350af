"""What a node remembers of etcd beside its own data: how far it was when the node last looked.

An etcd that was restored from a backup under the same members and token is the same to everyone who
was not there. A node's data folder was: an etcd that is behind what is remembered there was put
back. The file is replaced as a whole and not synced: after a crash of the machine it may be a
little old, which only makes it say less.

Who calls: coordinator.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from spacegrid.coordinator.etcd.layout import Meta
from spacegrid.errors import ConfigError, ProtocolError

__all__ = ["Witness"]

FILE = "etcd.json"


class _Seen(msgspec.Struct, frozen=True):
    """The content of the file.

    Attributes:
        life: Id of the space, in hex.
        restored: `Meta.restored` then: a space that was restored since is another matter.
        revision: Revision of etcd.
    """

    life: str
    restored: int
    revision: int


class Witness:
    """The memory of one data folder; without a folder it knows nothing and refuses nothing."""

    def __init__(self, folder: Path | None) -> None:
        """Read what is there.

        Args:
            folder: The node's data folder; None: there is none.

        Raises:
            ConfigError: The file is damaged.
        """
        self._path = None if folder is None else folder / FILE
        self._seen: _Seen | None = None
        if self._path is not None and self._path.exists():
            try:
                self._seen = msgspec.json.decode(self._path.read_bytes(), type=_Seen)
            except msgspec.MsgspecError as error:
                raise ConfigError(f"{self._path} is damaged: {error}") from None

    def check(self, meta: Meta, revision: int) -> None:
        """Hold etcd to what is remembered.

        Args:
            meta: Of the space that is there.
            revision: Of etcd, from a linearizable read.

        Raises:
            ProtocolError: etcd is behind.
        """
        seen = self._seen
        if seen is None or seen.life != meta.life.hex() or seen.restored != meta.restored:
            return
        if revision < seen.revision:
            raise ProtocolError(
                f"etcd is at revision {revision} and has been at {seen.revision}, says "
                f"{self._path}: it was restored from a backup\n"
                "hint: when no node of it runs any more, say so with `spacegrid etcd-restored`"
            )

    def remember(self, meta: Meta, revision: int) -> None:
        """Write down how far etcd is, where that is news."""
        seen = _Seen(meta.life.hex(), meta.restored, revision)
        if self._path is None or seen == self._seen:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_name(FILE + ".new")
        new.write_bytes(msgspec.json.encode(seen))
        os.replace(new, self._path)
        self._seen = seen
