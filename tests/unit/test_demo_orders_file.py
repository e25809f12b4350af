"""Real orders are read row by row, and only a malformed row is rejected."""

from decimal import Decimal
from pathlib import Path

import pytest
from spacegrid.demo.orders_file import OrdersFileError, Rejected, Row, read_rows

DIRTY = Path(__file__).parent.parent / "data" / "orders_dirty.csv"


def test_every_kind_of_dirt_is_rejected_alone_with_its_line_and_reason() -> None:
    rejected = {row.number: row.reason for row in read_rows(DIRTY) if isinstance(row, Rejected)}
    assert {number: reason.split(" '")[0].split(":")[0] for number, reason in rejected.items()} == {
        7: "7 columns, not 8",
        8: "9 columns, not 8",
        9: "bad UTF-8 at byte 21",
        10: "empty InvoiceNo",
        11: "empty StockCode",
        12: "Quantity",
        13: "Quantity",
        14: "UnitPrice",
        15: "UnitPrice",
        16: "UnitPrice",
        17: "bad InvoiceDate",
        18: "bad quoting",
        19: "0 columns, not 8",
    }


def test_good_rows_keep_their_values_and_their_line_numbers() -> None:
    rows = {row.number: row for row in read_rows(DIRTY) if isinstance(row, Row)}
    assert len(rows) == 13
    assert rows[2].customer == rows[4].customer == "17850"
    assert rows[4].code == "85123a"
    assert rows[6].quantity == -4
    assert rows[20].description == "AIRLINE LOUNGE,METAL SIGN"
    assert rows[21].description == 'RECORD FRAME 7" SINGLE SIZE '
    assert rows[21].customer == ""
    assert rows[22].price == Decimal("-11062.06")
    assert rows[23].description == ""
    assert rows[26].price == Decimal("123456789012345678901234567890.000000000000000000001")
    assert rows[2].invoiced_at == "2010-12-01 08:26:00"


def test_limit_counts_rows_and_not_good_rows() -> None:
    assert len(list(read_rows(DIRTY, limit=6))) == 6


def test_another_header_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(OrdersFileError, match="header 'a,b' is not"):
        list(read_rows(path))


def test_a_line_without_end_is_one_rejected_row(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    header, good = DIRTY.read_bytes().split(b"\n")[:2]
    path.write_bytes(header + b"\n" + b"x" * 1_000_000 + b"\n" + good + b"\n")
    long, row = read_rows(path)
    assert isinstance(long, Rejected)
    assert "over 65,536 bytes" in long.reason
    assert isinstance(row, Row)
    assert row.number == 3
