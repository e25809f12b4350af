"""The guide's and the example's code, run as it is printed, embedded in this process."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT / "examples",
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_code_of_the_units_guide_runs_as_one_program() -> None:
    guide = (ROOT / "docs" / "guide" / "units.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    assert len(blocks) == 3
    run("\n".join(blocks))


def test_the_shop_sells_what_is_there() -> None:
    said = run(
        "import asyncio, spacegrid, shop\n"
        "spacegrid.connect = lambda address: spacegrid.open(shop.Shop)\n"
        "asyncio.run(shop.main())\n"
    )
    assert said.count("True") == 10
    assert said.count("False") == 2
