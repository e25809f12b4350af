"""`spacegrid demo` on real processes, small: what it reports is what an outsider counts."""

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from spacegrid.demo.command import run_demo
from spacegrid.demo.flash_sale import FlashSaleOptions
from spacegrid.demo.real_orders import RealOrdersOptions

DIRTY = Path(__file__).parent.parent / "data" / "orders_dirty.csv"
SMALL = FlashSaleOptions(pieces=600, requests=3_000, products=3, customers_at_once=64)

pytestmark = pytest.mark.timeout(180)


class Quiet:
    """A console whose text a test can read."""

    def __init__(self) -> None:
        self.file = StringIO()
        self.console = Console(file=self.file, soft_wrap=True)


@pytest.mark.parametrize("victim", ["primary", "controller"])
def test_a_flash_sale_with_a_killed_node_sells_every_piece_once(
    tmp_path: Path, victim: str
) -> None:
    report_path = tmp_path / "report.json"
    quiet = Quiet()
    code = run_demo(
        replace(SMALL, victim=victim),
        sql=f"sqlite:///{tmp_path}/sale.db",
        report_path=report_path,
        console=quiet.console,
    )
    assert code == 0, quiet.file.getvalue()
    report = json.loads(report_path.read_text())
    assert report["sold"] == 600
    assert report["acknowledged"] == report["requests"] == 3_000
    assert [report[key] for key in ("unknown", "oversold", "lost", "duplicated")] == [0, 0, 0, 0]
    assert report["node_killed"]
    assert report["service_gap_ms"] > 0
    assert report["sql_equals_grid"]
    assert report["lmdb_equals_grid"]
    database = sqlite3.connect(tmp_path / "sale.db")
    assert database.execute("SELECT count(*) FROM sales").fetchone() == (600,)
    assert database.execute("SELECT sum(left) FROM stock").fetchone() == (0,)
    database.close()


def test_real_orders_with_every_kind_of_dirt_end_as_the_file_says(tmp_path: Path) -> None:
    report_path = tmp_path / "report.json"
    quiet = Quiet()
    code = run_demo(
        RealOrdersOptions(DIRTY),
        sql=f"sqlite:///{tmp_path}/orders.db",
        lmdb=tmp_path / "nodes",
        report_path=report_path,
        console=quiet.console,
    )
    assert code == 0, quiet.file.getvalue()
    report = json.loads(report_path.read_text())
    assert report["rejected_rows"] == 13
    assert report["order_lines"] == 13
    assert report["sql_equals_file"]
    database = sqlite3.connect(tmp_path / "orders.db")
    stock = dict(database.execute("SELECT code, quantity FROM stock"))
    revenues = dict(database.execute("SELECT invoice, revenue FROM orders"))
    first = database.execute(
        "SELECT invoiced_at, lines, quantity FROM orders WHERE invoice = '1001'"
    ).fetchone()
    database.close()
    assert stock == {
        "85123A": 4,
        "71053": 6,
        "85123a": 1,
        "22423": 27,
        "B": 1,
        "21777": -10,
        "{21777}x": 7,
        "20713Ü": 5,
        "20713": 10,
    }
    assert first == ("2010-12-01 08:20:00", 3, 14)
    exact = Decimal("617283945061728394506172839456.262000000000000000005")
    assert Decimal(revenues["1006"]) == exact


def test_a_target_that_exists_is_refused_without_fresh(tmp_path: Path) -> None:
    (tmp_path / "sale.db").write_text("mine")
    quiet = Quiet()
    assert run_demo(SMALL, sql=f"sqlite:///{tmp_path}/sale.db", console=quiet.console) == 2
    assert "--fresh" in quiet.file.getvalue()
    assert (tmp_path / "sale.db").read_text() == "mine"


def test_interrupted_it_still_writes_its_report_and_leaves_no_process(tmp_path: Path) -> None:
    report_path = tmp_path / "report.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "spacegrid", "demo", "--report", report_path],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("selling:"):
            break
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    process.stdout.close()
    assert process.wait(timeout=60) == 130
    assert json.loads(report_path.read_text())["interrupted"] is True
    assert "interrupted: yes" in rest
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_with_json_the_report_is_all_of_standard_output(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "spacegrid", "demo", "--json"]
    path = tmp_path / "report.json"
    done = subprocess.run(
        [*command, "--input", DIRTY, "--report", path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads(path.read_text())
    assert report["ok"] is True
    assert "nodes ready" in done.stderr
    refused = subprocess.run(
        [*command, "--input", tmp_path / "none.csv"], capture_output=True, text=True
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "none.csv" in refused.stderr


def test_a_file_in_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    with path.open("w") as file:
        csv.writer(file).writerows([["a", "b"], ["1", "2"]])
    quiet = Quiet()
    assert run_demo(RealOrdersOptions(path), console=quiet.console) == 2
    assert "header" in quiet.file.getvalue()
