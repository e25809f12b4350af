"""Three "machines" on one: folders for their roots, 127.0.0.1 to 127.0.0.3 for their addresses.

The commands of the three-machine guide run in bash as they stand, with paths, addresses and ports
put in place, and with stand-ins for what only a real machine has: sudo, apt-get, useradd, scp,
systemctl. The stand-in for systemctl reads the very units of deploy/ and starts what they say.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Final, Self

ROOT: Final = Path(__file__).parents[2]
SYSTEM_PATHS: Final = ("/etc/spacegrid", "/etc/systemd", "/etc/default", "/var/lib", "/opt")
PORTS: Final = (7700, 2379, 2380)

_SHIMS: Final = {
    "sudo": 'exec "$@"',
    "apt-get": "exit 0",
    "useradd": "exit 0",
    # Everything belongs to whoever runs the test.
    "chown": "exit 0",
    "install": 'for folder; do :; done; mkdir -p "$folder"',
    "spacegrid": 'exec "$PYTHON" -m spacegrid "$@"',
    "python3": 'mkdir -p "$3/bin"; cp "$SHIMS/spacegrid" "$SHIMS/pip" "$3/bin/"',
    "pip": "exit 0",
    "scp": (
        '[ "$1" = -r ] && shift\n'
        "target=${!#}; into=$MACHINES_FOLDER/${target%%:*}${target#*:}\n"
        'mkdir -p "$(dirname "$into.")"\n'
        'cp -rL "${@:1:$#-1}" "$into"'
    ),
    "systemctl": 'exec "$PYTHON" -S "$MACHINES" "$@"',
}


def free_ports(count: int) -> list[int]:
    """Ports that are free on every one of the addresses."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as probe:
            probe.bind(("0.0.0.0", 0))
            port = probe.getsockname()[1]
        if port not in found:
            found.append(port)
    return found


class Machines:
    """Three machines and the operator's own, under one folder."""

    def __init__(self, folder: Path, etcd: str) -> None:
        self.folder = folder
        self._etcd = etcd
        self.own = folder / "own"
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self._shims = folder / "shims"
        for path in (self.own, self._shims, *(self.root(n) for n in (1, 2, 3))):
            path.mkdir(parents=True)
        for n in (1, 2, 3):
            for path in ("etc/default", "etc/systemd/system", "var/lib"):
                (self.root(n) / path).mkdir(parents=True)
        (self.own / "deploy").symlink_to(ROOT / "deploy")
        for name, body in _SHIMS.items():
            shim = self._shims / name
            shim.write_text(f"#!/bin/bash\n{body}\n")
            shim.chmod(stat.S_IRWXU)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.folder.glob("*/run/*.pid"):
            with_pid(file, signal.SIGKILL)

    def root(self, machine: int) -> Path:
        """The folder that is a machine's root."""
        return self.folder / f"127.0.0.{machine}"

    def here(self, text: str) -> str:
        """Addresses and ports of this test in place of the guide's."""
        # etcd's members reach each other from 127.0.0.1, whatever address they have.
        text = re.sub(
            r"--address 10\.0\.0\.(\d)", r"--address 127.0.0.\1 --address 127.0.0.1", text
        )
        text = text.replace("10.0.0.", "127.0.0.")
        for port, free in self.ports.items():
            text = text.replace(f":{port}", f":{free}")
        return text

    def run(self, script: str, machine: int | None = None) -> str:
        """Run a block of the guide: on a machine, or on the operator's own; what it printed."""
        script = self.here(script)
        if machine is not None:
            for path in SYSTEM_PATHS:
                pattern = rf"(?<![\w.:/-]){re.escape(path)}"
                script = re.sub(pattern, str(self.root(machine)) + path, script)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.own if machine is None else self.root(machine),
            env=self._environment(machine),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _environment(self, machine: int | None) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPACEGRID_", "ETCD_"))}
        return {
            **kept,
            "PATH": f"{self._shims}:{os.environ['PATH']}",
            "SHIMS": str(self._shims),
            "PYTHON": sys.executable,
            "ETCD_PROGRAM": self._etcd,
            "MACHINES": __file__,
            "MACHINES_FOLDER": str(self.folder),
            "MACHINE_ROOT": str(self.own if machine is None else self.root(machine)),
        }

    def log(self, machine: int, unit: str) -> str:
        """What a unit has written."""
        return (self.root(machine) / "run" / f"{unit}.log").read_text()


def with_pid(file: Path, number: signal.Signals) -> None:
    """Send a signal to the process group that a unit runs as."""
    try:
        os.killpg(int(file.read_text()), number)
    except (ProcessLookupError, FileNotFoundError):
        return


# ---- the stand-in for systemctl, run as a program


def systemctl(arguments: list[str]) -> None:
    """`daemon-reload`, `enable --now UNIT`, `start UNIT`, `kill --signal NAME UNIT`."""
    root = Path(os.environ["MACHINE_ROOT"])
    verb, unit = arguments[0], arguments[-1]
    if verb in ("enable", "start"):
        start(root, unit)
    elif verb == "kill":
        with_pid(root / "run" / f"{unit}.pid", signal.Signals[arguments[2]])
    else:
        assert verb == "daemon-reload", arguments


def start(root: Path, unit: str) -> None:
    """Start what a unit says, as a process group of its own."""
    run = root / "run"
    run.mkdir(exist_ok=True)
    template, _, instance = unit.partition("@")
    if template == "etcd":
        words = [os.environ["ETCD_PROGRAM"]]
        environment = etcd_environment(root)
    else:
        text = (root / "etc/systemd/system" / f"{template}@.service").read_text()
        found = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)
        assert found is not None
        words = found[1].replace("%i", instance).split()
        words = [word if word[0] != "/" else str(root) + word for word in words]
        environment = {}
        rebase(root / "etc/spacegrid" / f"{instance}.toml", root)
    with (run / f"{unit}.log").open("ab") as log:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=root,
            start_new_session=True,
            env={**os.environ, **environment},
        )
    (run / f"{unit}.pid").write_text(str(process.pid))


def rebase(settings: Path, root: Path) -> None:
    """Paths inside a settings file, put under the machine's root."""
    text = settings.read_text()
    if str(root) not in text:
        settings.write_text(re.sub(r'"(/(?:etc|var)/)', rf'"{root}\1', text))


def etcd_environment(root: Path) -> dict[str, str]:
    """What Debian's unit and the drop-in give to etcd: settings, and credentials it may read."""
    environment = {}
    for line in (root / "etc/default/etcd").read_text().splitlines():
        name, _, value = line.partition("=")
        environment[name] = value
    credentials = root / "run" / "credentials"
    credentials.mkdir(exist_ok=True)
    drop_in = (root / "etc/systemd/system/etcd.service.d/spacegrid.conf").read_text()
    for name, path in re.findall(r"^LoadCredential=([^:]+):(.*)$", drop_in, re.MULTILINE):
        (credentials / name).write_bytes((root / path.lstrip("/")).read_bytes())
    for name, value in re.findall(r"^Environment=([^=]+)=(.*)$", drop_in, re.MULTILINE):
        environment[name] = value.replace("%d", str(credentials))
    return environment


if __name__ == "__main__":
    systemctl(sys.argv[1:])
