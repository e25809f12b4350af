"""Print the requirements named in pyproject.toml, one a line.

Called by the Makefile: without arguments the runtime requirements (what a user's environment gets),
with `--all` the development and benchmark groups too. Environment markers are left to pip.
"""

import sys
import tomllib
from pathlib import Path


def main() -> None:
    """Print the requirements as shell words."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    names = list(project["project"]["dependencies"])
    if "--all" in sys.argv[1:]:
        for group in project["dependency-groups"].values():
            names += group
    print("\n".join(name.split(";")[0].replace(" ", "") for name in names))


if __name__ == "__main__":
    main()
