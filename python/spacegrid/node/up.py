"""`spacegrid up`: a cluster on this machine in one terminal, and its orderly end.

The nodes are children of their own sessions; this process only watches, tells of exits, and stops
the cluster on Ctrl-C or SIGTERM. A node that was killed can be started again in another terminal by
the command printed here: it is a node of the cluster like any other and stops with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, Final

import msgspec

from spacegrid.errors import ConfigError
from spacegrid.node.processes import Child, ClusterProcesses, ClusterSettings
from spacegrid.node.secrets import SECRETS, ClusterSecrets
from spacegrid.security.client import CA_VARIABLE, TOKEN_FILE_VARIABLE

WATCH_S: Final = 0.2
EXIT_OK: Final = 0
EXIT_FAILED: Final = 1


def run(settings: ClusterSettings, *, fresh: bool, json: bool) -> int:
    """Start the cluster, watch it, stop it; the exit code.

    Raises:
        ConfigError: The data folder holds something else.
        ConnectionFailed: A process could not start.
    """
    if fresh:
        remove(settings.data)
    stop = threading.Event()

    def asked(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            cluster.kill_all()
            os._exit(EXIT_FAILED)
        stop.set()

    cluster = ClusterProcesses(settings)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, asked)
    cluster.start()
    for child in cluster.nodes.values():
        _tell_started(child, json)
    if cluster.secrets is not None:
        _tell_secrets(cluster.secrets, json)
    if not json:
        ready = "1 node is" if len(cluster.nodes) == 1 else f"{len(cluster.nodes)} nodes are"
        _say(f"{ready} ready; Ctrl-C stops the cluster")
    gone: set[str] = set()
    while not stop.wait(WATCH_S):
        for name, child in cluster.nodes.items():
            if not child.alive and name not in gone:
                gone.add(name)
                _tell_exit(child, json)
        if cluster.coordinator is not None and not cluster.coordinator.alive:
            _say(f"the coordinator ended:\n{cluster.coordinator.log_tail()}")
            cluster.kill_all()
            return EXIT_FAILED
    if not json:
        _say("stopping: requests finish, data is flushed")
    codes = cluster.stop()
    failed = {name: code for name, code in codes.items() if code != EXIT_OK}
    for name, code in failed.items():
        _say(f"{name} ended with exit code {code}:\n{cluster.nodes[name].log_tail()}")
    if not failed and not json:
        _say("stopped; the same command goes on from the data folders")
    return EXIT_FAILED if failed else EXIT_OK


def remove(folder: Path) -> None:
    """Delete a cluster's data folder.

    Raises:
        ConfigError: It holds something that no cluster has put there.
    """
    if not folder.exists():
        return
    for item in folder.iterdir():
        ours = item.name in ("coordinator", SECRETS) or (item / "log.txt").exists()
        if not (item.is_dir() and ours):
            raise ConfigError(f"--fresh refused: {item} is not a part of a cluster's data folder")
    shutil.rmtree(folder)


def _tell_started(child: Child, json: bool) -> None:
    if json:
        _print(
            {
                "event": "started",
                "name": child.name,
                "address": child.address,
                "pid": child.pid,
                "data": str(child.data),
                "restart": child.shell_command,
            }
        )
        return
    sys.stdout.write(
        f"{child.name}  {child.address}  pid {child.pid}  data {child.data}\n"
        f"    {child.shell_command}\n"
    )
    sys.stdout.flush()


def _tell_secrets(secrets: ClusterSecrets, json: bool) -> None:
    """What a client needs; the token itself stays in its file."""
    if json:
        _print(
            {
                "event": "secrets",
                "tls_ca": str(secrets.authority),
                "token_file": str(secrets.admin_token),
                "tokens": str(secrets.tokens),
            }
        )
        return
    sys.stdout.write(
        f"clients need:\n    export {CA_VARIABLE}={secrets.authority}\n"
        f"    export {TOKEN_FILE_VARIABLE}={secrets.admin_token}\n"
        f"and more tokens come from:\n"
        f"    spacegrid token add NAME --role ROLE --tokens {secrets.tokens}\n"
    )
    sys.stdout.flush()


def _tell_exit(child: Child, json: bool) -> None:
    code = child.process.returncode
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    if json:
        _print({"event": "exited", "name": child.name, "pid": child.pid, "code": code})
        return
    _say(
        f"{child.name} (pid {child.pid}) ended: {how}; to start it again:\n"
        f"    {child.shell_command}"
    )


def _print(document: dict[str, Any]) -> None:
    sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
