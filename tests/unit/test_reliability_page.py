"""docs/RELIABILITY.md names a test for each case of the catalogue, and the tests exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "RELIABILITY.md").read_text()
ROWS = dict(re.findall(r"^\| (F\d\d) \| [^|]+ \| ([^|]+) \|$", PAGE, re.MULTILINE))
NUMBERS = [*range(1, 36), *range(46, 54)]
NOT_YET: set[str] = set()
REASON = re.compile(r"can't occur( yet)?: .{40,}")


@pytest.mark.parametrize("case", [f"F{number:02}" for number in NUMBERS])
def test_each_case_has_a_test_named_after_it_or_a_reason(case: str) -> None:
    row = ROWS[case]
    if case in NOT_YET:
        assert row.startswith("not tried yet: "), f"{case} is tried, and NOT_YET does not know"
        return
    if REASON.match(row):
        return
    named = re.findall(r"`([\w/.]+)::(\w+)`", row)
    assert named, f"{case} names no test: {row}"
    for file, name in named:
        assert case.lower() in name, f"{name} is not named after {case}"
        text = (ROOT / file).read_text()
        assert re.search(rf"\b(def|fn) {name}\(", text), f"{file} has no {name}"


def test_what_repeats_a_bug_exists() -> None:
    record = PAGE.partition("## Track record")[2].partition("## The catalogue")[0]
    commands = re.findall(r"`pytest ([\w/.]+)(?: -k (\w+))?`", record)
    assert commands
    for file, name in commands:
        path = ROOT / file
        texts = [path] if path.is_file() else sorted(path.rglob("test_*.py"))
        assert any(name in text.read_text() for text in texts), f"{file} has no test {name}"
