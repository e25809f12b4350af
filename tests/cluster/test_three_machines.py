"""The guide's walk through three machines, command by command, on three loopback addresses.

Goal: whoever follows docs/guide/three-machines.md gets what it says. Method: the page's own code
blocks run as they stand (support/machines.py says what is put in place of a real machine), in
order.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from machines import Machines
from spacegrid.testing.etcd import program

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "three-machines.md"
EACH = (1, 2, 3)
LISTED = "10.0.0.2"
"""A line that names this machine too lists all three, and is the same on each."""


def blocks() -> list[tuple[str, str]]:
    """(where, script) of each shell block, and ("python", program) of the program."""
    found = []
    for language, body in re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        if language == "python":
            found.append(("python", body))
            continue
        assert language == "sh"
        head, _, script = body.partition("\n")
        found.append((head.removeprefix("# on "), script))
    return found


def on_machine(script: str, machine: int) -> str:
    """A block that is shown for the first machine, as it is typed on another one."""
    lines = [
        line if LISTED in line else re.sub(r"(10\.0\.0\.|etcd-|node-)1\b", rf"\g<1>{machine}", line)
        for line in script.splitlines()
    ]
    return "\n".join(lines)


def until(machines: Machines, script: str, what: str, timeout_s: float = 60.0) -> str:
    """Run a block of the operator's until it succeeds, as a person would try again."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return machines.run(script)
        except AssertionError as error:
            if time.monotonic() > deadline:
                logs = [machines.log(n, f"spacegrid-node@node-{n}")[-2000:] for n in EACH]
                raise AssertionError(f"waited {timeout_s} s for {what}: {error}\n{logs}") from error
            time.sleep(0.3)


@pytest.mark.timeout(240)
def test_every_command_of_the_walk_does_what_it_says(tmp_path: Path) -> None:
    with Machines(tmp_path, str(Path(program("etcd")).resolve())) as machines:
        walk(machines)


def walk(machines: Machines) -> None:
    secrets = "export SPACEGRID_TLS_CA=certs/ca.crt SPACEGRID_TOKEN_FILE=operator.token\n"
    status = secrets + "spacegrid status --json --at 10.0.0.1:7700"
    seen = []
    for where, script in blocks():
        seen.append(where)
        if where == "own" and "spacegrid status" in script:
            until(machines, status, "every partition to be served")
            shown = machines.run(script)
            assert "node-3" in shown
            assert '{"left":10}' in shown
        elif where == "own":
            machines.run(script)
        elif where == "each":
            for machine in EACH:
                machines.run(script, machine)
        elif where == "python":
            run_program(machines, script)
        elif "SIGKILL" in script:
            machines.run(script, 3)
        else:
            assert where == "10.0.0.1"
            for machine in EACH:
                machines.run(on_machine(script, machine), machine)
    assert seen.count("own") == 3
    assert "python" in seen
    # One machine is lost: the others serve, and it comes back.
    until(machines, secrets + "spacegrid put stock milk 7 --at 10.0.0.1:7700", "writes to go on")
    machines.run("systemctl start spacegrid-node@node-3", 3)

    def whole() -> bool:
        document = json.loads(until(machines, status, "node-3 to be back"))
        names = {node["name"] for node in document["nodes"]}
        return len(names) == 3 and not document["under_replicated"]

    deadline = time.monotonic() + 60
    while not whole():
        assert time.monotonic() < deadline, machines.log(3, "spacegrid-node@node-3")[-2000:]
        time.sleep(0.3)
    # Its registration before may be listed for a while after it was killed; this one answers.
    get = secrets + "spacegrid get stock milk --at 10.0.0.3:7700"
    got = until(machines, get, "node-3 to answer")
    assert got.strip() == "7"
    assert_nobody_gets_in(machines)


def run_program(machines: Machines, program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", machines.here(program)],
        cwd=machines.own,
        capture_output=True,
        text=True,
        timeout=30,
        env={k: v for k, v in os.environ.items() if not k.startswith("SPACEGRID_")},
    )
    assert done.returncode == 0, done.stderr
    assert "'left': 5" in done.stdout


def assert_nobody_gets_in(machines: Machines) -> None:
    """Neither to a node without a token, nor to etcd without a certificate of the authority."""
    bare = "export SPACEGRID_TLS_CA=certs/ca.crt\n! spacegrid get stock tea --at 10.0.0.1:7700"
    machines.run(bare)
    port = machines.ports[2379]
    asked = f'"$PYTHON" - <<END\n{ETCD_WITHOUT_CERTIFICATE.format(port=port)}\nEND'
    assert machines.run(asked).strip() == "refused"


ETCD_WITHOUT_CERTIFICATE = """
import socket, ssl
context = ssl.create_default_context(cafile="certs/ca.crt")
try:
    with socket.create_connection(("127.0.0.1", {port}), timeout=5) as plain:
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as shown:
            shown.sendall(b"GET /health HTTP/1.0\\r\\n\\r\\n")
            print("answered" if shown.recv(100) else "refused")
except OSError:
    print("refused")
"""
