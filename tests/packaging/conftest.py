"""The wheel in an environment of its own, installed from the wheelhouse, without Rust."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment that has the wheel and no source tree."""
    wheels = sorted((ROOT / "build" / "wheels").glob("*.whl"))
    assert len(wheels) == 1, f"`make wheel` has to run first; found {wheels}"
    environment = tmp_path_factory.mktemp("wheel") / "env"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    from_wheelhouse = ["--find-links", ROOT / "build" / "wheelhouse"]
    subprocess.run(
        [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            *from_wheelhouse,
            wheels[0],
        ],
        check=True,
        env=without_rust(),
    )
    return python


def without_rust() -> dict[str, str]:
    """Return an environment whose PATH has no compiler, without this machine's pip settings."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))
    }
    return kept | {"PATH": "/usr/bin:/bin", "CARGO": "/nonexistent"}


@pytest.fixture
def run_bare(
    bare_python: Path, tmp_path: Path
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run a program in the empty environment, in an empty folder."""

    def run(*arguments: str | Path, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [bare_python, *arguments],
            cwd=tmp_path,
            env=without_rust(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
