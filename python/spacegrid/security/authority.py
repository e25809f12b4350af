"""The cluster's own certificate authority: `spacegrid certs`.

One folder has `ca.crt`, `ca.key` and a pair of files for each node that was issued. The authority
signs nothing but nodes: whoever shows a certificate of it is a node of the cluster, and clients
come with tokens. So `ca.key` belongs on no node, and one authority belongs to one cluster.

A node's certificate names the node in a URI, ``spacegrid://CLUSTER/node/NAME``, which the other
side compares with what the node says of itself; in the DNS name ``NAME.node.spacegrid``, which a
node that connects asks for; and the addresses under which clients reach it. Keys are ECDSA P-256.

Who calls: the command line, `up`. The time is an argument.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from spacegrid.errors import ConfigError
from spacegrid.security.files import node_dns, node_uri, read_certificate
from spacegrid.security.secret import check_private
from spacegrid.security.tokens import write_private

__all__ = ["Authority", "Issued", "issued"]

CA_DAYS: Final = 3650
NODE_DAYS: Final = 365
_BACKDATE: Final = timedelta(minutes=5)
"""Clocks of machines differ."""
_CLUSTER: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate in the authority's folder.

    Attributes:
        name: Node name; `ca` for the authority's own.
        path: Its file.
        addresses: Addresses in it.
        not_after: When it ends.
    """

    name: str
    path: Path
    addresses: tuple[str, ...]
    not_after: datetime


class Authority:
    """A certificate authority in a folder.

    Args:
        folder: Where `ca.crt` and `ca.key` are.

    Raises:
        ConfigError: They are not there, or others can read the key.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._certificate = read_certificate(folder / "ca.crt", "authority certificate")
        self._key = _read_key(folder / "ca.key")
        self.cluster = _common_name(self._certificate)

    @classmethod
    def create(cls, folder: Path, cluster: str, now: datetime, days: int = CA_DAYS) -> Authority:
        """Make a new authority.

        Args:
            folder: Made if it is not there.
            cluster: Name of the cluster: lower-case letters, digits and dashes.
            now: The time.
            days: How long it is good for.

        Raises:
            ConfigError: The name does not fit, or there is an authority already.
        """
        if not _CLUSTER.match(cluster):
            raise ConfigError(
                f"cluster name {cluster!r} is not 1 to 63 lower-case letters, digits and dashes"
            )
        if (folder / "ca.key").exists() or (folder / "ca.crt").exists():
            raise ConfigError(f"{folder} has an authority already; it is not replaced")
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "spacegrid"),
                x509.NameAttribute(NameOID.COMMON_NAME, cluster),
            ]
        )
        builder = _builder(name, name, key.public_key(), now, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        builder = builder.add_extension(_usage(authority=True), True)
        certificate = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False
        ).sign(key, hashes.SHA256())
        write_private(folder / "ca.key", _pem_key(key))
        _write_public(folder / "ca.crt", certificate)
        return cls(folder)

    def issue(
        self, name: str, addresses: Sequence[str], now: datetime, days: int = NODE_DAYS
    ) -> Issued:
        """Issue a node's certificate, with a new key; one that is there is replaced.

        Args:
            name: Node name, as in its `--name`: a DNS label in lower case.
            addresses: Host names and IP addresses under which it is reached.
            now: The time.
            days: How long it is good for; never longer than the authority.

        Raises:
            ConfigError: The name or an address does not fit, or none is given.
        """
        if not _LABEL.match(name):
            raise ConfigError(
                f"node name {name!r} is not 1 to 63 lower-case letters, digits and dashes, which a "
                "certificate needs"
            )
        if not addresses:
            raise ConfigError(f"no address for {name}\nhint: --address HOST, once for each")
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [_general_name(address) for address in addresses]
        names.append(x509.DNSName(node_dns(name)))
        names.append(x509.UniformResourceIdentifier(node_uri(self.cluster, name)))
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "spacegrid"),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
        end = min(now + timedelta(days=days), self._certificate.not_valid_after_utc)
        builder = _builder(subject, self._certificate.subject, key.public_key(), now, end=end)
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(authority=False), True),
            (x509.ExtendedKeyUsage(uses), False),
            (x509.SubjectAlternativeName(names), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False),
        ):
            builder = builder.add_extension(extension, critical)
        certificate = builder.sign(self._key, hashes.SHA256())
        # Both in one file and one rename: a node that reads them again never sees a pair that
        # differs.
        pem = certificate.public_bytes(serialization.Encoding.PEM) + _pem_key(key)
        path = self.folder / f"{name}.pem"
        write_private(path, pem)
        return _issued(path, certificate)

    def renew(self, name: str, now: datetime, days: int = NODE_DAYS) -> Issued:
        """Issue a node's certificate again, with its addresses and a new key. Raises as `issue`."""
        path = self.folder / f"{name}.pem"
        before = _issued(path, read_certificate(path, "certificate"))
        return self.issue(name, before.addresses, now, days)


def issued(folder: Path) -> list[Issued]:
    """Every certificate in an authority's folder, the authority's own first.

    Raises:
        ConfigError: There is no authority in it, or a file is no certificate.
    """
    authority = read_certificate(folder / "ca.crt", "authority certificate")
    found = [Issued("ca", folder / "ca.crt", (), authority.not_valid_after_utc)]
    for path in sorted(folder.glob("*.pem")):
        found.append(_issued(path, read_certificate(path, "certificate")))
    return found


def _issued(path: Path, certificate: x509.Certificate) -> Issued:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    name = _common_name(certificate)
    hosts = [host for host in names.get_values_for_type(x509.DNSName) if host != node_dns(name)]
    hosts += [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return Issued(name, path, tuple(hosts), certificate.not_valid_after_utc)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    days: int = 0,
    *,
    end: datetime | None = None,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(end or now + timedelta(days=days))
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        pass
    if not re.fullmatch(r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", address):
        raise ConfigError(f"address {address!r} is neither a host name nor an IP address")
    return x509.DNSName(address.lower())


def _common_name(certificate: x509.Certificate) -> str:
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if not found:
        raise ConfigError("the certificate has no name: it was not made by `spacegrid certs`")
    return str(found[0].value)


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    check_private(path, "authority key")
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"authority key {path} is no PEM key: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"authority key {path} was not made by `spacegrid certs`")
    return key


def _write_public(path: Path, certificate: x509.Certificate) -> None:
    write_private(path, certificate.public_bytes(serialization.Encoding.PEM))
    path.chmod(0o644)
