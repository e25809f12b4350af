"""House rules that no linter knows: lengths, leftovers, dead links, big files."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILE_LINES_MAX = 500
BLOB_BYTES_MAX = 300_000


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def sources() -> list[Path]:
    return [
        path
        for path in tracked()
        if path.suffix in {".py", ".rs"} and "python/spacegrid/v1" not in path.as_posix()
    ]


def test_a_file_over_500_lines_says_at_its_top_why_it_is_one_room() -> None:
    for path in sources():
        lines = path.read_text().splitlines()
        if len(lines) > FILE_LINES_MAX:
            top = "\n".join(lines[:40])
            assert "one room" in top, f"{path.relative_to(ROOT)} has {len(lines)} lines"


def test_nothing_is_left_for_later_in_the_code() -> None:
    later = re.compile(
        r"\b(TO" r"DO|FIX" r"ME|XX" r"X|NotImplemented" r"Error)\b|todo!\(|unimplemented!\("
    )
    for path in sources():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not later.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()}"


def test_no_tracked_file_is_a_big_blob() -> None:
    for path in tracked():
        assert path.stat().st_size <= BLOB_BYTES_MAX, (
            f"{path.relative_to(ROOT)} is {path.stat().st_size} bytes"
        )


@pytest.mark.parametrize("path", [p for p in tracked() if p.suffix == ".md"], ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.relative_to(ROOT)} links to {target}"


def test_every_page_has_one_title() -> None:
    for path in tracked():
        if path.suffix == ".md":
            outside_code = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
            assert len(re.findall(r"^# ", outside_code, flags=re.MULTILINE)) == 1, path.name


def test_unsafe_rust_stays_in_the_one_file_that_argues_for_it() -> None:
    for path in sources():
        if path.suffix == ".rs" and path.name != "entry.rs":
            assert not re.search(r"\bunsafe\s*(\{|fn|impl)", path.read_text()), path.relative_to(
                ROOT
            )
