"""Settings of a node: one table, four sources, checked once.

A setting is taken from the first source that has it: command-line flags, environment (`SPACEGRID_`
and the name in capitals), the TOML file (`[node]` table, or the top level), the default. Invariant:
a `NodeConfig` that exists is valid; everything after it may trust its values. Errors name the
setting, where it came from, the value and the limit. Called by `cli` and by `testing`; imports
nothing that is slow to import.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from spacegrid.errors import ConfigError

ADDRESS_DEFAULT: Final = "127.0.0.1:7700"
COORDINATOR_SCHEME: Final = "local://"
ETCD_SCHEMES: Final = ("etcd://", "etcds://")
ETCD_SPACE_DEFAULT: Final = "default"
PARTITIONS_DEFAULT: Final = 1024
PARTITIONS_MAX: Final = 65_535
COPIES_MAX: Final = 7
NODES_MAX: Final = 1_000
NAME_BYTES_MAX: Final = 255
BATCH_RECORDS_MAX: Final = 10_000
INTERVAL_S_MAX: Final = 3600.0
BUSY_POLL_US_MAX: Final = 10_000
TRANSFER_BYTES_PER_S_DEFAULT: Final = 64 << 20
"""Half of what a network of 1 Gbit/s carries: the other half is for clients."""
ENVIRONMENT_PREFIX: Final = "SPACEGRID_"
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("console", "json")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_SIZE = re.compile(r"(\d+)\s*([kmgt]?)(i?)b?\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Everything a node is told before it starts.

    Attributes:
        name: Node name, unique in the cluster; empty: `node-` and the port.
        zone: What fails together with this node (a rack, a site); empty: it fails alone. Copies of
            one partition are kept in distinct zones.
        listen: host:port to listen on; port 0 takes a free one. Loopback, unless TLS and tokens
            are set.
        advertise: Host that others reach this node at; empty: the one of `listen`.
        tls_ca: Certificate of the cluster's authority (`ca.crt`).
        tls_cert: This node's certificate; none: no TLS.
        tls_key: Its key; none: it is in `tls_cert`.
        tokens: File with the tokens that let clients in.
        insecure_let_anyone_in: Listen where others reach it without TLS: whoever reaches the port
            may do everything.
        coordinator: `local://host:port`, or `etcd://host:port[,host:port...][/SPACE]` (`etcds://`:
            over TLS); empty: a lone node, its own authority.
        etcd_ca: File of the certificates that etcd's are checked with; none: `tls_ca`, or the
            system's.
        etcd_cert: File of this node's own certificate for etcd; none: `tls_cert`, if that is set
            and `etcd_ca` is not.
        etcd_key: File of its private key.
        etcd_user: User name in etcd; empty: none.
        etcd_password_file: File of that user's password.
        data: Folder for everything the node keeps on disk; none: nothing is kept.
        units: Processing units to install, each `module:Class`.
        sql: URL of the shared SQL sink; empty: none.
        lmdb: Whether every copy is also kept in LMDB under `data`; only with `data`.
        quota_bytes: Memory for entries and records; 0: no quota.
        log_bytes: Memory for the records that copies and sinks still need.
        transfer_bytes_per_s: Bytes of snapshots that the node sends in a second at most, to all the
            copies that are made of what it is primary of; 0: no bound.
        partitions: Partition count of a space that this node creates: alone, or as the first in
            etcd. Every other space has its own.
        copies: Copies wanted in a space that this node creates.
        min_in_sync: Copies that must hold a write before it is acknowledged; 0: the smaller of
            `copies` and 2.
        nodes: Nodes that a space created in etcd waits for before its first placement; 0: `copies`.
        pump_batch_records: Records in one batch to a sink at most.
        pump_interval_s: Seconds a sink may lag behind before a batch that is not full is written.
        busy_poll_us: Microseconds that the net thread looks for more frames before it sleeps, while
            frames come one after the other and nobody else wants its core; 0: never.
        switch_interval_s: Seconds the interpreter lets a thread run on while another waits.
        drain_timeout_s: Seconds a draining node waits for its partitions to move.
        via: Other addresses under which this node reaches other nodes, each `name=host:port`: the
            way of tests to put a fault proxy onto one directed link.
        log_level: debug, info, warning or error.
        log_format: console or json.
        given: Names of the settings that were given, as opposed to left at their defaults.
    """

    name: str = ""
    zone: str = ""
    listen: str = ADDRESS_DEFAULT
    advertise: str = ""
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tokens: Path | None = None
    insecure_let_anyone_in: bool = False
    coordinator: str = ""
    etcd_ca: Path | None = None
    etcd_cert: Path | None = None
    etcd_key: Path | None = None
    etcd_user: str = ""
    etcd_password_file: Path | None = None
    data: Path | None = None
    units: tuple[str, ...] = ()
    sql: str = ""
    lmdb: bool = True
    quota_bytes: int = 0
    log_bytes: int = 64 << 20
    transfer_bytes_per_s: int = TRANSFER_BYTES_PER_S_DEFAULT
    partitions: int = PARTITIONS_DEFAULT
    copies: int = 2
    min_in_sync: int = 0
    nodes: int = 0
    pump_batch_records: int = 1000
    pump_interval_s: float = 5.0
    busy_poll_us: int = 200
    switch_interval_s: float = 0.0001
    drain_timeout_s: float = 30.0
    via: tuple[str, ...] = ()
    log_level: str = "info"
    log_format: str = "console"
    given: frozenset[str] = frozenset()

    @property
    def listen_host(self) -> str:
        """Host part of `listen`."""
        return split_address(self.listen)[0]

    @property
    def listen_port(self) -> int:
        """Port part of `listen`; 0 takes a free one."""
        return split_address(self.listen)[1]

    @property
    def via_addresses(self) -> dict[str, str]:
        """`via` as node name to address."""
        return dict(item.split("=", 1) for item in self.via)

    @property
    def advertised_host(self) -> str:
        """Host under which others reach this node."""
        return self.advertise or self.listen_host

    @property
    def write_copies(self) -> int:
        """Copies a write needs, with the default worked out."""
        return self.min_in_sync or min(self.copies, 2)


def split_address(address: str) -> tuple[str, int]:
    """Split host:port; brackets around an IPv6 host are taken off.

    Raises:
        ConfigError: No port, or one outside 0..65,535.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f"address {address!r} is not host:port with a port of at most 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


def split_etcd(address: str) -> tuple[bool, tuple[str, ...], str]:
    """Split ``etcd://host:port[,host:port...][/SPACE]``.

    Returns:
        Whether etcd is reached over TLS, the members' addresses, and the name of the space in it.

    Raises:
        ConfigError: It is something else, or the space's name is no name.
    """
    scheme, _, rest = address.partition("://")
    members, slash, space = rest.partition("/")
    if scheme not in ("etcd", "etcds") or not members:
        raise ConfigError(f"coordinator {address!r} is not etcd://host:port[,host:port...][/SPACE]")
    if not slash:
        space = ETCD_SPACE_DEFAULT
    if not _NAME.match(space) or len(space) > NAME_BYTES_MAX:
        raise ConfigError(
            f"space {space!r} in {address!r} is not 1 to {NAME_BYTES_MAX} letters, digits, dots, "
            "dashes and underscores"
        )
    for member in members.split(","):
        split_address(member)
    return scheme == "etcds", tuple(members.split(",")), space


def join_address(host: str, port: int) -> str:
    """Put host and port together; brackets around an IPv6 host are put on."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether every address that a host name stands for is this machine's own loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(str(i[4][0])).is_loopback for i in found)


def parse_size(text: str | int) -> int:
    """Read a size in bytes: a number, or one with k, M, G or T (times 1,000) or Ki, Mi, Gi, Ti
    (times 1,024).
    """
    if isinstance(text, int):
        return text
    match = _SIZE.match(text.strip())
    if match is None:
        raise ConfigError(f"size {text!r} is not a number of bytes such as 1000000, 512MiB or 2GB")
    power = " kmgt".index(match[2].lower() or " ")
    size: int = int(match[1]) * (1024 if match[3] else 1000) ** power
    return size


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{value!r} is not text")
    return value


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ConfigError(f"{value!r} is not one of true, false")


def _number(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return int(_text(value).replace("_", ""))
    except ValueError:
        raise ConfigError(f"{value!r} is not a whole number") from None


def _seconds(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{value!r} is not a number of seconds") from None


def _path(value: Any) -> Path | None:
    return Path(value).expanduser() if str(value) else None


def _words(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(word for word in re.split(r"[,\s]+", value) if word)
    if isinstance(value, Sequence):
        return tuple(_text(item) for item in value)
    raise ConfigError(f"{value!r} is not a list of words")


_PARSERS: Final[dict[str, Callable[[Any], Any]]] = {
    "etcd_ca": _path,
    "etcd_cert": _path,
    "etcd_key": _path,
    "etcd_password_file": _path,
    "data": _path,
    "tls_ca": _path,
    "tls_cert": _path,
    "tls_key": _path,
    "tokens": _path,
    "insecure_let_anyone_in": _flag,
    "units": _words,
    "via": _words,
    "lmdb": _flag,
    "quota_bytes": parse_size,
    "log_bytes": parse_size,
    "transfer_bytes_per_s": parse_size,
    "partitions": _number,
    "copies": _number,
    "min_in_sync": _number,
    "nodes": _number,
    "pump_batch_records": _number,
    "pump_interval_s": _seconds,
    "busy_poll_us": _number,
    "switch_interval_s": _seconds,
    "drain_timeout_s": _seconds,
}
_NAMES: Final = tuple(f.name for f in fields(NodeConfig) if f.name != "given")


def load(
    flags: Mapping[str, Any],
    *,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> NodeConfig:
    """Put a node's settings together from flags, environment, file and defaults.

    Args:
        flags: Settings given on the command line, by field name; None means not given.
        environ: Environment to look in; None: the process's own.
        file: TOML file; None: `SPACEGRID_CONFIG`, or no file.

    Raises:
        ConfigError: A value does not fit; the message names the setting, its source, the value and
            the limit.
    """
    environ = os.environ if environ is None else environ
    if file is None and environ.get(ENVIRONMENT_PREFIX + "CONFIG"):
        file = Path(environ[ENVIRONMENT_PREFIX + "CONFIG"])
    values: dict[str, Any] = {}
    for name, value in (_read_file(file) if file is not None else {}).items():
        if name not in _NAMES:
            raise ConfigError(f"unknown setting {name!r} in {file}; known are {', '.join(_NAMES)}")
        values[name] = _parsed(name, value, str(file))
    for name in _NAMES:
        variable = ENVIRONMENT_PREFIX + name.upper()
        if variable in environ:
            values[name] = _parsed(name, environ[variable], variable)
    for name, value in flags.items():
        if value is not None:
            values[name] = _parsed(name, value, "--" + name.replace("_", "-"))
    return check(NodeConfig(**values, given=frozenset(values)))


def check(config: NodeConfig) -> NodeConfig:
    """Return the settings if they are valid.

    Raises:
        ConfigError: The first setting that is not; the message names the value and the limit.
    """
    _, port = split_address(config.listen)
    _check_security(config)
    # With TLS, a node that is not told its name has the one in its certificate.
    if not config.name and config.tls_cert is None:
        config = replace(config, name=f"node-{port}" if port else f"node-{os.getpid()}")
    named = config.name or config.tls_cert is None
    if named and (not _NAME.match(config.name) or len(config.name.encode()) > NAME_BYTES_MAX):
        raise ConfigError(
            f"node name {config.name!r} is not 1 to {NAME_BYTES_MAX} letters, digits, dots, "
            "dashes and underscores"
        )
    if config.zone and (not _NAME.match(config.zone) or len(config.zone.encode()) > NAME_BYTES_MAX):
        raise ConfigError(
            f"zone {config.zone!r} is not 1 to {NAME_BYTES_MAX} letters, digits, dots, dashes and "
            "underscores"
        )
    if config.coordinator.startswith(ETCD_SCHEMES):
        _check_etcd(config)
        config = _known_to_etcd(config)
    elif config.coordinator:
        if not config.coordinator.startswith(COORDINATOR_SCHEME):
            raise ConfigError(
                f"coordinator {config.coordinator!r} is neither local://host:port nor "
                "etcd://host:port[,host:port...][/SPACE]"
            )
        split_address(config.coordinator.removeprefix(COORDINATOR_SCHEME))
    for unit in config.units:
        module, colon, name = unit.partition(":")
        if not (colon and module and name.isidentifier()):
            raise ConfigError(f"unit {unit!r} is not module:Class")
    for item in config.via:
        name, equals, address = item.partition("=")
        if not (equals and _NAME.match(name)):
            raise ConfigError(f"via {item!r} is not name=host:port")
        split_address(address)
    _within("partitions", config.partitions, 1, PARTITIONS_MAX)
    _within("copies", config.copies, 1, COPIES_MAX)
    _within("min_in_sync", config.min_in_sync, 0, config.copies)
    _within("nodes", config.nodes, 0, NODES_MAX)
    _within("quota_bytes", config.quota_bytes, 0, 1 << 50)
    _within("log_bytes", config.log_bytes, 1 << 20, 1 << 40)
    _within("transfer_bytes_per_s", config.transfer_bytes_per_s, 0, 1 << 40)
    _within("pump_batch_records", config.pump_batch_records, 1, BATCH_RECORDS_MAX)
    _within("pump_interval_s", config.pump_interval_s, 0.0, INTERVAL_S_MAX)
    _within("busy_poll_us", config.busy_poll_us, 0, BUSY_POLL_US_MAX)
    _within("switch_interval_s", config.switch_interval_s, 0.00001, 0.1)
    _within("drain_timeout_s", config.drain_timeout_s, 0.0, INTERVAL_S_MAX)
    _one_of("log_level", config.log_level, LOG_LEVELS)
    _one_of("log_format", config.log_format, LOG_FORMATS)
    return config


def _check_etcd(config: NodeConfig) -> None:
    tls, _, _ = split_etcd(config.coordinator)
    if not tls:
        for name in ("etcd_ca", "etcd_cert", "etcd_key"):
            if getattr(config, name) is not None:
                raise ConfigError(
                    f"{name} is {getattr(config, name)}, but {config.coordinator!r} is without TLS"
                    "\nhint: use etcds://"
                )
    if (config.etcd_cert is None) != (config.etcd_key is None):
        raise ConfigError("etcd_cert and etcd_key are given together or not at all")
    if bool(config.etcd_user) != (config.etcd_password_file is not None):
        raise ConfigError("etcd_user and etcd_password_file are given together or not at all")


def _known_to_etcd(config: NodeConfig) -> NodeConfig:
    """Over TLS, a node shows etcd what it shows other nodes, unless it is told otherwise."""
    over_tls = split_etcd(config.coordinator)[0]
    if not over_tls or config.tls_cert is None or config.etcd_ca or config.etcd_cert:
        return config
    key = config.tls_key or config.tls_cert
    return replace(config, etcd_ca=config.tls_ca, etcd_cert=config.tls_cert, etcd_key=key)


def _check_security(config: NodeConfig) -> None:
    """TLS and tokens come together, and no address that others reach goes without them."""
    given = {"tls_ca": config.tls_ca, "tls_cert": config.tls_cert, "tokens": config.tokens}
    missing = [name for name, value in given.items() if value is None]
    # The authority's certificate alone is what clients in the same environment have.
    if missing and (config.tls_cert or config.tls_key or config.tokens):
        raise ConfigError(
            f"{' and '.join(missing)} not set: TLS needs tls_ca, tls_cert and tokens together\n"
            "hint: spacegrid certs init, spacegrid certs node, spacegrid token add"
        )
    if not is_loopback(config.listen_host) and missing and not config.insecure_let_anyone_in:
        raise ConfigError(
            f"listen address {config.listen!r} is not loopback: others can reach it, and without "
            "TLS and tokens whoever does could read and change everything\n"
            "hint: listen on 127.0.0.1:PORT, or set --tls-ca, --tls-cert and --tokens "
            "(docs/guide/three-machines.md)"
        )
    if config.listen_host in ("0.0.0.0", "::") and not config.advertise:
        raise ConfigError(
            f"listen address {config.listen!r} names no host that others could reach\n"
            "hint: --advertise HOST, or listen on this machine's own address"
        )


def _parsed(name: str, value: Any, source: str) -> Any:
    try:
        parse: Callable[[Any], Any] = _PARSERS.get(name, _text)
        return parse(value)
    except ConfigError as error:
        raise ConfigError(f"{name} from {source}: {error}") from None


def _read_file(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as handle:
            document = tomllib.load(handle)
    except OSError as error:
        raise ConfigError(f"can't read the settings file {file}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"settings file {file} is not TOML: {error}") from error
    table = document.get("node", document)
    if not isinstance(table, dict):
        raise ConfigError(f"[node] in {file} is not a table")
    return table


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}, allowed is {low} to {high}")


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}, allowed is one of {', '.join(allowed)}")
