"""Certificates and tokens of a cluster on this machine, made for it: `spacegrid up --tls`, tests.

Invariant: made once, at the first start, and used again by later ones. The authority's key lies
beside the nodes' data here, which a cluster of many machines must never do.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from spacegrid.security import tokens
from spacegrid.security.authority import Authority
from spacegrid.security.client import ClientSecurity, client_security
from spacegrid.security.secret import read_secret

__all__ = ["SECRETS", "ClusterSecrets"]

SECRETS: Final = "secrets"
"""Name of the folder under a cluster's data."""
ADDRESSES: Final = ("127.0.0.1", "127.0.0.2", "127.0.0.3", "::1", "localhost")


class ClusterSecrets:
    """The folder with `ca.crt`, one `.pem` a node, `tokens` and `admin.token`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def authority(self) -> Path:
        """Certificate of the authority: what clients are given."""
        return self.folder / "ca.crt"

    @property
    def tokens(self) -> Path:
        """The file that nodes read tokens from."""
        return self.folder / "tokens"

    @property
    def admin_token(self) -> Path:
        """A file with a token of the role admin."""
        return self.folder / "admin.token"

    def node_arguments(self, name: str) -> list[str]:
        """What a node's command line needs; everything is made that is not there yet."""
        certificate = self.certificate(name)
        self._make_tokens()
        return [
            "--tls-ca", str(self.authority),
            "--tls-cert", str(certificate),
            "--tokens", str(self.tokens),
        ]  # fmt: skip

    def certificate(self, name: str) -> Path:
        """File with the certificate and key of that name."""
        path = self.folder / f"{name}.pem"
        if not path.exists():
            self._authority().issue(name, ADDRESSES, datetime.now(UTC))
        return path

    def admin(self) -> ClientSecurity:
        """How an operator proves itself."""
        token = read_secret(self.admin_token, "token file").reveal()
        return client_security(self.authority, token)

    def token(self, name: str, role: str) -> str:
        """Make one more token."""
        return tokens.add(self.tokens, name, role).reveal()

    def _authority(self) -> Authority:
        if not self.authority.exists():
            return Authority.create(self.folder, "local", datetime.now(UTC))
        return Authority(self.folder)

    def _make_tokens(self) -> None:
        if not self.admin_token.exists():
            made = tokens.add(self.tokens, "admin", "admin")
            tokens.write_private(self.admin_token, made.reveal() + "\n")
