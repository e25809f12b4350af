"""The client guide's code, run as it is printed, embedded in this process; and a light import."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

GUIDE = Path(__file__).parent.parent.parent / "docs" / "guide" / "client.md"


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_code_of_the_client_guide_runs_as_one_program() -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 6
    run("\n".join(blocks))


def test_importing_the_package_brings_neither_grpc_nor_a_node() -> None:
    loaded = run(
        "import sys, spacegrid\n"
        "print(spacegrid.errors, spacegrid.Map, spacegrid.HashRing)\n"
        "print([m for m in ('grpc', 'asyncio', 'spacegrid.node', 'lmdb') if m in sys.modules])"
    )
    assert loaded.endswith("[]\n")


def test_every_public_name_is_there() -> None:
    run(
        "import spacegrid\n"
        "assert all(getattr(spacegrid, name) is not None for name in spacegrid.__all__)\n"
        "assert sorted(spacegrid.__all__) == dir(spacegrid)\n"
    )
