"""Structured logs of a node process: one line an event, on stderr, so that stdout stays for data.

Called once by the process's entry, before anything else logs. Library code asks for
`get_logger(...)` and never configures anything.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import structlog


def configure(level: str, format: str, **context: Any) -> None:
    """Set up logs for this process.

    Args:
        level: debug, info, warning or error.
        format: console or json.
        context: Fields on every line, such as the node's name.
    """
    # gRPC's C core writes its own lines to stderr; what matters of them comes to us as errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    number = logging.getLevelNamesMapping()[level.upper()]
    renderer: Any
    if format == "json":
        renderer = structlog.processors.JSONRenderer()
        stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S.%f", utc=False)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            stamp,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info if format == "json" else _pass_through,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(number, logging.WARNING), stream=sys.stderr, format="%(message)s")
    # grpc.aio tells of every stream that a stopping server ends; the links say so themselves.
    logging.getLogger("grpc").setLevel(logging.CRITICAL)
    structlog.contextvars.bind_contextvars(**context)


def get_logger(name: str) -> Any:
    """Return a logger whose lines say which part of the node speaks."""
    return structlog.get_logger(part=name)


def _pass_through(_logger: Any, _method: str, event: Any) -> Any:
    return event
