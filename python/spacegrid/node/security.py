"""A node's security while it runs: what it loaded, what it lets in, what it writes to the log.

Certificates and tokens are read again when their files change; what was refused is logged, in
bounded numbers; a certificate that ends soon, and a port that lets anyone in, are said again and
again. Invariants: files that can't be used leave everything as it was; no secret is logged. Runs on
the grid loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from spacegrid import clock
from spacegrid._core import Gate
from spacegrid.config import NodeConfig
from spacegrid.errors import ConfigError
from spacegrid.node.log import get_logger
from spacegrid.security import access, tokens
from spacegrid.security.client import PLAIN, ClientSecurity
from spacegrid.security.files import Material, Watched, expiry_text, load_material

__all__ = ["NodeSecurity", "named"]

LOOK_S: Final = 1.0
"""Time between two looks at the files."""
OVERRIDE_S: Final = 60.0
EXPIRY_S: Final = 24 * 3600.0

_log = get_logger("security")


class NodeSecurity:
    """What a node proves itself with and whom it lets in.

    Attributes:
        material: Certificates and key; None: no TLS, and everyone who reaches the port is let in.
        gate: Decides about each request; None: everyone is let in.
        changed: Called with new certificates, once they are loaded.
    """

    def __init__(self, config: NodeConfig) -> None:
        """Load everything.

        Raises:
            ConfigError: A file is not there, others can read it, or the files don't fit together.
        """
        self._config = config
        self.material: Material | None = None
        self.gate: Gate | None = None
        self.changed: Callable[[Material], None] = _nothing
        self._client = PLAIN
        self._watched: list[Watched] = []
        self._override_at = self._expiry_at = 0.0
        if config.tls_cert is not None:
            self._load(config)

    @property
    def client(self) -> ClientSecurity:
        """How this node proves itself to other nodes."""
        return self._client

    def _load(self, config: NodeConfig) -> None:
        assert config.tls_ca
        assert config.tls_cert
        assert config.tokens
        files = config.tls_ca, config.tls_cert, config.tls_key or config.tls_cert
        tokens_file = config.tokens

        def certificates() -> None:
            material = load_material(*files)
            if config.name and material.name != config.name:
                raise ConfigError(
                    f"this node is {config.name!r}, and {files[1]} names {material.name!r}"
                )
            if self.material is not None and self.material.cluster != material.cluster:
                raise ConfigError(f"{files[1]} is of cluster {material.cluster!r}")
            self.material = material
            self._client = ClientSecurity(
                material.authority,
                certificate=material.certificate,
                key=material.key,
                pair=files[1:],
            )
            self._expiry_at = 0.0
            self.changed(material)

        def let_in() -> None:
            assert self.gate is not None
            self.gate.set_tokens(tokens.read(tokens_file))

        self._watched.append(Watched(files, certificates))
        assert self.material is not None
        self.gate = Gate(self.material.cluster, access.methods())
        self._watched.append(Watched((tokens_file,), let_in))

    async def run(self) -> None:
        """Look after it, for as long as the node runs."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Read changed files again, and write what is to be said to the log."""
        for watched in self._watched:
            try:
                if watched.look():
                    _log.info("read again", files=watched.names)
            except ConfigError as error:
                _log.error("not read again; what was loaded before stays", error=str(error))
        self._tell_refusals()
        self._tell_expiry()
        self._tell_override()

    def _tell_refusals(self) -> None:
        if self.gate is None:
            return
        lines, dropped = self.gate.take_audit()
        for code, method, caller, remote in lines:
            _log.warning("refused", reason=code, method=method, caller=caller, remote=remote)
        if dropped:
            _log.warning("refused", reason="more", count=dropped)

    def _tell_expiry(self) -> None:
        now = clock.monotonic_s()
        if self.material is None or (self._expiry_at and now < self._expiry_at + EXPIRY_S):
            return
        self._expiry_at = now
        text = expiry_text(self.material.not_after, datetime.now(UTC))
        if text:
            _log.warning(f"certificate {text}", hint="spacegrid certs renew")

    def _tell_override(self) -> None:
        now = clock.monotonic_s()
        if not self._config.insecure_let_anyone_in or self.gate is not None:
            return
        if not self._override_at or now >= self._override_at + OVERRIDE_S:
            self._override_at = now
            _log.warning(
                "insecure_let_anyone_in is set: whoever reaches the port may do everything",
                listen=self._config.listen,
            )


def named(config: NodeConfig) -> NodeConfig:
    """The settings with the name from the node's certificate, where none was given.

    Raises:
        ConfigError: The certificate can't be used.
    """
    if config.name or config.tls_cert is None:
        return config
    assert config.tls_ca
    key = config.tls_key or config.tls_cert
    return replace(config, name=load_material(config.tls_ca, config.tls_cert, key).name)


def _nothing(_material: Material) -> None:
    """Nobody wants to know yet."""
