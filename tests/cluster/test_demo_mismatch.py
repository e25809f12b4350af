"""`spacegrid demo` says so when something is wrong: each kind of mismatch, made in real files.

One small cluster sells the same pieces again in every test. The demo compares with copies of its
database and stores that something was changed in, or with other answers than the buyers got.
"""

import json
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmdb
import msgspec
import pytest
from rich.console import Console
from spacegrid.demo import command
from spacegrid.demo.flash_sale import UNIT, FlashSaleOptions, FlashSaleRun
from spacegrid.demo.grid_side import Targets
from spacegrid.demo.real_orders import UNITS, RealOrdersOptions, RealOrdersRun
from spacegrid.testing import LocalCluster

DIRTY = Path(__file__).parent.parent / "data" / "orders_dirty.csv"
# More pieces of each product than anybody wants: every request is sold, in every run.
SALE = FlashSaleOptions(pieces=90, requests=40, products=3, customers_at_once=8, nodes=1)
CHECKSUM_BYTES = 4

pytestmark = pytest.mark.timeout(120)


class Copied:
    """A running cluster whose databases the demo finds as copies, changed behind its back."""

    def __init__(self, cluster: LocalCluster, sql: Path, stores: Path) -> None:
        self.cluster, self.sql, self.stores = cluster, sql, stores
        self.addresses = cluster.addresses
        self.nodes = {name: SimpleNamespace(data=stores / name) for name in cluster.nodes}
        self.change: Callable[[Copied], None] = lambda _: None

    def start(self) -> None:
        """It runs."""

    def stop(self) -> None:
        """It is stopped by its owner."""

    def primaries(self) -> dict[int, str]:
        return self.cluster.primaries()

    def flush(self, timeout_s: float) -> None:
        self.cluster.flush(timeout_s)
        source = sqlite3.connect(self.cluster.settings.sql.removeprefix("sqlite:///"))
        copy = sqlite3.connect(self.sql)
        source.backup(copy)
        source.close()
        copy.close()
        for name, child in self.cluster.nodes.items():
            folder = self.stores / name / "lmdb"
            folder.mkdir(parents=True)
            with lmdb.open(str(child.data / "lmdb"), readonly=True, max_dbs=8) as store:
                store.copy(str(folder))
        self.change(self)

    def execute(self, *statements: str) -> None:
        database = sqlite3.connect(self.sql)
        for statement in statements:
            assert database.execute(statement).rowcount, f"{statement} changed nothing"
        database.commit()
        database.close()

    def store(self, name: str, change: Callable[[bytes], bytes | None]) -> None:
        """Change the first entry of a map in the nodes' stores, or (None) delete it."""
        for folder in self.stores.glob("*/lmdb"):
            with lmdb.open(str(folder), max_dbs=8) as store:
                entries = store.open_db(b"entries", create=False)
                with store.begin(db=entries, write=True) as writing:
                    for key, old in writing.cursor():
                        if key[3 : 3 + key[2]] == name.encode():
                            new = change(old)
                            assert writing.delete(key) if new is None else put(writing, key, new)
                            return
        raise AssertionError(f"the stores have no entry of {name}")


def put(writing: Any, key: bytes, stored: bytes) -> bool:
    checksum = zlib.crc32(stored[CHECKSUM_BYTES:], zlib.crc32(key))
    return bool(writing.put(key, struct.pack("<I", checksum) + stored[CHECKSUM_BYTES:]))


def with_value(value: dict[str, Any]) -> Callable[[bytes], bytes]:
    def change(stored: bytes) -> bytes:
        header = struct.calcsize("<IQQBIH")
        (length,) = struct.unpack_from("<H", stored, header - 2)
        return stored[: header + length] + msgspec.msgpack.encode(value)

    return change


@pytest.fixture(scope="module")
def sale(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    yield from running(tmp_path_factory.mktemp("sale"), [UNIT])


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    yield from running(tmp_path_factory.mktemp("orders"), list(UNITS))


def running(folder: Path, units: list[str]) -> Iterator[LocalCluster]:
    sql = f"sqlite:///{folder}/own.db"
    with LocalCluster(nodes=1, copies=1, units=units, partitions=8, sql=sql, data=folder) as made:
        yield made


class Shown:
    """What came of a run: exit code, report, and the lines that tell differences."""

    def __init__(self, code: int, report: dict[str, Any], text: str) -> None:
        self.code, self.report, self.text = code, report, text
        lines = text.splitlines()
        self.told = [
            line.removeprefix("difference: ") for line in lines if line.startswith("difference: ")
        ]

    def is_refused(self) -> None:
        assert self.code == 1, self.text
        assert self.report["ok"] is False
        assert "ok: no" in self.text.splitlines()
        assert self.told, self.text


Run = FlashSaleRun | RealOrdersRun
Prepare = Callable[[Any], None]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Shown]:
    """Run a demo on a running cluster; `change` its files, its `answers`, or how it is `opened`."""

    def run(
        cluster: LocalCluster,
        options: FlashSaleOptions | RealOrdersOptions = SALE,
        change: Callable[[Copied], None] = lambda _: None,
        answers: Prepare = lambda _: None,
        opened: Prepare = lambda _: None,
    ) -> Shown:
        def copied(**settings: Any) -> Copied:
            made = Copied(cluster, Path(settings["sql"].removeprefix("sqlite:///")), tmp_path / "s")
            made.change = change
            return made

        for kind in (FlashSaleRun, RealOrdersRun):
            whole, check = kind.run, kind.check

            async def run_opened(self: Run, whole: Any = whole) -> None:
                opened(self)
                await whole(self)

            async def check_answers(self: Run, targets: Targets, check: Any = check) -> None:
                answers(self)
                await check(self, targets)

            monkeypatch.setattr(kind, "run", run_opened)
            monkeypatch.setattr(kind, "check", check_answers)
        monkeypatch.setattr(command, "LocalCluster", copied)
        text, report = StringIO(), tmp_path / "report.json"
        code = command.run_demo(
            options,
            sql=f"sqlite:///{tmp_path}/copy.db",
            report_path=report,
            console=Console(file=text, soft_wrap=True),
        )
        return Shown(code, json.loads(report.read_text()), text.getvalue())

    return run


def test_nothing_changed_is_nothing_told(run: Callable[..., Shown], sale: LocalCluster) -> None:
    shown = run(sale)
    assert (shown.code, shown.report["ok"], shown.told) == (0, True, []), shown.text
    assert shown.report["sql_rows"] == shown.report["lmdb_records"] == 43


def test_an_order_lost_everywhere_is_named(run: Callable[..., Shown], sale: LocalCluster) -> None:
    shown = run(sale, answers=lambda made: made.bought.update([("product-1", "customer-lost")]))
    shown.is_refused()
    assert shown.report["lost"] == 1
    assert shown.told[0] == ("sales product-1/customer-lost: sold, but not in grid, LMDB, SQL")
    assert any(line.startswith("stock product-1:") for line in shown.told)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda made: made.execute("DELETE FROM sales WHERE customer = 'customer-000007'"), "SQL"),
        (lambda made: made.store("sales", lambda _: None), "LMDB"),
    ],
    ids=["SQL", "LMDB"],
)
def test_an_order_lost_in_one_place_is_named(
    run: Callable[..., Shown], sale: LocalCluster, change: Any, where: str
) -> None:
    shown = run(sale, change=change)
    shown.is_refused()
    assert shown.report["lost"] == 1
    assert shown.report["sql_equals_grid"] is (where != "SQL")
    assert shown.report["lmdb_equals_grid"] is (where != "LMDB")
    assert [line.split(": ")[1] for line in shown.told] == [
        f"sold, but not in {where}",
        f"not in {where}",
    ]
    if where == "SQL":
        assert all("/customer-000007: " in line for line in shown.told)


def test_an_order_nobody_got_is_a_doubled_one(
    run: Callable[..., Shown], sale: LocalCluster
) -> None:
    shown = run(
        sale,
        change=lambda made: made.execute(
            "INSERT INTO sales (sku, customer, quantity) VALUES ('product-2', 'nobody', 1)"
        ),
    )
    shown.is_refused()
    assert shown.report["duplicated"] == 1
    assert shown.told == [
        "sales product-2/nobody: in SQL, but its buyer got no yes",
        "sales product-2/nobody: only in SQL",
    ]


def test_a_row_twice_under_one_key_is_found(run: Callable[..., Shown], sale: LocalCluster) -> None:
    shown = run(
        sale,
        change=lambda made: made.execute(
            "CREATE TABLE free AS SELECT * FROM sales",
            "DROP TABLE sales",
            "ALTER TABLE free RENAME TO sales",
            "INSERT INTO sales SELECT * FROM sales LIMIT 1",
        ),
    )
    shown.is_refused()
    assert shown.told == ["sales: 41 rows in SQL have 40 keys"]


def test_two_yes_for_one_order_are_found(run: Callable[..., Shown], sale: LocalCluster) -> None:
    def twice(made: FlashSaleRun) -> None:
        made.bought[min(made.bought)] += 1

    shown = run(sale, answers=twice)
    shown.is_refused()
    assert shown.report["duplicated"] == 1
    assert shown.told[0].endswith(": one order, but 2 times yes")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda made: made.execute("UPDATE stock SET left = -3 WHERE sku = 'product-3'"),
            "stock product-3: in SQL left is -3, not ",
        ),
        (
            lambda made: made.execute(
                "ALTER TABLE stock ADD COLUMN note", "UPDATE stock SET note=1"
            ),
            "stock product-1: in SQL note is 1, not None",
        ),
        (
            lambda made: made.store("sales", with_value({"quantity": 9})),
            ": in LMDB quantity is 9, not 1",
        ),
    ],
    ids=["SQL", "a column of SQL", "LMDB"],
)
def test_a_changed_value_is_told_with_both_values(
    run: Callable[..., Shown], sale: LocalCluster, change: Any, told: str
) -> None:
    shown = run(sale, change=change)
    shown.is_refused()
    assert shown.report["sql_equals_grid"] is ("SQL" not in told)
    assert shown.report["lmdb_equals_grid"] is ("LMDB" not in told)
    assert told in shown.told[0]


def test_pieces_sold_beyond_the_stock_are_oversold(
    run: Callable[..., Shown], sale: LocalCluster
) -> None:
    options = FlashSaleOptions(pieces=30, requests=40, products=3, customers_at_once=8, nodes=1)

    def more_in_stock(made: FlashSaleRun) -> None:
        made.opening = dict.fromkeys(made.opening, 30)

    shown = run(sale, options, opened=more_in_stock)
    shown.is_refused()
    assert shown.report["oversold"] == 10
    assert shown.told == ["sold 40, not 30"]


def test_many_differences_are_told_by_the_first(
    run: Callable[..., Shown], sale: LocalCluster
) -> None:
    shown = run(sale, change=lambda made: made.execute("UPDATE sales SET quantity = 2"))
    shown.is_refused()
    assert len(shown.told) == 10
    assert len(shown.report["differences"]) == 20
    assert all(line.endswith("in SQL quantity is 2, not 1") for line in shown.told)


def test_orders_that_differ_from_their_file_are_told(
    run: Callable[..., Shown], orders: LocalCluster, tmp_path: Path
) -> None:
    file = tmp_path / "orders.csv"
    file.write_bytes(DIRTY.read_bytes())
    lines = file.read_bytes().split(b"\n")

    def another_quantity(_: Any) -> None:
        number, column = 1, 3
        cells = lines[number].split(b",")
        cells[column] = b"99"
        file.write_bytes(b"\n".join([*lines[:number], b",".join(cells), *lines[number + 1 :]]))

    options = RealOrdersOptions(file, nodes=1)
    shown = run(orders, options, answers=another_quantity)
    shown.is_refused()
    assert shown.report["sql_equals_file"] is False
    assert shown.report["sql_equals_grid"] is True
    assert any("quantity is" in line and "not 99" in line for line in shown.told), shown.told
