"""deploy/: the units parse, say what they must, and the node's example settings are settings.

Where systemd is installed it looks over the units too; the checks of our own are made everywhere.
"""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from spacegrid.config import load

DEPLOY = Path(__file__).parents[2] / "deploy"
NODE, DROP_IN = DEPLOY / "spacegrid-node@.service", DEPLOY / "etcd.service.d" / "spacegrid.conf"


def sections(path: Path) -> dict[str, dict[str, list[str]]]:
    """A unit file: section to key to values."""
    found: dict[str, dict[str, list[str]]] = {}
    section = ""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith(("#", ";")):
            continue
        if line.startswith("["):
            section = line.strip()[1:-1]
            found[section] = {}
            continue
        key, equals, value = line.partition("=")
        assert equals, f"{path.name}:{number}: {line}"
        assert key.isidentifier(), f"{path.name}:{number}: {line}"
        found[section].setdefault(key, []).append(value)
    return found


def test_the_nodes_unit_runs_what_the_command_line_has() -> None:
    service = sections(NODE)["Service"]
    (start,) = service["ExecStart"]
    words = start.split()
    assert words[0].endswith("/bin/spacegrid")
    done = subprocess.run(
        [sys.executable, "-m", "spacegrid", words[1], "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    for word in words[2:]:
        if word.startswith("--"):
            assert word in done.stdout
    assert service["RestartPreventExitStatus"] == ["2"], "a wrong setting is no reason to go on"
    # Drain (30), open requests (20) and flush (60) all fit in before systemd kills.
    assert int(service["TimeoutStopSec"][0]) >= 110


@pytest.mark.parametrize(
    "key",
    [
        "NoNewPrivileges",
        "CapabilityBoundingSet",
        "ProtectSystem",
        "ProtectHome",
        "PrivateTmp",
        "PrivateDevices",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectControlGroups",
        "RestrictAddressFamilies",
        "RestrictNamespaces",
        "RestrictSUIDSGID",
        "SystemCallFilter",
        "UMask",
    ],
)
def test_the_nodes_unit_gives_up_what_a_node_does_not_need(key: str) -> None:
    assert key in sections(NODE)["Service"]


def test_etcd_lets_in_nobody_without_a_certificate() -> None:
    service = sections(DROP_IN)["Service"]
    environment = dict(line.split("=", 1) for line in service["Environment"])
    for kind in ("ETCD", "ETCD_PEER"):
        assert environment[f"{kind}_CLIENT_CERT_AUTH"] == "true"
        assert environment[f"{kind}_TRUSTED_CA_FILE"] == "%d/ca.crt"
        assert environment[f"{kind}_CERT_FILE"] == environment[f"{kind}_KEY_FILE"] == "%d/node.pem"
    names = {credential.split(":")[0] for credential in service["LoadCredential"]}
    assert names == {"node.pem", "ca.crt"}


def test_systemd_finds_nothing_to_say(tmp_path: Path) -> None:
    """Where there is no systemd the units are still read for what they are."""
    node, etcd = tmp_path / NODE.name, tmp_path / "etcd.service"
    node.write_text(NODE.read_text().replace("/opt/spacegrid/bin/spacegrid", sys.executable))
    etcd.write_text(f"[Service]\nType=simple\nExecStart={sys.executable}\n")
    shutil.copytree(DROP_IN.parent, tmp_path / DROP_IN.parent.name)
    for path in (NODE, DROP_IN):
        configparser.RawConfigParser(strict=False, allow_no_value=False).read_string(
            path.read_text()
        )
    analyze = shutil.which("systemd-analyze")
    if analyze is not None:
        done = subprocess.run(
            [analyze, "verify", str(node), str(etcd)],
            capture_output=True,
            text=True,
            env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_example_settings_are_settings_and_hold_no_secret() -> None:
    settings = load({}, environ={}, file=DEPLOY / "node-1.toml")
    assert settings.name == "node-1"
    assert settings.listen == "10.0.0.1:7700"
    assert settings.tls_cert is not None
    assert "sg1." not in (DEPLOY / "node-1.toml").read_text()
