"""The `spacegrid` command line.

Data goes to stdout, messages and logs to stderr; `--json` makes every command's data one JSON
document. Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 nothing there (get, delete), 4
outcome unknown. All commands are in one room, so that they read alike; each imports what it needs
when it runs, so that `spacegrid --help` is quick.
New commands: a function with `@app.command()`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from spacegrid import cli_security
from spacegrid.cli_output import EXIT_FAILED, EXIT_NOTHING, Json
from spacegrid.cli_output import errors as _errors
from spacegrid.cli_output import json_text as _json_text
from spacegrid.cli_output import print_document as _print
from spacegrid.config import ADDRESS_DEFAULT, COORDINATOR_SCHEME, ETCD_SCHEMES, PARTITIONS_DEFAULT
from spacegrid.errors import ConfigError
from spacegrid.security.client import CA_VARIABLE, TOKEN_FILE_VARIABLE, TOKEN_VARIABLE

if TYPE_CHECKING:
    from spacegrid.config import NodeConfig
    from spacegrid.coordinator import Coordinator
    from spacegrid.coordinator.etcd import EtcdOptions
    from spacegrid.node.daemon import Daemon
    from spacegrid.types import Durability

WATCH_PARENT: Final = "SPACEGRID_STOP_WITH_PARENT"

app = typer.Typer(
    name="spacegrid",
    help="Space-Based Architecture for Python: a replicated in-memory data grid with units.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(cli_security.certs, name="certs")
app.add_typer(cli_security.token, name="token")

Address = Annotated[
    str,
    typer.Option(
        "--at", "--address", envvar="SPACEGRID_ADDRESS", help="host:port of any node of the grid."
    ),
]


def main() -> None:
    """Entry point of the `spacegrid` command."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        from spacegrid._core import __version__

        typer.echo(f"spacegrid {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
    tls_ca: Annotated[
        Path | None,
        typer.Option(help="ca.crt of the cluster asked; or SPACEGRID_TLS_CA.", metavar="FILE"),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with a token; or SPACEGRID_TOKEN_FILE.", metavar="FILE"),
    ] = None,
) -> None:
    """Take the options that stand before a command."""
    # The environment is where every client looks, those inside commands too. A token has no option:
    # other users of a machine see the arguments of its processes.
    for variable, file in ((CA_VARIABLE, tls_ca), (TOKEN_FILE_VARIABLE, token_file)):
        if file is not None:
            os.environ[variable] = str(file)
    if token_file is not None:
        os.environ.pop(TOKEN_VARIABLE, None)


# ---- processes


@app.command()
def node(
    name: Annotated[str | None, typer.Option(help="Node name, unique in the cluster.")] = None,
    zone: Annotated[
        str | None, typer.Option(help="What fails together with it: copies are kept in others.")
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(help=f"host:port, off loopback with TLS only; default {ADDRESS_DEFAULT}."),
    ] = None,
    advertise: Annotated[
        str | None, typer.Option(help="Host that others reach it at, if not that of --listen.")
    ] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(help="Certificate of the cluster's authority.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="This node's certificate.")] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="Its key, if it is not in the same file.")
    ] = None,
    tokens: Annotated[Path | None, typer.Option(help="File of clients' tokens.")] = None,
    insecure_let_anyone_in: Annotated[
        bool | None,
        typer.Option(
            "--insecure-let-anyone-in",
            help="Listen off loopback without TLS: whoever reaches the port may do everything.",
        ),
    ] = None,
    coordinator: Annotated[
        str | None,
        typer.Option(
            help="local://host:port or etcd://host:port,.../SPACE; without it the node is alone."
        ),
    ] = None,
    etcd_ca: Annotated[
        Path | None, typer.Option(help="Certificates that etcd's are checked with (etcds://).")
    ] = None,
    etcd_cert: Annotated[Path | None, typer.Option(help="Own certificate for etcd.")] = None,
    etcd_key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
    etcd_user: Annotated[str | None, typer.Option(help="User name in etcd.")] = None,
    etcd_password_file: Annotated[
        Path | None, typer.Option(help="File of that user's password.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder for all the node keeps.")] = None,
    unit: Annotated[
        list[str] | None, typer.Option(help="Processing unit, module:Class; repeatable.")
    ] = None,
    sql: Annotated[str | None, typer.Option(help="Shared SQL sink, sqlite:///PATH.")] = None,
    lmdb: Annotated[
        bool | None, typer.Option("--lmdb/--no-lmdb", help="Keep copies in LMDB under --data.")
    ] = None,
    quota: Annotated[
        str | None, typer.Option(help="Memory for entries and records, such as 2GiB.")
    ] = None,
    log_memory: Annotated[
        str | None, typer.Option(help="Memory for records that copies and sinks still need.")
    ] = None,
    transfer_bytes_per_s: Annotated[
        str | None,
        typer.Option(
            help="Snapshots sent to new copies, such as 32MiB; default 64MiB, 0: no bound."
        ),
    ] = None,
    partitions: Annotated[
        int | None, typer.Option(help="Of a space that this node creates: alone, or first in etcd.")
    ] = None,
    copies: Annotated[int | None, typer.Option(help="Copies that such a space wants.")] = None,
    min_in_sync: Annotated[
        int | None, typer.Option(help="Copies that must hold a write in such a space.")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(help="Nodes that a space in etcd waits for before it places.")
    ] = None,
    pump_batch: Annotated[
        int | None, typer.Option(help="Records per batch to SQL at most.")
    ] = None,
    pump_interval: Annotated[
        float | None, typer.Option(help="Seconds that SQL may lag behind.")
    ] = None,
    busy_poll_us: Annotated[
        int | None,
        typer.Option(
            help="Time that a busy port is polled before it sleeps; default 200, 0: none."
        ),
    ] = None,
    via: Annotated[
        list[str] | None,
        typer.Option(help="NAME=HOST:PORT: reach that node there; repeatable.", hidden=True),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="console or json.")] = None,
    json: Json = False,
) -> None:
    """Run one node until it is stopped.

    SIGTERM and Ctrl-C hand over and leave; a second Ctrl-C ends at once. Each flag can also be set
    as SPACEGRID_NAME in the environment, or in the TOML file.
    """
    from spacegrid.config import load

    with _errors(json):
        settings = load(
            {
                "name": name,
                "zone": zone,
                "listen": listen,
                "advertise": advertise,
                "tls_ca": tls_ca,
                "tls_cert": tls_cert,
                "tls_key": tls_key,
                "tokens": tokens,
                "insecure_let_anyone_in": insecure_let_anyone_in,
                "coordinator": coordinator,
                "etcd_ca": etcd_ca,
                "etcd_cert": etcd_cert,
                "etcd_key": etcd_key,
                "etcd_user": etcd_user,
                "etcd_password_file": etcd_password_file,
                "data": data,
                "units": unit or None,
                "sql": sql,
                "lmdb": lmdb,
                "quota_bytes": quota,
                "log_bytes": log_memory,
                "transfer_bytes_per_s": transfer_bytes_per_s,
                "partitions": partitions,
                "copies": copies,
                "min_in_sync": min_in_sync,
                "nodes": nodes,
                "pump_batch_records": pump_batch,
                "pump_interval_s": pump_interval,
                "busy_poll_us": busy_poll_us,
                "via": via or None,
                "log_level": log_level,
                "log_format": log_format,
            },
            file=config,
        )
        _watch_parent()
        raise typer.Exit(_serve(settings, json))


def _serve(settings: NodeConfig, json: bool) -> int:
    from spacegrid.node import log
    from spacegrid.node.daemon import serve
    from spacegrid.node.security import named

    settings = named(settings)
    log.configure(settings.log_level, settings.log_format, node=settings.name)

    def ready(daemon: Daemon) -> None:
        line = {
            "event": "ready",
            "name": daemon.config.name,
            "address": daemon.address,
            "pid": os.getpid(),
            "incarnation": daemon.incarnation,
        }
        _print(line, json, lambda: f"{daemon.config.name} ready at {daemon.address}")

    return serve(settings, lambda: _coordinator(settings), ready)


def _coordinator(settings: NodeConfig) -> Coordinator:
    if settings.coordinator.startswith(ETCD_SCHEMES):
        from spacegrid.coordinator.etcd import EtcdCoordinator, EtcdOptions, SpaceSettings

        return EtcdCoordinator(
            EtcdOptions.of(settings), SpaceSettings.of(settings), data=settings.data
        )
    if settings.coordinator:
        from spacegrid.coordinator.local import LocalCoordinator

        return LocalCoordinator(settings.coordinator.removeprefix(COORDINATOR_SCHEME))
    from spacegrid.node.lone import lone_coordinator

    return lone_coordinator(settings)


@app.command(hidden=True)
def coordinator(
    data: Annotated[Path, typer.Option(help="Folder for the table.")],
    listen: Annotated[str, typer.Option(help="Loopback host:port.")] = "127.0.0.1:0",
    partitions: Annotated[
        int, typer.Option(help="Partitions of a new space.")
    ] = PARTITIONS_DEFAULT,
    copies: Annotated[int, typer.Option(help="Copies wanted of each partition.")] = 2,
    min_in_sync: Annotated[int, typer.Option(help="Copies that must hold a write.")] = 0,
    nodes: Annotated[int, typer.Option(help="Nodes to wait for before the first placement.")] = 0,
    json: Json = False,
) -> None:
    """Run the coordinator of a cluster on this machine; `spacegrid up` starts it."""
    from spacegrid.config import is_loopback, split_address
    from spacegrid.coordinator.local_server import main as serve

    with _errors(json):
        if not is_loopback(split_address(listen)[0]):
            raise ConfigError(
                f"listen address {listen!r} is not loopback\nhint: use 127.0.0.1:PORT"
            )
        data.mkdir(parents=True, exist_ok=True)
        _watch_parent()
        code = serve(
            [
                "--file",
                str(data / "table"),
                "--listen",
                listen,
                "--partitions",
                str(partitions),
                "--copies",
                str(copies),
                "--min-in-sync",
                str(min_in_sync or min(copies, 2)),
                "--nodes",
                str(nodes or copies),
            ]
        )
        raise typer.Exit(code)


@app.command()
def up(
    nodes: Annotated[int, typer.Option(min=1, max=64, help="Number of nodes.")] = 3,
    port: Annotated[
        int, typer.Option(min=0, max=65_000, help="Port of the first node; 0: free ones.")
    ] = 7700,
    data: Annotated[
        Path, typer.Option(help="Folder of the cluster; a later start goes on from it.")
    ] = Path("spacegrid-data"),
    unit: Annotated[
        list[str] | None, typer.Option(help="Processing unit, module:Class; repeatable.")
    ] = None,
    sql: Annotated[str | None, typer.Option(help="Shared SQL sink, sqlite:///PATH.")] = None,
    lmdb: Annotated[bool, typer.Option("--lmdb/--no-lmdb", help="Keep copies in LMDB.")] = True,
    partitions: Annotated[
        int, typer.Option(help="Partition count, set when the space is created.")
    ] = PARTITIONS_DEFAULT,
    copies: Annotated[int | None, typer.Option(help="Copies of each partition; default 2.")] = None,
    min_in_sync: Annotated[
        int, typer.Option(help="Copies that must hold a write; 0: the smaller of copies and 2.")
    ] = 0,
    coordinator: Annotated[
        str, typer.Option(help="etcd://host:port,.../SPACE; without it a local one is started.")
    ] = "",
    tls: Annotated[
        bool, typer.Option("--tls", help="With TLS and tokens, made under --data for this cluster.")
    ] = False,
    fresh: Annotated[bool, typer.Option(help="Begin anew: what is in --data is deleted.")] = False,
    json: Json = False,
) -> None:
    """Run a cluster on this machine until Ctrl-C, which stops it with all data flushed.

    With --coordinator the table is in etcd; certificates and user for it come from the environment
    (SPACEGRID_ETCD_CA and so on). --fresh removes the space in etcd too.
    """
    from spacegrid.coordinator.etcd import remove_space
    from spacegrid.node.processes import ClusterSettings
    from spacegrid.node.up import run

    with _errors(json):
        settings = ClusterSettings(
            nodes=nodes,
            data=data.resolve(),
            port=port,
            units=unit or (),
            sql=sql or "",
            lmdb=lmdb,
            partitions=partitions,
            copies=2 if copies is None else copies,
            min_in_sync=min_in_sync,
            coordinator=coordinator,
            tls=tls,
        )
        if coordinator:
            options = _etcd(coordinator)
            if fresh:
                remove_space(options)
        raise typer.Exit(run(settings, fresh=fresh, json=json))


@app.command()
def etcd_restored(
    coordinator: Annotated[str, typer.Option(help="etcd://host:port,.../SPACE.")],
    json: Json = False,
) -> None:
    """Say that etcd was restored from a backup, so that nodes may start from it.

    Only while no node of the space runs. Every registration in the backup has ended after it, and
    numbers that may have been given since are skipped. Certificates and user for etcd come from the
    environment (SPACEGRID_ETCD_CA and so on).
    """
    from spacegrid.coordinator.etcd import accept_restored

    with _errors(json):
        accept_restored(_etcd(coordinator))
        _print({"restored": coordinator}, json, lambda: "nodes may start")


def _etcd(coordinator: str) -> EtcdOptions:
    """Options of etcd from its address and the environment."""
    from spacegrid.config import load, split_etcd
    from spacegrid.coordinator.etcd import EtcdOptions

    split_etcd(coordinator)
    return EtcdOptions.of(load({"coordinator": coordinator}))


# ---- data


@app.command()
def put(
    map: Annotated[str, typer.Argument(help="Name of the map.")],
    key: Annotated[str, typer.Argument(help="Key; a part in braces routes.")],
    value: Annotated[str, typer.Argument(help="Value as JSON.")],
    ttl: Annotated[float | None, typer.Option(help="Seconds to live.")] = None,
    persisted: Annotated[
        bool, typer.Option("--persisted", help="Wait until it is on the disks of all copies.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 5.0,
    at: Address = ADDRESS_DEFAULT,
    json: Json = False,
) -> None:
    """Write one entry."""
    import msgspec

    with _errors(json):
        try:
            decoded = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            raise ConfigError(f"value {value!r} is not JSON: {error}") from None
        durability: Durability = "persisted" if persisted else "replicated"
        with _grid(at, timeout) as grid:
            found = grid.map(map, key=str, value=Any, durability=durability)
            version = found.put(key, decoded, ttl=ttl, timeout=timeout)
        document = {"map": map, "key": key, "version": version, "durability": durability}
        _print(document, json, lambda: "")


@app.command()
def get(
    map: Annotated[str, typer.Argument(help="Name of the map.")],
    key: Annotated[str, typer.Argument(help="Key.")],
    read: Annotated[
        str, typer.Option(help="primary, confirmed (by the copies too) or stale (any copy).")
    ] = "primary",
    max_age: Annotated[
        float | None, typer.Option(help="Seconds that a stale read may be behind; default 10.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 5.0,
    at: Address = ADDRESS_DEFAULT,
    json: Json = False,
) -> None:
    """Print one entry's value as JSON; exit code 3 when there is none.

    A stale read says on stderr, or in the document, how old its answer may be.
    """
    from spacegrid.client.common import stale_age_ms

    with _errors(json):
        stale_age_ms(read, None, max_age)  # before anybody is asked
        options: dict[str, Any] = {"timeout": timeout, "read": read, "max_age": max_age}
        if read != "stale":
            # Else a missing entry and one that is null look alike; a stale answer tells by itself.
            options["default"] = missing = object()
        with _grid(at, timeout) as grid:
            value = grid.map(map, key=str, value=Any).get(key, **options)
        document: dict[str, Any] = {"map": map, "key": key}
        if read == "stale":
            document |= {"age_ms": value.age_ms}
            found, value = value.version != 0, value.value
            if not json:
                typer.echo(f"at most {document['age_ms']} ms old", err=True)
        else:
            found = value is not missing
        if not found:
            _print({**document, "found": False}, json, lambda: "")
            raise typer.Exit(EXIT_NOTHING)
        _print({**document, "found": True, "value": value}, json, lambda: _json_text(value))


@app.command()
def delete(
    map: Annotated[str, typer.Argument(help="Name of the map.")],
    key: Annotated[str, typer.Argument(help="Key.")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 5.0,
    at: Address = ADDRESS_DEFAULT,
    json: Json = False,
) -> None:
    """Delete one entry; exit code 3 when there is none."""
    with _errors(json):
        with _grid(at, timeout) as grid:
            existed = grid.map(map, key=str, value=Any).delete(key, timeout=timeout)
        _print({"map": map, "key": key, "existed": existed}, json, lambda: "")
        if not existed:
            raise typer.Exit(EXIT_NOTHING)


# ---- operation


@app.command()
def status(at: Address = ADDRESS_DEFAULT, json: Json = False) -> None:
    """Show nodes, primaries, copies, repair and pump lag; exit code 1 when not all is served."""
    from spacegrid.node import report

    with _errors(json):
        document = report.cluster_status(at)
        _print(document, json, lambda: report.status_text(document))
        if document["unserved"] or not document["answers"]:
            raise typer.Exit(EXIT_FAILED)


partitions_app = typer.Typer(
    invoke_without_command=True, help="List the partitions; decide about those that are lost."
)
app.add_typer(partitions_app, name="partitions")


@partitions_app.callback()
def partitions(context: typer.Context, at: Address = ADDRESS_DEFAULT, json: Json = False) -> None:
    """List the partitions, where their copies are, and what is on disk of those not served."""
    if context.invoked_subcommand is not None:
        return
    from spacegrid.node import report

    with _errors(json):
        document = report.partitions(at)
        _print(document, json, lambda: report.partitions_text(document))


@partitions_app.command("accept")
def partitions_accept(
    chosen: Annotated[
        list[int] | None, typer.Argument(metavar="PARTITION...", help="Which.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that have no primary.")] = False,
    empty: Annotated[
        bool,
        typer.Option(
            "--empty/--longest",
            help="Begin with nothing, or (the default) from the longest copy that is there.",
        ),
    ] = False,
    at: Address = ADDRESS_DEFAULT,
    json: Json = False,
) -> None:
    """Let partitions begin again without the copies that are missing; what only those had is lost.

    Look at `spacegrid partitions` first. With a SQL sink the database follows: rows that the
    partition no longer has are deleted. Exit code 1 when one was refused.
    """
    from spacegrid.node import report

    with _errors(json):
        if bool(chosen) == everything:
            raise ConfigError("name partitions, or --all")
        document = report.accept(at, None if everything else chosen, empty=empty)
        _print(document, json, lambda: report.accept_text(document))
        if document["refused"]:
            raise typer.Exit(EXIT_FAILED)


@partitions_app.command("reload")
def partitions_reload(
    chosen: Annotated[
        list[int] | None, typer.Argument(metavar="PARTITION...", help="Which.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that have no primary.")] = False,
    at: Address = ADDRESS_DEFAULT,
    json: Json = False,
) -> None:
    """Fill partitions again from the SQL sink; what it does not have is lost.

    Look at `spacegrid partitions` first: a copy on a disk may have more. Says what could not be
    filled. Exit code 1 when one was refused.
    """
    from spacegrid.node import report

    with _errors(json):
        if bool(chosen) == everything:
            raise ConfigError("name partitions, or --all")
        document = report.reload(at, None if everything else chosen)
        _print(document, json, lambda: report.reload_text(document))
        if document["refused"]:
            raise typer.Exit(EXIT_FAILED)


@app.command()
def flush(
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 30.0,
    at: Address = ADDRESS_DEFAULT,
    json: Json = False,
) -> None:
    """Wait until every node's sinks have what is committed now; exit code 1 when not in time."""
    from spacegrid.node import report

    with _errors(json):
        document = report.flush(at, timeout)
        _print(document, json, lambda: "flushed" if document["complete"] else "not in time")
        if not document["complete"]:
            raise typer.Exit(EXIT_FAILED)


@app.command()
def stop(
    one: Annotated[
        bool, typer.Option("--node", help="Only the node asked: it hands over and leaves.")
    ] = False,
    at: Address = ADDRESS_DEFAULT,
    json: Json = False,
) -> None:
    """Stop the whole cluster in order, with all data flushed; or one node."""
    from spacegrid.node.admin_client import AdminClient

    with _errors(json), AdminClient(at) as admin:
        admin.stop(cluster=not one)
        _print({"stopping": "node" if one else "cluster"}, json, lambda: "stopping")


# ---- shared


@app.command()
def demo(
    input: Annotated[
        Path | None,
        typer.Option(help="Real orders in the Online Retail form, .csv or .csv.xz."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of --input at most.")] = None,
    sql: Annotated[str | None, typer.Option(help="sqlite:///PATH to keep.")] = None,
    lmdb: Annotated[Path | None, typer.Option(help="Folder for the nodes' stores to keep.")] = None,
    report: Annotated[Path | None, typer.Option(help="File for the report as JSON.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace targets that exist.")] = False,
    json: Json = False,
) -> None:
    """Run the main job on three nodes, kill one half way, and count what is left.

    Exit code 1 when anything is lost, doubled or different, with the first differences; with --json
    they are in the report.
    """
    from spacegrid.demo import command, flash_sale, real_orders

    options = (
        real_orders.RealOrdersOptions(input, limit) if input else flash_sale.FlashSaleOptions()
    )
    code = command.run_demo(options, sql=sql, lmdb=lmdb, report_path=report, fresh=fresh, json=json)
    raise typer.Exit(code)


@app.command()
def chaos(
    cycles: Annotated[int, typer.Option(min=1, help="Faults, one after another.")] = 10,
    seed: Annotated[int | None, typer.Option(help="Of every choice; without it one is drawn.")] = (
        None
    ),
    nemesis: Annotated[
        str, typer.Option(help="NAME[,NAME]: what goes wrong; without it anything.")
    ] = "",
    nodes: Annotated[int, typer.Option(min=3, max=8, help="Number of nodes.")] = 3,
    coordinator: Annotated[
        str, typer.Option(help="local, or etcd: three members of its own on loopback.")
    ] = "local",
    unit: Annotated[
        list[str] | None, typer.Option(help="Processing unit, module:Class; repeatable.")
    ] = None,
    workload: Annotated[str, typer.Option(help="module:Class of your own workload.")] = "",
    report: Annotated[Path | None, typer.Option(help="File for the report as JSON.")] = None,
    json: Json = False,
) -> None:
    """Break a new cluster under load and check every answer; exit code 1 if one is wrong."""
    from spacegrid.testing.chaos.command import run_chaos
    from spacegrid.testing.chaos.run import ChaosOptions

    with _errors(json):
        options = ChaosOptions(
            cycles=cycles,
            seed=seed,
            nemesis=tuple(name for name in nemesis.split(",") if name),
            nodes=nodes,
            coordinator=coordinator,
            units=tuple(unit or ()),
            workload=workload,
        )
        raise typer.Exit(run_chaos(options, report=report, json=json))


@contextmanager
def _grid(address: str, timeout: float) -> Iterator[Any]:
    import spacegrid

    with spacegrid.connect_sync(address, timeout=timeout) as grid:
        yield grid


def _watch_parent() -> None:
    """Stop when the parent that started this process for its own use is gone."""
    if os.environ.get(WATCH_PARENT):
        from spacegrid.node.processes import stop_with_parent

        stop_with_parent()
