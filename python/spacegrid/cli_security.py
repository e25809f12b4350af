"""`spacegrid certs` and `spacegrid token`: what makes a cluster of many machines safe to open.

Part of the command line (`cli`), in a file of its own. A token is printed to stdout, once, so that
it can be sent into a file; everything else that a person should know goes to stderr.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from spacegrid.cli_output import Json, errors, fail_with, print_document
from spacegrid.errors import ConfigError

certs = typer.Typer(
    help="Certificates of a cluster's nodes, signed by its own authority.", no_args_is_help=True
)
token = typer.Typer(help="Tokens that let clients in.", no_args_is_help=True)

Folder = Annotated[
    Path, typer.Option("--dir", help="The authority's folder; keep it off the nodes.")
]
Days = Annotated[int, typer.Option(min=1, max=36_500, help="Days until it ends.")]
Tokens = Annotated[
    Path, typer.Option("--tokens", envvar="SPACEGRID_TOKENS", help="The file with the tokens.")
]
FOLDER: Final = Path("certs")
TOKENS: Final = Path("tokens")
EXIT_FAILED: Final = 1


@certs.command()
def init(
    cluster: Annotated[str, typer.Option(help="Name of the cluster.")] = "spacegrid",
    folder: Folder = FOLDER,
    days: Days = 3650,
    json: Json = False,
) -> None:
    """Make the authority of a cluster: ca.crt for every node and client, ca.key for nobody."""
    from spacegrid.security.authority import Authority

    with errors(json):
        authority = Authority.create(folder, cluster, datetime.now(UTC), days)
        document = {
            "cluster": authority.cluster,
            "certificate": str(folder / "ca.crt"),
            "key": str(folder / "ca.key"),
        }
        print_document(document, json, lambda: f"{folder / 'ca.crt'}\n{folder / 'ca.key'}")


@certs.command()
def node(
    name: Annotated[str, typer.Argument(help="Node name, as in its --name.")],
    address: Annotated[
        list[str], typer.Option(help="Host name or IP address that it is reached at; repeatable.")
    ],
    folder: Folder = FOLDER,
    days: Days = 365,
    json: Json = False,
) -> None:
    """Issue a node's certificate with its key, in one file."""
    from spacegrid.security.authority import Authority

    with errors(json):
        _show(Authority(folder).issue(name, address, datetime.now(UTC), days), json)


@certs.command()
def renew(
    names: Annotated[list[str] | None, typer.Argument(help="Nodes; without any, all.")] = None,
    folder: Folder = FOLDER,
    days: Days = 365,
    json: Json = False,
) -> None:
    """Issue certificates again, with the addresses that they have and new keys."""
    from spacegrid.security.authority import Authority, issued

    with errors(json):
        authority = Authority(folder)
        everyone = [one.name for one in issued(folder) if one.name != "ca"]
        for name in names or everyone:
            _show(authority.renew(name, datetime.now(UTC), days), json)


@certs.command("list")
def list_(folder: Folder = FOLDER, json: Json = False) -> None:
    """List the certificates; exit code 1 when one has ended or ends within 30 days."""
    from spacegrid.security.authority import issued
    from spacegrid.security.files import expiry_text

    with errors(json):
        now = datetime.now(UTC)
        found = issued(folder)
        warnings = {one.name: expiry_text(one.not_after, now) for one in found}
        document = [
            {
                "name": one.name,
                "path": str(one.path),
                "addresses": list(one.addresses),
                "not_after": one.not_after.isoformat(),
                "warning": warnings[one.name],
            }
            for one in found
        ]
        print_document(
            document,
            json,
            lambda: "\n".join(
                f"{one.name}  {' '.join(one.addresses) or '-'}  until {one.not_after:%Y-%m-%d}"
                for one in found
            ),
        )
        for name, warning in warnings.items():
            if warning:
                fix = "a new authority" if name == "ca" else f"spacegrid certs renew {name}"
                sys.stderr.write(f"warning: {name} {warning}\nhint: {fix}\n")
        if any(warnings.values()):
            raise typer.Exit(EXIT_FAILED)


@token.command()
def add(
    name: Annotated[str, typer.Argument(help="Who it is for.")],
    role: Annotated[str, typer.Option(help="read, write or admin.")],
    tokens: Tokens = TOKENS,
    json: Json = False,
) -> None:
    """Make a token and print it, once; the file keeps only its hash."""
    from spacegrid.security import tokens as files

    with errors(json):
        secret = files.add(tokens, name, role)
        document = {"name": name, "role": role, "token": secret.reveal()}
        print_document(document, json, secret.reveal)


@token.command("list")
def list_tokens(tokens: Tokens = TOKENS, json: Json = False) -> None:
    """List whose tokens the file has."""
    from spacegrid.security import tokens as files

    with errors(json):
        rows = files.rows(tokens)
        document = [{"id": row.id, "name": row.name, "role": row.role} for row in rows]
        print_document(
            document, json, lambda: "\n".join(f"{r.id}  {r.name}  {r.role}" for r in rows)
        )


@token.command()
def remove(
    who: Annotated[str, typer.Argument(help="A name, or the id of one token.")],
    tokens: Tokens = TOKENS,
    json: Json = False,
) -> None:
    """Take tokens back: nodes that read this file refuse them from then on."""
    from spacegrid.security import tokens as files

    with errors(json):
        count = files.remove(tokens, who)
        if not count:
            fail_with(ConfigError(f"{tokens} has no token of {who!r}"), json)
        print_document({"removed": count}, json, lambda: f"{count} removed")


def _show(issued: Any, json: bool) -> None:
    document = {
        "name": issued.name,
        "path": str(issued.path),
        "addresses": list(issued.addresses),
        "not_after": issued.not_after.isoformat(),
    }
    print_document(document, json, lambda: str(issued.path))
