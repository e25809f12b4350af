"""Reports of measurements: what counts as ok, and what is written."""

import json
from pathlib import Path

import pytest
from spacegrid.testing.figures import Report, Target, percentile

LIMIT = Target("gap_p99_ms", 1000.0, "time without service")


@pytest.mark.parametrize(
    ("report", "ok"),
    [
        (Report("r", {"gap_p99_ms": 1000.0}, [LIMIT]), True),
        (Report("r", {"gap_p99_ms": 1000.1}, [LIMIT]), False),
        (Report("r", {}, [LIMIT]), True),
        (Report("r", {"gap_p99_ms": 1.0}, [LIMIT], violations=["a key is gone"]), False),
        (Report("r", {"gap_p99_ms": 1.0}, [LIMIT], interrupted=True), False),
    ],
    ids=["reached", "missed", "not measured", "violated", "interrupted"],
)
def test_a_report_is_ok_when_nothing_is_missed_or_violated(
    tmp_path: Path, report: Report, ok: bool
) -> None:
    report.write(tmp_path / "r.json")
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["ok"] is ok
    assert written["targets"] == {"gap_p99_ms": {"most": 1000.0, "text": "time without service"}}
    assert bool(written["missed"]) == (report.figures.get("gap_p99_ms", 0) > LIMIT.most)


def test_percentiles() -> None:
    assert percentile([], 0.99) == 0.0
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 3.0
    assert percentile(range(100), 0.99) == 99
