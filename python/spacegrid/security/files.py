"""What a node is given to prove itself, read from files and read again when they have changed.

A node has the authority's certificate (`ca.crt`), its own certificate and key (one `.pem`, or two
files) and the file of tokens. Invariants: what is loaded fits together (the key is the
certificate's, the authority has signed it, the name in it is the node's own); a file that can't be
read later changes nothing, and says so in the log, since a node must not fall over a typing error
in a token file.

Who calls: the node's daemon, the command line, `authority`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from spacegrid.errors import ConfigError
from spacegrid.security.secret import check_private

__all__ = [
    "EXPIRY_WARNING",
    "Material",
    "Watched",
    "expiry_text",
    "load_material",
    "node_dns",
    "node_uri",
    "read_certificate",
]

EXPIRY_WARNING: Final = timedelta(days=30)
"""From then on `certs list`, `status` of the authority and the nodes' logs warn."""
_SCHEME: Final = "spacegrid"


def node_dns(name: str) -> str:
    """The DNS name in a node's certificate that other nodes ask for."""
    return f"{name}.node.spacegrid"


def node_uri(cluster: str, name: str) -> str:
    """The URI in a node's certificate that names it."""
    return f"{_SCHEME}://{cluster}/node/{name}"


@dataclass(frozen=True, slots=True)
class Material:
    """A node's certificates and key, as PEM.

    Attributes:
        authority: Certificate of the authority.
        certificate: The node's own.
        key: Its private key.
        cluster: The cluster that the certificate names.
        name: The node that it names.
        not_after: When the earlier of the two certificates ends.
    """

    authority: bytes
    certificate: bytes
    key: bytes = field(repr=False)
    cluster: str
    name: str
    not_after: datetime

    @property
    def pem(self) -> tuple[bytes, bytes, bytes]:
        """Authority, certificate and key."""
        return self.authority, self.certificate, self.key


def load_material(authority: Path, certificate: Path, key: Path) -> Material:
    """Read and check a node's files; certificate and key may be one file.

    Raises:
        ConfigError: A file is not there, others can read the key, or the files don't fit together.
    """
    check_private(key, "node key")
    signer = read_certificate(authority, "authority certificate")
    own = read_certificate(certificate, "node certificate")
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"node key {key} is no PEM key without a password: {error}") from None
    if _public(private.public_key()) != _public(own.public_key()):
        raise ConfigError(f"node key {key} is not the key of {certificate}")
    try:
        own.verify_directly_issued_by(signer)
    except (ValueError, TypeError, InvalidSignature):
        raise ConfigError(f"{certificate} was not signed by {authority}") from None
    cluster, name = _names(own, certificate)
    return Material(
        authority=_pem(signer),
        certificate=_pem(own),
        key=private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        cluster=cluster,
        name=name,
        not_after=min(own.not_valid_after_utc, signer.not_valid_after_utc),
    )


def _names(certificate: x509.Certificate, path: Path) -> tuple[str, str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    for uri in uris:
        parts = urlsplit(uri)
        if parts.scheme == _SCHEME and parts.path.startswith("/node/"):
            return parts.netloc, parts.path.removeprefix("/node/")
    raise ConfigError(
        f"{path} names no node\nhint: spacegrid certs node NAME --address HOST makes one that does"
    )


def read_certificate(path: Path, what: str) -> x509.Certificate:
    """Read the first certificate of a PEM file.

    Raises:
        ConfigError: There is none.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"can't read {what} {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{what} {path} is no PEM certificate: {error}") from None


def expiry_text(not_after: datetime, now: datetime) -> str:
    """What to say about the end of a certificate: empty while it is far away."""
    left = not_after - now
    if left <= timedelta(0):
        return f"expired on {not_after:%Y-%m-%d}: nobody accepts it any more"
    if left <= EXPIRY_WARNING:
        return f"expires in {left.days} days, on {not_after:%Y-%m-%d}"
    return ""


class Watched:
    """Files that are read again when one of them has changed.

    Args:
        paths: The files.
        load: Reads them and puts them to use.
    """

    def __init__(self, paths: tuple[Path, ...], load: Callable[[], None]) -> None:
        self._paths = paths
        self._load = load
        self._seen = self._stamps()
        load()

    @property
    def names(self) -> list[str]:
        """The files."""
        return [str(path) for path in self._paths]

    def look(self) -> bool:
        """Read them again if they have changed; whether that was so.

        Raises:
            ConfigError: They can't be used as they are now; tried again at the next look.
        """
        stamps = self._stamps()
        if stamps == self._seen:
            return False
        self._load()
        self._seen = stamps
        return True

    def _stamps(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _public(key: object) -> bytes:
    assert hasattr(key, "public_bytes")
    data: bytes = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return data
