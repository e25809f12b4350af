"""What a client proves itself with: arguments before environment, and no token without TLS."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from spacegrid.errors import ConfigError
from spacegrid.security.authority import Authority
from spacegrid.security.client import PLAIN, client_security


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    Authority.create(folder, "shop", datetime.now(UTC))
    return folder / "ca.crt"


def test_nothing_given_is_nothing_proved() -> None:
    assert client_security(environ={}) is PLAIN
    assert PLAIN.metadata == ()
    assert PLAIN.context is None


def test_an_empty_name_is_no_tls_whatever_the_environment_says(ca: Path) -> None:
    assert client_security("", environ={"SPACEGRID_TLS_CA": str(ca)}) is PLAIN


def test_arguments_win_over_the_environment(ca: Path, tmp_path: Path) -> None:
    environ = {"SPACEGRID_TLS_CA": str(ca), "SPACEGRID_TOKEN": "from-environment"}
    assert client_security(environ=environ).authorization == "Bearer from-environment"
    assert client_security(ca, "given", environ).authorization == "Bearer given"
    file = tmp_path / "token"
    file.write_text("from-file\n")
    file.chmod(0o600)
    environ = {"SPACEGRID_TLS_CA": str(ca), "SPACEGRID_TOKEN_FILE": str(file)}
    assert client_security(environ=environ).authorization == "Bearer from-file"
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        client_security(environ=environ)


def test_a_token_never_leaves_without_tls() -> None:
    with pytest.raises(ConfigError, match="without TLS"):
        client_security(token="sg1.a.b", environ={})
    plain = client_security(environ={"SPACEGRID_TOKEN": "sg1.a.b"})
    assert plain.authorization is None


def test_what_is_no_certificate_or_token_is_refused(ca: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't read"):
        client_security(tmp_path / "missing.crt", environ={})
    bad = tmp_path / "bad.crt"
    bad.write_text("no certificate")
    with pytest.raises(ConfigError, match="no PEM certificate"):
        client_security(bad, environ={})
    with pytest.raises(ConfigError, match="characters") as raised:
        client_security(ca, "sg1.a.b\nx-evil: 1", {})
    assert "evil" not in str(raised.value)
