"""A demo's report is ok only when every one of its figures is; one alone that is not decides."""

from dataclasses import replace
from typing import Any

import pytest
from spacegrid.demo.report import Report

GOOD = Report(
    "flash sale",
    requests=5,
    acknowledged=5,
    sql_equals_grid=True,
    lmdb_equals_grid=True,
    sql_equals_file=True,
    checked=True,
)


def test_a_report_without_a_fault_is_ok() -> None:
    assert GOOD.ok
    assert replace(GOOD, sql_equals_file=None).ok


@pytest.mark.parametrize(
    "fault",
    [
        {"checked": False},
        {"interrupted": True},
        {"unknown": 1},
        {"oversold": 1},
        {"lost": 1},
        {"duplicated": 1},
        {"acknowledged": 4},
        {"sql_equals_grid": False},
        {"lmdb_equals_grid": False},
        {"sql_equals_file": False},
        {"differences": ["stock tea: not in SQL"]},
    ],
    ids=lambda fault: next(iter(fault)),
)
def test_one_fault_alone_is_not_ok(fault: dict[str, Any]) -> None:
    report = replace(GOOD, **fault)
    assert not report.ok
    assert report.as_json()["ok"] is False
