"""`spacegrid certs`: what is issued, what is refused, and when it is said that the end is near."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from spacegrid.cli import app
from spacegrid.cli_output import EXIT_FAILED, EXIT_USAGE
from spacegrid.errors import ConfigError
from spacegrid.security.authority import Authority, issued
from spacegrid.security.files import Watched, expiry_text, load_material
from typer.testing import CliRunner

NOW = datetime(2027, 3, 1, tzinfo=UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "certs", "shop", NOW)


def test_a_node_gets_a_certificate_that_names_it(authority: Authority) -> None:
    one = authority.issue("node-1", ["10.0.0.1", "one.example"], NOW)
    material = load_material(authority.folder / "ca.crt", one.path, one.path)
    assert (material.cluster, material.name) == ("shop", "node-1")
    assert material.not_after == NOW + timedelta(days=365)
    assert sorted(one.addresses) == ["10.0.0.1", "one.example"]


def test_keys_are_their_owners_alone(authority: Authority) -> None:
    path = authority.issue("node-1", ["127.0.0.1"], NOW).path
    for secret in (path, authority.folder / "ca.key"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=r"mode 0640, allowed is 0600.*\n.*chmod 600"):
        load_material(authority.folder / "ca.crt", path, path)
    (authority.folder / "ca.key").chmod(0o644)
    with pytest.raises(ConfigError, match="authority key"):
        Authority(authority.folder)


def test_a_key_shows_in_no_repr(authority: Authority) -> None:
    path = authority.issue("node-1", ["127.0.0.1"], NOW).path
    material = load_material(authority.folder / "ca.crt", path, path)
    assert b"PRIVATE KEY" in material.key
    assert "PRIVATE KEY" not in repr(material)


def test_a_renewed_certificate_has_the_same_names_and_another_key(authority: Authority) -> None:
    one = authority.issue("node-1", ["10.0.0.1", "one.example"], NOW)
    before = load_material(authority.folder / "ca.crt", one.path, one.path)
    later = NOW + timedelta(days=300)
    again = authority.renew("node-1", later)
    after = load_material(authority.folder / "ca.crt", again.path, again.path)
    assert again.addresses == one.addresses
    assert after.not_after == later + timedelta(days=365)
    assert after.key != before.key


def test_no_certificate_outlives_its_authority(authority: Authority) -> None:
    late = NOW + timedelta(days=3600)
    assert authority.issue("node-1", ["127.0.0.1"], late).not_after == NOW + timedelta(days=3650)


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path, authority: Authority) -> None:
    one = authority.issue("node-1", ["127.0.0.1"], NOW).path
    two = authority.issue("node-2", ["127.0.0.1"], NOW).path
    with pytest.raises(ConfigError, match="is not the key of"):
        load_material(authority.folder / "ca.crt", one, two)
    other = Authority.create(tmp_path / "other", "shop", NOW)
    with pytest.raises(ConfigError, match="was not signed by"):
        load_material(other.folder / "ca.crt", one, one)
    authority_pair = tmp_path / "authority.pem"
    authority_pair.write_bytes(
        (authority.folder / "ca.crt").read_bytes() + (authority.folder / "ca.key").read_bytes()
    )
    authority_pair.chmod(0o600)
    with pytest.raises(ConfigError, match="names no node"):
        load_material(authority.folder / "ca.crt", authority_pair, authority_pair)


@pytest.mark.parametrize(
    ("name", "addresses", "says"),
    [
        ("Node-1", ["127.0.0.1"], "lower-case"),
        ("node_1", ["127.0.0.1"], "lower-case"),
        ("n" * 64, ["127.0.0.1"], "63"),
        ("node-1/admin", ["127.0.0.1"], "lower-case"),
        ("node-1", [], "no address"),
        ("node-1", ["10.0.0.1:7700"], "neither a host name nor an IP address"),
    ],
)
def test_a_name_or_address_that_does_not_fit_is_refused(
    authority: Authority, name: str, addresses: list[str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        authority.issue(name, addresses, NOW)


def test_an_authority_is_never_replaced(authority: Authority) -> None:
    with pytest.raises(ConfigError, match="has an authority already"):
        Authority.create(authority.folder, "shop", NOW)


def test_the_end_of_a_certificate_is_told_before_it_comes() -> None:
    assert expiry_text(NOW + timedelta(days=31), NOW) == ""
    assert expiry_text(NOW + timedelta(days=9, hours=1), NOW).startswith("expires in 9 days")
    assert "expired on 2027-02-28" in expiry_text(NOW - timedelta(days=1), NOW)


def test_changed_files_are_read_again_and_unchanged_ones_are_not(tmp_path: Path) -> None:
    file, loads = tmp_path / "f", []
    file.write_text("one")

    def load() -> None:
        text = file.read_text()
        if text == "bad":
            raise ConfigError("bad")
        loads.append(text)

    watched = Watched((file,), load)
    assert not watched.look()
    file.write_text("bad")
    for _ in range(2):
        with pytest.raises(ConfigError):
            watched.look()
    file.write_text("three")
    assert watched.look()
    assert loads == ["one", "three"]


def test_the_commands_make_a_whole_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner()
    assert run.invoke(app, ["certs", "init", "--cluster", "shop"]).exit_code == 0
    assert run.invoke(app, ["certs", "node", "node-1", "--address", "127.0.0.1"]).exit_code == 0
    assert run.invoke(app, ["certs", "list"]).exit_code == 0
    near = ["certs", "node", "node-2", "--address", "127.0.0.1", "--days", "5"]
    assert run.invoke(app, near).exit_code == 0
    listed = run.invoke(app, ["certs", "list"])
    assert listed.exit_code == EXIT_FAILED
    assert "node-2 expires in" in listed.stderr
    assert "spacegrid certs renew node-2" in listed.stderr
    assert run.invoke(app, ["certs", "renew", "node-2"]).exit_code == 0
    assert run.invoke(app, ["certs", "list"]).exit_code == 0
    assert [one.name for one in issued(tmp_path / "certs")] == ["ca", "node-1", "node-2"]
    again = run.invoke(app, ["certs", "init"])
    assert again.exit_code == EXIT_USAGE
    assert "has an authority already" in again.stderr
