"""The command line without a grid: parsing, refusals, exit codes, and where text goes."""

import json
from pathlib import Path

import pytest
from spacegrid.cli import app
from spacegrid.cli_output import EXIT_FAILED, EXIT_USAGE
from spacegrid.errors import ConfigError
from spacegrid.node.up import remove
from typer.testing import CliRunner

NOBODY = "127.0.0.1:1"


@pytest.fixture
def run() -> CliRunner:
    return CliRunner()


def test_help_names_every_command_but_the_hidden_one(run: CliRunner) -> None:
    text = run.invoke(app, ["--help"]).stdout
    for command in ("node", "up", "put", "get", "delete", "status", "partitions", "flush", "stop"):
        assert command in text
    assert "Run the coordinator" not in text


def test_version_is_printed(run: CliRunner) -> None:
    result = run.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("spacegrid ")


def test_a_public_address_is_refused_with_the_reason(run: CliRunner) -> None:
    result = run.invoke(app, ["node", "--listen", "0.0.0.0:7700"])
    assert result.exit_code == EXIT_USAGE
    assert "--tls-ca, --tls-cert and --tokens" in result.stderr
    assert result.stdout == ""


def test_a_node_is_who_its_certificate_names(
    run: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (
        ["certs", "init"],
        ["certs", "node", "node-1", "--address", "127.0.0.1"],
        ["token", "add", "app", "--role", "read"],
    ):
        assert run.invoke(app, command).exit_code == 0
    node = ["node", "--listen", "127.0.0.1:0", "--tls-ca", "certs/ca.crt", "--copies", "1"]
    node += ["--tls-cert", "certs/node-1.pem", "--tokens", "tokens"]
    result = run.invoke(app, [*node, "--name", "node-2"])
    assert result.exit_code == EXIT_USAGE
    assert "'node-2'" in result.stderr
    assert "names 'node-1'" in result.stderr
    Path("tokens").chmod(0o644)
    result = run.invoke(app, node)
    assert result.exit_code == EXIT_USAGE
    assert "chmod 600 tokens" in result.stderr


def test_json_makes_errors_documents_on_stderr(run: CliRunner) -> None:
    result = run.invoke(app, ["node", "--partitions", "0", "--json"])
    assert result.exit_code == EXIT_USAGE
    document = json.loads(result.stderr)
    assert document["error"] == "config"
    assert "allowed is 1 to 65535" in document["message"]


def test_a_value_that_is_no_json_is_refused(run: CliRunner) -> None:
    result = run.invoke(app, ["put", "stock", "tea", "{left: 10}", "--at", NOBODY])
    assert result.exit_code == EXIT_USAGE
    assert "is not JSON" in result.stderr


def test_nobody_at_the_address_is_an_error_and_no_traceback(run: CliRunner) -> None:
    result = run.invoke(app, ["status"], env={"SPACEGRID_ADDRESS": NOBODY})
    assert result.exit_code == EXIT_FAILED
    assert result.stderr.startswith(f"error: no node answers at {NOBODY}")


def test_a_command_waits_for_a_node_no_longer_than_it_is_told(run: CliRunner) -> None:
    result = run.invoke(app, ["get", "stock", "tea", "--at", NOBODY, "--timeout", "0.2"])
    assert result.exit_code == EXIT_FAILED
    assert "no node answers within 0.2 s" in result.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--read", "any"], "read is 'any', must be 'primary', 'confirmed' or 'stale'"),
        (["--max-age", "2"], "max_age goes with read='stale' only"),
    ],
)
def test_a_way_to_read_that_is_none_is_refused(
    run: CliRunner, options: list[str], says: str
) -> None:
    result = run.invoke(app, ["get", "stock", "tea", "--at", NOBODY, *options])
    assert result.exit_code == EXIT_USAGE
    assert says in result.stderr


def test_a_unit_that_is_not_here_is_looked_for_by_name(run: CliRunner, tmp_path: Path) -> None:
    command = ["up", "--nodes", "1", "--port", "0", "--data", str(tmp_path / "space")]
    for _ in range(2):
        result = run.invoke(app, [*command, "--unit", "nowhere:Shop"])
        assert result.exit_code == EXIT_FAILED
        assert result.stderr.count("error: unit 'nowhere:Shop': can't import 'nowhere'") == 1
        assert str(Path.cwd()) in result.stderr
        assert "{" not in result.stderr


def test_fresh_deletes_only_what_a_cluster_has_made(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "node-1").mkdir(parents=True)
    (folder / "node-1" / "log.txt").write_text("")
    (folder / "coordinator").mkdir()
    remove(folder)
    assert not folder.exists()
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        remove(folder)
    assert (folder / "thesis.tex").exists()
