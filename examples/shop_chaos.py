"""Chaos on a unit of your own: sell the shop empty while nodes are killed, cut off and restarted.

cd examples
spacegrid chaos --unit shop:Shop --workload shop_chaos:Sales --nemesis kill,cut,pause --cycles 5
"""

from random import Random

from shop import Shop, Stock
from spacegrid import AsyncGrid
from spacegrid.testing import Operation, Recorder, Status, Violation

PIECES = 300


class Sales:
    """Customers buy one piece each, until nothing is left; nothing is sold twice or lost."""

    units = ("shop:Shop",)

    def __init__(self) -> None:
        self.sku = ""
        self.customers = 0

    async def start(self, grid: AsyncGrid, number: int) -> None:
        self.sku, self.customers = f"tea-{number}", 0
        await grid.map(Shop.stock).put(self.sku, Stock(PIECES))

    async def step(self, grid: AsyncGrid, recorder: Recorder, random: Random) -> None:
        self.customers += 1
        customer = f"c{self.customers}"
        # The recorder asks again, under the same token, until the outcome is definite.
        await recorder.ask(
            Operation("buy", self.sku, customer), lambda: grid.call(Shop.buy, self.sku, customer)
        )

    async def check(self, grid: AsyncGrid, recorder: Recorder) -> list[Violation]:
        answered = [o for o in recorder.history if o.status is Status.OK]
        bought = {o.argument for o in answered if o.result}
        keys = grid.map(Shop.orders).keys()
        orders = {customer async for sku, customer in keys if sku == self.sku}
        stock = await grid.map(Shop.stock).get(self.sku)
        found: list[Violation] = []
        if bought - orders:
            found.append(Violation("lost", f"no order for {sorted(bought - orders)}"))
        if stock is None or stock.left != PIECES - len(orders):
            found.append(Violation("twice", f"{stock} after {len(orders)} orders"))
        return found

    async def check_all(self, grid: AsyncGrid) -> list[Violation]:
        return []
