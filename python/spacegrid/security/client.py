"""How the connecting side proves itself: a client by its token, a node by its certificate.

Where nothing is given nothing is proved, and connections are plain, as a port on loopback wants it.
A token never leaves without TLS. Who calls: `connect`, the command line, the nodes towards each
other.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Final

from spacegrid.errors import ConfigError
from spacegrid.security.secret import Secret, read_secret

__all__ = ["PLAIN", "ClientSecurity", "client_security"]

CA_VARIABLE: Final = "SPACEGRID_TLS_CA"
TOKEN_VARIABLE: Final = "SPACEGRID_TOKEN"
TOKEN_FILE_VARIABLE: Final = "SPACEGRID_TOKEN_FILE"


@dataclass(frozen=True)
class ClientSecurity:
    """What a connection is opened with.

    Attributes:
        authority: Certificate of the cluster's authority as PEM; None: no TLS.
        token: A client's token; None: none.
        certificate: A node's own certificate as PEM; None: a client.
        key: Its key.
        pair: The file that both are in.
    """

    authority: bytes | None = None
    token: Secret | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    pair: tuple[Path, Path] | None = None

    @property
    def authorization(self) -> str | None:
        """The header of that name; None without a token."""
        return f"Bearer {self.token.reveal()}" if self.token and self.authority else None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        header = self.authorization
        return () if header is None else (("authorization", header),)

    @cached_property
    def context(self) -> ssl.SSLContext | None:
        """For a link of our own; None: plain."""
        if self.authority is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=self.authority.decode("ascii"))
        context.set_alpn_protocols(["h2"])
        if self.pair is not None:
            context.load_cert_chain(*self.pair)
        return context


PLAIN: Final = ClientSecurity()
"""No TLS, no token."""


def client_security(
    tls: str | PathLike[str] | None = None,
    token: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> ClientSecurity:
    """Put a client's proof together from arguments and environment.

    Args:
        tls: File of the authority's certificate (`ca.crt`); None: `SPACEGRID_TLS_CA`, or no TLS;
            empty: no TLS.
        token: The token; None: `SPACEGRID_TOKEN`, or the file `SPACEGRID_TOKEN_FILE` names.
        environ: Environment to look in; None: the process's own.

    Raises:
        ConfigError: The certificate can't be read, others can read the token's file, or a token is
            given without TLS.
    """
    environ = os.environ if environ is None else environ
    file = environ.get(CA_VARIABLE) if tls is None else tls
    if not file:
        if token is not None:
            raise ConfigError(
                "a token without TLS would be seen by others\nhint: tls='ca.crt', the "
                "certificate of the cluster's authority"
            )
        return PLAIN
    return ClientSecurity(_authority(Path(file)), _token(token, environ))


def _authority(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"can't read the authority's certificate {path}: {error.strerror}") from (
            error
        )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=data.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise ConfigError(f"{path} is no PEM certificate") from None
    return data


def _token(token: str | None, environ: Mapping[str, str]) -> Secret | None:
    text = token if token is not None else environ.get(TOKEN_VARIABLE)
    if text:
        secret = Secret(text.strip())
    elif environ.get(TOKEN_FILE_VARIABLE):
        secret = read_secret(Path(environ[TOKEN_FILE_VARIABLE]), "token file")
    else:
        return None
    if not secret.reveal().isascii() or not secret.reveal().isprintable():
        raise ConfigError("the token has characters that no token has")
    return secret
