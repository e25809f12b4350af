"""Real orders from a file: invoices through the Orders unit, lines through the Inventory unit."""

from __future__ import annotations

import asyncio
import decimal
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console

import spacegrid
from spacegrid import AsyncGrid
from spacegrid._core import encode_key, partition_of
from spacegrid.testing import LocalCluster

from .check import Rows, differences, repeated, sql_rows
from .grid_side import (
    REQUEST_TIMEOUT_S,
    Targets,
    grid_rows,
    kill_and_probe,
    probe_keys,
    stored_rows,
    until_definite,
)
from .orders_file import Rejected, Row, read_rows
from .report import Latencies, Meter, Report, note
from .units import Inventory, InvoiceLine, Orders

UNITS = ("spacegrid.demo.units:Orders", "spacegrid.demo.units:Inventory")
# One call carries at most this many lines, so that a huge invoice stays under the limits of a
# value and of a record.
LINES_A_CALL_MAX = 1_000


@dataclass(frozen=True)
class RealOrdersOptions:
    """Which file, and how it is sent."""

    path: Path
    limit: int | None = None
    invoices_at_once: int = 64
    nodes: int = 3
    kill: bool = True


@dataclass
class Expected:
    """What the file says must be there in the end, worked out without the grid."""

    orders: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: Rows = field(default_factory=dict)
    stock: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    quantity: int = 0
    revenue: Decimal = Decimal(0)

    @classmethod
    def of_rows(cls, rows: Iterable[Row]) -> Expected:
        """Add up rows; money exactly."""
        expected = cls()
        exact = decimal.Context(prec=2_000, traps=[decimal.Inexact, decimal.InvalidOperation])
        first: dict[str, tuple[str, int]] = {}
        for row in rows:
            amount = exact.multiply(Decimal(row.quantity), row.price)
            order = expected.orders.setdefault(
                row.invoice, {"lines": 0, "quantity": 0, "revenue": Decimal(0)}
            )
            order["lines"] += 1
            order["quantity"] += row.quantity
            order["revenue"] = exact.add(order["revenue"], amount)
            if (row.invoiced_at, row.number) < first.get(row.invoice, ("~", 0)):
                first[row.invoice] = (row.invoiced_at, row.number)
                order.update(
                    invoiced_at=row.invoiced_at, customer=row.customer, country=row.country
                )
            expected.lines[(row.invoice, str(row.number))] = {
                "code": row.code,
                "description": row.description,
                "quantity": row.quantity,
                "invoiced_at": row.invoiced_at,
                "price": row.price,
                "customer": row.customer,
                "country": row.country,
            }
            expected.stock[row.code] += row.quantity
            expected.quantity += row.quantity
            expected.revenue = exact.add(expected.revenue, amount)
        return expected


def with_decimals(rows: Rows, *columns: str) -> Rows:
    """Read the named text columns as exact decimals, in place; other text stays and will differ."""
    for fields in rows.values():
        for column in columns:
            try:
                fields[column] = Decimal(fields[column])
            except (decimal.InvalidOperation, TypeError, KeyError):
                continue
    return rows


class RealOrdersRun:
    """One file on a running cluster."""

    def __init__(self, options: RealOrdersOptions, cluster: LocalCluster, console: Console) -> None:
        self.options, self.cluster, self.console = options, cluster, console
        self.report = Report("real orders")
        self.latencies = Latencies()
        self.acknowledged_lines: set[tuple[str, str]] = set()
        self.half_way = asyncio.Event()
        self.finished = False

    def read(self) -> list[tuple[str, list[InvoiceLine]]]:
        """Read the file; return calls (invoice, lines) in order of each invoice's earliest time."""
        invoices: dict[str, list[Row]] = {}
        for row in read_rows(self.options.path, self.options.limit):
            if isinstance(row, Rejected):
                self.report.rejected.append({"line": row.number, "reason": row.reason})
            else:
                invoices.setdefault(row.invoice, []).append(row)
        self.report.rejected_rows = len(self.report.rejected)
        ordered = sorted(
            invoices.items(), key=lambda item: min((row.invoiced_at, row.number) for row in item[1])
        )
        calls = []
        for invoice, rows in ordered:
            lines = [
                InvoiceLine(
                    row.number,
                    row.code,
                    row.description,
                    row.quantity,
                    row.invoiced_at,
                    row.price,
                    row.customer,
                    row.country,
                )
                for row in rows
            ]
            for start in range(0, len(lines), LINES_A_CALL_MAX):
                calls.append((invoice, lines[start : start + LINES_A_CALL_MAX]))
        return calls

    async def run(self) -> None:
        """Send every invoice, kill one node half way; leaves the figures in `report`."""
        calls = await asyncio.to_thread(self.read)
        total = sum(len(lines) for _, lines in calls)
        note(
            self.console,
            f"{total:,} lines of {len({name for name, _ in calls}):,} invoices, "
            f"{self.report.rejected_rows:,} rows rejected",
        )
        calls.reverse()
        async with spacegrid.connect(*self.cluster.addresses, timeout=REQUEST_TIMEOUT_S) as grid:
            killer = asyncio.create_task(
                self._kill_half_way(grid, calls[len(calls) // 2][0] if calls else "")
            )
            started = time.monotonic()
            with Meter(self.console, "taking orders", total, lambda: "lines") as meter:
                senders = [
                    asyncio.create_task(self._sender(grid, calls, meter, total))
                    for _ in range(self.options.invoices_at_once)
                ]
                try:
                    await asyncio.gather(*senders)
                finally:
                    for task in senders:
                        task.cancel()
                    self._figures(time.monotonic() - started)
            self.finished = True
            self.half_way.set()
            await killer

    async def _sender(
        self, grid: AsyncGrid, calls: list[tuple[str, list[InvoiceLine]]], meter: Meter, total: int
    ) -> None:
        report = self.report
        while calls:
            invoice, lines = calls.pop()
            report.requests += len(lines)
            report.unknown += len(lines)
            started = time.monotonic()
            await until_definite(lambda: grid.call(Orders.place, invoice, lines))  # noqa: B023
            self.latencies.add(time.monotonic() - started)
            report.unknown -= len(lines)
            report.acknowledged += len(lines)
            report.sold = report.acknowledged
            self.acknowledged_lines.update((invoice, str(line.number)) for line in lines)
            meter.advance(len(lines))
            if report.acknowledged * 2 >= total:
                self.half_way.set()

    async def _kill_half_way(self, grid: AsyncGrid, invoice: str) -> None:
        keys = probe_keys(len(await asyncio.to_thread(self.cluster.primaries)))
        await self.half_way.wait()
        if self.finished or not self.options.kill or self.options.nodes < 2:
            return
        primaries = await asyncio.to_thread(self.cluster.primaries)
        victim = primaries[partition_of(encode_key(invoice), len(primaries))]
        note(self.console, f"{self.report.acknowledged:,} lines taken: killing {victim} (SIGKILL)")
        self.report.node_killed = victim
        self.report.service_gap_ms = await kill_and_probe(self.cluster, grid, victim, keys)
        note(
            self.console,
            f"all that {victim} served is served again after {self.report.service_gap_ms:,.0f} ms",
        )

    def _figures(self, elapsed_s: float) -> None:
        report = self.report
        report.elapsed_s = elapsed_s
        report.throughput_per_s = report.acknowledged / elapsed_s if elapsed_s else 0.0
        report.latency_p50_ms = self.latencies.percentile_ms(0.50)
        report.latency_p99_ms = self.latencies.percentile_ms(0.99)

    async def check(self, targets: Targets) -> None:
        """Compare the file with SQL, and grid, LMDB and SQL with each other, row by row."""
        report = self.report
        maps = (Orders.orders, Orders.order_lines, Inventory.stock)
        async with spacegrid.connect(*self.cluster.addresses, timeout=60.0) as grid:
            in_grid = await grid_rows(grid, maps)
        in_lmdb, report.lmdb_records = await asyncio.to_thread(stored_rows, self.cluster, maps)
        in_sql: dict[str, Rows] = {}
        twice: list[str] = []
        for table, key in (
            ("orders", ("invoice",)),
            ("order_lines", ("invoice", "line")),
            ("stock", ("code",)),
        ):
            in_sql[table], count = sql_rows(targets.sql, table, key)
            report.sql_rows += count
            twice += repeated(table, in_sql[table], count, "SQL")
        for rows in (in_grid, in_lmdb, in_sql):
            with_decimals(rows["orders"], "revenue")
            with_decimals(rows["order_lines"], "price")
        rows_of_file = (
            row for row in read_rows(self.options.path, self.options.limit) if isinstance(row, Row)
        )
        expected = Expected.of_rows(rows_of_file)
        self._compare(expected, in_grid, in_lmdb, in_sql)
        report.differences += twice
        report.orders, report.order_lines = len(in_sql["orders"]), len(in_sql["order_lines"])
        report.quantity, report.revenue = expected.quantity, format(expected.revenue, "f")
        places = (in_grid["order_lines"], in_lmdb["order_lines"], in_sql["order_lines"])
        report.lost = sum(
            any(key not in rows for rows in places) for key in self.acknowledged_lines
        )
        beyond = {key for rows in places for key in rows if key not in expected.lines}
        report.duplicated = len(beyond)
        report.checked = True

    def _compare(
        self,
        expected: Expected,
        in_grid: dict[str, Rows],
        in_lmdb: dict[str, Rows],
        in_sql: dict[str, Rows],
    ) -> None:
        report = self.report
        from_file: dict[str, Rows] = {
            "orders": {(name,): fields for name, fields in expected.orders.items()},
            "order_lines": expected.lines,
            "stock": {(code,): {"quantity": quantity} for code, quantity in expected.stock.items()},
        }
        against_sql, against_lmdb, against_file = [], [], []
        for name in ("orders", "order_lines", "stock"):
            against_sql += differences(name, in_grid[name], in_sql[name], "SQL")
            against_lmdb += differences(name, in_grid[name], in_lmdb[name], "LMDB")
            against_file += differences(name, from_file[name], in_sql[name], "SQL")
        report.sql_equals_grid = not against_sql
        report.lmdb_equals_grid = not against_lmdb
        report.sql_equals_file = not against_file
        report.differences = against_file + against_sql + against_lmdb
