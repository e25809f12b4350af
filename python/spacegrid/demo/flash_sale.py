"""The flash sale: 10,000 pieces, 200,000 requests, and a node killed when half is sold."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass

from rich.console import Console

import spacegrid
from spacegrid import AsyncGrid
from spacegrid._core import encode_key, partition_of
from spacegrid.testing import LocalCluster

from .check import DIFFERENCES_MAX, Rows, differences, repeated, sql_rows
from .grid_side import (
    REQUEST_TIMEOUT_S,
    Targets,
    grid_rows,
    kill_and_probe,
    probe_keys,
    stored_rows,
    until_definite,
)
from .report import Latencies, Meter, Report, note
from .units import FlashSale, Stock

UNIT = "spacegrid.demo.units:FlashSale"


@dataclass(frozen=True)
class FlashSaleOptions:
    """Size of the sale; the defaults are the demo's."""

    pieces: int = 10_000
    requests: int = 200_000
    products: int = 5
    customers_at_once: int = 256
    nodes: int = 3
    kill_after_sold: int | None = None
    victim: str = "primary"
    seed: int = 7

    @property
    def kill_at(self) -> int:
        """Pieces sold when the node is killed."""
        return self.pieces // 2 if self.kill_after_sold is None else self.kill_after_sold


class FlashSaleRun:
    """One sale on a running cluster."""

    def __init__(self, options: FlashSaleOptions, cluster: LocalCluster, console: Console) -> None:
        self.options, self.cluster, self.console = options, cluster, console
        self.report = Report("flash sale")
        self.latencies = Latencies()
        self.skus = [f"product-{number}" for number in range(1, options.products + 1)]
        share, rest = divmod(options.pieces, options.products)
        self.opening = {sku: share + (number < rest) for number, sku in enumerate(self.skus)}
        self.bought: Counter[tuple[str, str]] = Counter()
        self.left = Counter(self.opening)
        self.half_sold = asyncio.Event()
        self.done = 0

    async def run(self) -> None:
        """Open the stock, sell, kill one node on the way; leaves the figures in `report`."""
        async with spacegrid.connect(*self.cluster.addresses, timeout=REQUEST_TIMEOUT_S) as grid:
            stock = grid.map(FlashSale.stock)
            for sku, pieces in self.opening.items():
                await stock.put(sku, Stock(pieces))
            requests = self._requests()
            killer = asyncio.create_task(self._kill_when_half_sold(grid))
            started = time.monotonic()
            with Meter(self.console, "selling", self.options.requests, self._detail) as meter:
                customers = [
                    asyncio.create_task(self._customer(grid, requests, meter))
                    for _ in range(self.options.customers_at_once)
                ]
                try:
                    await asyncio.gather(*customers)
                finally:
                    for task in customers:
                        task.cancel()
                    self._figures(time.monotonic() - started)
            self.half_sold.set()
            await killer

    def _detail(self) -> str:
        return f"sold {self.report.sold:,}"

    def _requests(self) -> list[tuple[str, str]]:
        choose = random.Random(self.options.seed)
        wanted = [
            (choose.choice(self.skus), f"customer-{n:06d}") for n in range(self.options.requests)
        ]
        wanted.reverse()
        return wanted

    async def _customer(
        self, grid: AsyncGrid, requests: list[tuple[str, str]], meter: Meter
    ) -> None:
        report = self.report
        while requests:
            sku, customer = requests.pop()
            report.requests += 1
            report.unknown += 1
            started = time.monotonic()
            sold = await until_definite(lambda: grid.call(FlashSale.buy, sku, customer))  # noqa: B023
            self.latencies.add(time.monotonic() - started)
            report.unknown -= 1
            report.acknowledged += 1
            if sold:
                report.sold += 1
                self.left[sku] -= 1
                self.bought[(sku, customer)] += 1
                if report.sold == self.options.kill_at:
                    self.half_sold.set()
            meter.advance()

    async def _kill_when_half_sold(self, grid: AsyncGrid) -> None:
        status = await asyncio.to_thread(self.cluster.primaries)
        keys = probe_keys(len(status))
        await self.half_sold.wait()
        if self.report.sold < self.options.kill_at or self.options.nodes < 2:
            return
        victim = await asyncio.to_thread(self._victim)
        note(self.console, f"{self.report.sold:,} sold: killing {victim} (SIGKILL)")
        self.report.node_killed = victim
        self.report.service_gap_ms = await kill_and_probe(self.cluster, grid, victim, keys)
        note(
            self.console,
            f"all that {victim} served is served again after {self.report.service_gap_ms:,.0f} ms",
        )

    def _victim(self) -> str:
        if self.options.victim == "controller":
            return self.cluster.controller()
        primaries = self.cluster.primaries()
        sku = max(self.skus, key=lambda name: self.left[name])
        return primaries[partition_of(encode_key(sku), len(primaries))]

    def _figures(self, elapsed_s: float) -> None:
        report = self.report
        report.elapsed_s = elapsed_s
        report.throughput_per_s = report.acknowledged / elapsed_s if elapsed_s else 0.0
        report.latency_p50_ms = self.latencies.percentile_ms(0.50)
        report.latency_p99_ms = self.latencies.percentile_ms(0.99)

    async def check(self, targets: Targets) -> None:
        """Compare what was answered with the grid, LMDB and SQL, row by row."""
        report = self.report
        maps = (FlashSale.stock, FlashSale.sales)
        async with spacegrid.connect(*self.cluster.addresses, timeout=30.0) as grid:
            in_grid = await grid_rows(grid, maps)
        in_lmdb, report.lmdb_records = await asyncio.to_thread(stored_rows, self.cluster, maps)
        stock_sql, stock_count = sql_rows(targets.sql, "stock", ("sku",))
        sales_sql, sales_count = sql_rows(targets.sql, "sales", ("sku", "customer"))
        report.sql_rows = stock_count + sales_count
        sql_differences = differences("stock", in_grid["stock"], stock_sql, "SQL")
        sql_differences += differences("sales", in_grid["sales"], sales_sql, "SQL")
        sql_differences += repeated("stock", stock_sql, stock_count, "SQL")
        sql_differences += repeated("sales", sales_sql, sales_count, "SQL")
        lmdb_differences = differences("stock", in_grid["stock"], in_lmdb["stock"], "LMDB")
        lmdb_differences += differences("sales", in_grid["sales"], in_lmdb["sales"], "LMDB")
        report.sql_equals_grid, report.lmdb_equals_grid = not sql_differences, not lmdb_differences
        places = {"grid": in_grid["sales"], "LMDB": in_lmdb["sales"], "SQL": sales_sql}
        report.differences = self._against_answers(places) + self._against_stock(in_grid["stock"])
        report.differences += sql_differences + lmdb_differences
        report.checked = True

    def _against_answers(self, places: dict[str, Rows]) -> list[str]:
        """Count sales that a yes was given for and that are missing, and those without a yes."""
        report, yes = self.report, self.bought
        lost = {
            key: gone
            for key in sorted(yes)
            if (gone := [place for place, rows in places.items() if key not in rows])
        }
        nobody = [(key, place) for place, rows in places.items() for key in rows if key not in yes]
        twice = {key: count for key, count in sorted(yes.items()) if count > 1}
        report.lost = len(lost)
        report.duplicated = sum(twice.values()) - len(twice) + len({key for key, _ in nobody})
        report.oversold = max(0, report.sold - self.options.pieces)
        told = (
            [(key, f"sold, but not in {', '.join(gone)}") for key, gone in lost.items()],
            [(key, f"one order, but {count} times yes") for key, count in twice.items()],
            [(key, f"in {place}, but its buyer got no yes") for key, place in nobody],
        )
        return [
            f"sales {'/'.join(key)}: {what}"
            for kind in told
            for key, what in kind[:DIFFERENCES_MAX]
        ]

    def _against_stock(self, stock: Rows) -> list[str]:
        """Compare the number sold with what could be sold, and with what is left."""
        report, lines = self.report, []
        wanted = min(self.options.pieces, report.requests)
        if report.sold > wanted or (report.sold < wanted and not self._unsold_was_not_wanted()):
            lines.append(f"sold {report.sold:,}, not {wanted:,}")
        for sku, opening in self.opening.items():
            sold = sum(count for (name, _), count in self.bought.items() if name == sku)
            left = stock.get((sku,), {}).get("left")
            if left != opening - sold:
                lines.append(f"stock {sku}: {left} left, but {opening} opened and {sold} were sold")
        return lines

    def _unsold_was_not_wanted(self) -> bool:
        """Whether a small sale simply had fewer requests for a product than pieces."""
        wanted = Counter(sku for sku, _ in self._requests())
        return self.report.sold == sum(min(wanted[sku], self.opening[sku]) for sku in self.skus)
