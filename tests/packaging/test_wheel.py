"""The wheel is what users get: it installs without Rust and runs the README's example."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from spacegrid.testing import LocalCluster

ROOT = Path(__file__).parent.parent.parent
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def readme_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def test_the_readme_example_is_the_one_in_examples() -> None:
    assert readme_blocks()[0] == (ROOT / "examples" / "shop.py").read_text()


def test_the_wheel_serves_python_3_11_and_later_with_one_binary() -> None:
    (wheel,) = (ROOT / "build" / "wheels").glob("*.whl")
    assert "-cp311-abi3-" in wheel.name


def test_importing_the_wheel_does_not_load_what_it_does_not_need(run_bare: Run) -> None:
    result = run_bare(
        "-c",
        "import spacegrid, sys; print(sorted(m for m in sys.modules if m in ('grpc', 'lmdb')))",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_the_embedded_example_runs_from_the_wheel(run_bare: Run) -> None:
    result = run_bare("-c", readme_blocks()[1])
    assert result.returncode == 0, result.stderr


@pytest.mark.timeout(120)
def test_the_readme_example_runs_from_the_wheel_against_three_nodes(
    run_bare: Run, bare_python: Path, tmp_path: Path
) -> None:
    program = tmp_path / "shop.py"
    program.write_text(readme_blocks()[0])
    with LocalCluster(
        nodes=3,
        units=["shop:Shop"],
        data=tmp_path / "data",
        sql=f"sqlite:///{tmp_path}/shop.db",
        python=bare_python,
        cwd=tmp_path,
    ) as cluster:
        client = tmp_path / "client.py"
        client.write_text(readme_blocks()[0].replace("localhost:7700", cluster.addresses[0]))
        result = run_bare(client)
    assert result.returncode == 0, result.stderr
    answers = result.stdout.strip().strip("[]").split(", ")
    assert (answers.count("True"), answers.count("False")) == (10, 2)
    assert sys.executable != str(bare_python)
