"""Read real orders from a file in the Online Retail form, plain or xz, and say what is malformed.

One physical line is one row; its identity is its line number (the header is line 1). A malformed
row is rejected alone, with its reason. Knows nothing of the grid, so the check at the end reads
with it too.
"""

from __future__ import annotations

import csv
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

COLUMNS = (
    "InvoiceNo",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "UnitPrice",
    "CustomerID",
    "Country",
)
INTEGER = re.compile(r"[+-]?[0-9]+\Z")
DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\Z")
CUSTOMER_AS_FLOAT = re.compile(r"([0-9]+)\.0+\Z")
DATE_FORMATS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%m/%d/%Y %H:%M", "%Y-%m-%dT%H:%M:%S")
# What the grid can hold: 64-bit integers, and keys of 4,096 bytes with the line number in them.
QUANTITY_MAX = 2**63 - 1
CODE_BYTES_MAX = 4_000
PRICE_DIGITS_MAX = 100
LINE_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One good row, values as the file has them except the named repairs (customer, date form)."""

    number: int
    invoice: str
    code: str
    description: str
    quantity: int
    invoiced_at: str
    price: Decimal
    customer: str
    country: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """One malformed row: its line number in the file, and why."""

    number: int
    reason: str


class OrdersFileError(ValueError):
    """The file as a whole is not in the Online Retail form."""


def read_rows(path: Path, limit: int | None = None) -> Iterator[Row | Rejected]:
    """Yield every row of the file in order.

    Args:
        path: `.csv`, or `.xz` of one.
        limit: Number of rows at most; None: all.

    Raises:
        OrdersFileError: No header, or another one.
    """
    with open_bytes(path) as file:
        header = read_line(file)
        names = tuple(header.decode("utf-8-sig", "replace").strip().split(","))
        if names != COLUMNS:
            raise OrdersFileError(
                f"{path}: header {','.join(names)!r} is not {','.join(COLUMNS)!r}"
            )
        number = 1
        while limit is None or number <= limit:
            line = read_line(file)
            if not line:
                return
            number += 1
            yield parse_row(number, line)


def open_bytes(path: Path) -> BinaryIO:
    """Open a file, unpacked on the way when it is named .xz."""
    if path.suffix == ".xz":
        return lzma.open(path)  # type: ignore[return-value]  # a LZMAFile reads as BinaryIO does
    return path.open("rb")


def read_line(file: BinaryIO) -> bytes:
    """Read one line; the rest of one over LINE_BYTES_MAX is skipped, and it is malformed."""
    line = file.readline(LINE_BYTES_MAX)
    if len(line) == LINE_BYTES_MAX and not line.endswith(b"\n"):
        while (rest := file.readline(LINE_BYTES_MAX)) and not rest.endswith(b"\n"):
            pass
    return line


def parse_row(number: int, line: bytes) -> Row | Rejected:
    """Turn one line into a row, or say what is wrong with it."""
    try:
        return _row(number, line)
    except _Malformed as error:
        return Rejected(number, str(error))


class _Malformed(Exception):
    pass


def _row(number: int, line: bytes) -> Row:
    if len(line) >= LINE_BYTES_MAX:
        raise _Malformed(f"line is over {LINE_BYTES_MAX:,} bytes")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Malformed(f"bad UTF-8 at byte {error.start}") from None
    try:
        fields = next(csv.reader([text.rstrip("\r\n")], strict=True), [])
    except csv.Error as error:
        raise _Malformed(f"bad quoting: {error}") from None
    if len(fields) != len(COLUMNS):
        raise _Malformed(f"{len(fields)} columns, not {len(COLUMNS)}")
    invoice, code, description, quantity, date, price, customer, country = fields
    for name, value in (("InvoiceNo", invoice), ("StockCode", code)):
        if not value:
            raise _Malformed(f"empty {name}")
        if len(value.encode()) > CODE_BYTES_MAX:
            raise _Malformed(f"{name} of {len(value.encode())} bytes is over {CODE_BYTES_MAX}")
    float_form = CUSTOMER_AS_FLOAT.match(customer)
    return Row(
        number,
        invoice,
        code,
        description,
        _quantity(quantity),
        _date(date),
        _price(price),
        float_form[1] if float_form else customer,
        country,
    )


def _quantity(text: str) -> int:
    if not INTEGER.match(text) or len(text) > 20 or abs(int(text)) > QUANTITY_MAX:
        raise _Malformed(f"Quantity {text[:40]!r} is no integer of 64 bits")
    return int(text)


@lru_cache(maxsize=65_536)
def _price(text: str) -> Decimal:
    if not DECIMAL.match(text):
        raise _Malformed(f"UnitPrice {text[:40]!r} is no finite decimal")
    try:
        price = Decimal(text)
    except InvalidOperation:
        raise _Malformed(f"UnitPrice {text[:40]!r} is out of range") from None
    parts = price.as_tuple()
    if len(parts.digits) + abs(int(parts.exponent)) > PRICE_DIGITS_MAX:
        raise _Malformed(f"UnitPrice {text[:40]!r} has over {PRICE_DIGITS_MAX} digits")
    return price


@lru_cache(maxsize=65_536)
def _date(text: str) -> str:
    for form in DATE_FORMATS:
        try:
            # The file names no time zone, and none is invented.
            return datetime.strptime(text, form).isoformat(sep=" ")  # noqa: DTZ007
        except ValueError:
            continue
    raise _Malformed(f"bad InvoiceDate {text[:40]!r}")
