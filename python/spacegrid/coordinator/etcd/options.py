"""How to reach etcd, and the times of a registration in it.

Who calls: cli, node/ and tests make them; client.py and coordinator.py use them.
"""

from __future__ import annotations

from pathlib import Path

import grpc
import msgspec

from spacegrid.config import NodeConfig, split_etcd
from spacegrid.errors import ConfigError
from spacegrid.security.secret import Secret, read_secret

__all__ = ["EtcdOptions", "EtcdTimes", "SpaceSettings"]


class EtcdTimes(msgspec.Struct, frozen=True):
    """When a node believes that it is registered, and when others may end it.

    A node is registered, by its own clock, until `valid_ms` after it last began a linearizable read
    that found its keys. Others end it when they saw it without a lease for `end_ms` by theirs. So
    `end_ms` is over `valid_ms` by more than clocks drift apart in that time, and an end is never
    wrong; etcd's own lease only says when to begin counting.

    Attributes:
        lease_s: The etcd lease of a node.
        keep_s: Pause between two renewals of it.
        check_s: Pause between two reads of the own keys.
        valid_ms: How long such a read is good for.
        end_ms: How long others wait before they end a node without a lease.
    """

    lease_s: int = 5
    keep_s: float = 1.0
    check_s: float = 0.5
    valid_ms: int = 3_000
    end_ms: int = 4_000


class SpaceSettings(msgspec.Struct, frozen=True):
    """What a space is created with by the first node that finds none.

    Attributes:
        partitions: Partition count.
        copies: Complete copies wanted.
        min_in_sync: Copies that a write needs.
        nodes: Nodes to wait for before the first placement.
        given: Names of those that were asked for: an existing space must have them.
    """

    partitions: int = 1024
    copies: int = 2
    min_in_sync: int = 2
    nodes: int = 2
    given: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: NodeConfig) -> SpaceSettings:
        """Those of a node's settings."""
        return cls(
            partitions=config.partitions,
            copies=config.copies,
            min_in_sync=config.write_copies,
            nodes=config.nodes or config.copies,
            given=config.given,
        )


class EtcdOptions(msgspec.Struct, frozen=True):
    """Where etcd is and who asks.

    Attributes:
        members: host:port of each member that may be asked.
        space: Name of the space in it.
        tls: Whether members are asked over TLS.
        ca: Certificates that members' are checked with; empty: the system's.
        cert: Own certificate chain; empty: none.
        key: Its private key.
        user: User name in etcd; empty: none.
        password: Its password.
    """

    members: tuple[str, ...]
    space: str
    tls: bool = False
    ca: bytes = b""
    cert: bytes = b""
    key: Secret = Secret("")
    user: str = ""
    password: Secret = Secret("")

    @classmethod
    def of(cls, config: NodeConfig) -> EtcdOptions:
        """Those of a node's settings; reads the files that they name.

        Raises:
            ConfigError: A file can't be read, or others can read a secret one, or the address is
                none of etcd.
        """
        tls, members, space = split_etcd(config.coordinator)
        return cls(
            members=members,
            space=space,
            tls=tls,
            ca=_file("etcd_ca", config.etcd_ca),
            cert=_file("etcd_cert", config.etcd_cert),
            key=_secret("etcd_key", config.etcd_key),
            user=config.etcd_user,
            password=_secret("etcd_password_file", config.etcd_password_file),
        )

    def credentials(self) -> grpc.ChannelCredentials | None:
        """For a channel to a member; None without TLS."""
        if not self.tls:
            return None
        key = self.key.reveal().encode()
        return grpc.ssl_channel_credentials(self.ca or None, key or None, self.cert or None)


def _secret(name: str, path: Path | None) -> Secret:
    return Secret("") if path is None else read_secret(path, name)


def _file(name: str, path: Path | None) -> bytes:
    if path is None:
        return b""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"can't read {name} {path}: {error.strerror}") from None
