"""Tokens: what the file keeps, what the gate makes of it, and that no secret is seen."""

import stat
from pathlib import Path

import pytest
from spacegrid._core import Gate, GateRefused, token_hash
from spacegrid.cli import app
from spacegrid.cli_output import EXIT_USAGE
from spacegrid.errors import ConfigError
from spacegrid.security import tokens
from spacegrid.security.access import Role, methods
from spacegrid.security.secret import Secret, read_secret
from typer.testing import CliRunner

GET, PUT, STOP = (f"/spacegrid.v1.{m}" for m in ("Data/Get", "Data/Put", "Admin/Stop"))


def admitted(gate: Gate, method: str, token: str) -> str:
    try:
        role, name = gate.admit(method, authorization=b"Bearer " + token.encode())
    except GateRefused as refused:
        return str(refused.args[0])
    return f"{Role(role).name} {name}"


def test_a_token_passes_the_gate_with_its_role(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    made = {role: tokens.add(file, f"the-{role}", role) for role in ("read", "write", "admin")}
    gate = Gate("shop", methods())
    assert gate.set_tokens(tokens.read(file)) == 3
    assert admitted(gate, GET, made["read"].reveal()) == "READ the-read"
    assert admitted(gate, PUT, made["read"].reveal()) == "role_denied"
    assert admitted(gate, PUT, made["write"].reveal()) == "WRITE the-write"
    assert admitted(gate, STOP, made["write"].reveal()) == "role_denied"
    assert admitted(gate, STOP, made["admin"].reveal()) == "ADMIN the-admin"
    assert admitted(gate, GET, made["read"].reveal()[:-1] + "!") == "bad_token"


def test_the_file_keeps_hashes_and_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    secret = tokens.add(file, "app", "write").reveal().split(".")[2]
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o604)
    for action in (lambda: tokens.read(file), lambda: tokens.add(file, "b", "read")):
        with pytest.raises(ConfigError, match="allowed is 0600"):
            action()


def test_equal_secrets_look_different() -> None:
    assert token_hash(b"salt-one", "secret") != token_hash(b"salt-two", "secret")


def test_two_tokens_of_one_name_let_one_be_replaced(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    old, new = tokens.add(file, "app", "write"), tokens.add(file, "app", "write")
    gate = Gate("shop", methods())
    gate.set_tokens(tokens.read(file))
    assert admitted(gate, PUT, old.reveal()) == admitted(gate, PUT, new.reveal()) == "WRITE app"
    assert tokens.remove(file, old.reveal().split(".")[1]) == 1
    gate.set_tokens(tokens.read(file))
    assert admitted(gate, PUT, old.reveal()) == "bad_token"
    assert admitted(gate, PUT, new.reveal()) == "WRITE app"
    assert tokens.remove(file, "app") == 1
    assert tokens.rows(file) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a app write 00", "line 1: not five words"),
        ("a app root 0011223344556677 " + "00" * 32, "none of read, write, admin"),
        ("a app read 00 " + "00" * 32, "salt"),
        ("a app read 0011223344556677 zz", "hash"),
    ],
)
def test_a_damaged_file_is_refused_and_not_quoted(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(line + "\n")
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=says) as raised:
        tokens.read(file)
    assert line not in str(raised.value)


@pytest.mark.parametrize(("name", "role"), [("two words", "read"), ("", "read"), ("app", "root")])
def test_a_name_or_role_that_does_not_fit_is_refused(tmp_path: Path, name: str, role: str) -> None:
    with pytest.raises(ConfigError):
        tokens.add(tmp_path / "tokens", name, role)
    assert not (tmp_path / "tokens").exists()


def test_a_secret_is_not_shown(tmp_path: Path) -> None:
    secret = Secret("hunter2")
    for shown in (repr(secret), str(secret), f"{secret}", f"{[secret]}"):
        assert "hunter2" not in shown
    file = tmp_path / "token"
    file.write_text("hunter2\n")
    with pytest.raises(ConfigError, match="0600"):
        read_secret(file, "token file")
    file.chmod(0o600)
    assert read_secret(file, "token file") == secret


def test_the_commands_print_a_token_once(tmp_path: Path) -> None:
    run, file = CliRunner(), tmp_path / "tokens"
    added = run.invoke(app, ["token", "add", "app", "--role", "write", "--tokens", str(file)])
    assert added.exit_code == 0
    assert added.stdout.startswith("sg1.")
    listed = run.invoke(app, ["token", "list", "--tokens", str(file)])
    assert listed.stdout.split()[1:] == ["app", "write"]
    assert run.invoke(app, ["token", "remove", "app", "--tokens", str(file)]).exit_code == 0
    nobody = run.invoke(app, ["token", "remove", "app", "--tokens", str(file)])
    assert nobody.exit_code == EXIT_USAGE
    bad = run.invoke(app, ["token", "add", "app", "--role", "root", "--tokens", str(file)])
    assert "not one of read, write, admin" in bad.stderr
