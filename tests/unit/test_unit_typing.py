"""Types of units as a user's editor sees them: mypy on snippets that assert them."""

from pathlib import Path

from mypy import api

SNIPPETS = Path(__file__).parent / "typing"
ROOT = SNIPPETS.parent.parent.parent


def test_calls_and_maps_are_typed_by_their_declarations(tmp_path: Path) -> None:
    files = [str(path) for path in sorted(SNIPPETS.glob("*.py"))]
    report, errors, code = api.run(
        [
            "--config-file",
            str(ROOT / "pyproject.toml"),
            "--warn-unused-ignores",
            "--cache-dir",
            str(tmp_path),
            *files,
        ]
    )
    assert code == 0, report + errors
