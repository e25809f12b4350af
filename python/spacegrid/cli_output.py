"""What every command does with its data and its errors: stdout, stderr, exit codes.

Data goes to stdout, messages to stderr; `--json` makes a command's data one JSON document. Exit
codes: 0 done, 1 failed, 2 wrong usage or settings, 3 nothing there, 4 outcome unknown.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, NoReturn

import typer

from spacegrid.errors import ConfigError, SpaceGridError

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_NOTHING: Final = 3
EXIT_UNKNOWN: Final = 4
EXIT_INTERRUPTED: Final = 130

Json = Annotated[bool, typer.Option("--json", help="Print data as one JSON document.")]


@contextmanager
def errors(json: bool) -> Iterator[None]:
    """End with a message and an exit code instead of a traceback, for every error on purpose."""
    try:
        yield
    except SpaceGridError as error:
        fail_with(error, json)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def fail_with(error: SpaceGridError, json: bool) -> NoReturn:
    """Show an error and end with its exit code."""
    if json:
        document = {
            "error": error.code,
            "message": str(error),
            "retryable": error.retryable,
            "maybe_applied": error.maybe_applied,
        }
        typer.echo(json_text(document), err=True)
    else:
        typer.echo(f"error: {error}", err=True)
    code = EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
    raise typer.Exit(EXIT_UNKNOWN if error.maybe_applied else code)


def print_document(document: Any, json: bool, text: Callable[[], str]) -> None:
    """Print a command's data: as one document, or as its text."""
    shown = json_text(document) if json else text()
    if shown:
        sys.stdout.write(shown + "\n")
        sys.stdout.flush()


def json_text(value: Any) -> str:
    """One JSON document on one line."""
    import msgspec

    return msgspec.json.encode(value).decode()
