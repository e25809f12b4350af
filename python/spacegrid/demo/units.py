"""The processing units of both demos: a flash sale, and orders that move stock.

Loaded by the nodes (`--unit spacegrid.demo.units:FlashSale`), called by the demo's clients.
"""

from __future__ import annotations

import asyncio
import decimal
from decimal import Decimal

import msgspec

from spacegrid import Map, Unit, handler

# Money is never rounded: a result that would need more digits than this raises instead.
MONEY = decimal.Context(prec=2_000, traps=[decimal.Inexact, decimal.InvalidOperation])


class Stock(msgspec.Struct):
    """What is left of a product on sale."""

    left: int


class Sale(msgspec.Struct):
    """One sold order of the flash sale."""

    quantity: int


class FlashSale(Unit):
    """Sells what is there, one order a customer's request, and nothing twice."""

    stock = Map(str, Stock, columns=("sku",))
    sales = Map(tuple[str, str], Sale, columns=("sku", "customer"))

    @handler(route_by="sku")
    async def buy(self, sku: str, customer: str, quantity: int = 1) -> bool:
        """Sell `quantity` pieces of `sku` to `customer`, or say no.

        Args:
            sku: Product; routes.
            customer: Who buys; one order each.
            quantity: Pieces, at least 1.

        Returns:
            Whether the pieces are sold. True has exactly one row in `sales`.
        """
        item = self.stock.get(sku)
        if item is None or item.left < quantity:
            return False
        self.stock.put(sku, Stock(item.left - quantity))
        self.sales.put((sku, customer), Sale(quantity))
        return True


class InvoiceLine(msgspec.Struct, array_like=True, frozen=True):
    """One line of an invoice as it travels to the unit."""

    number: int
    code: str
    description: str
    quantity: int
    invoiced_at: str
    price: Decimal
    customer: str
    country: str


class Order(msgspec.Struct):
    """One invoice: what its lines add up to."""

    invoiced_at: str
    customer: str
    country: str
    lines: int
    quantity: int
    revenue: Decimal


class OrderLine(msgspec.Struct):
    """One line of an invoice as it is kept; its identity is (invoice, line number in the file)."""

    code: str
    description: str
    quantity: int
    invoiced_at: str
    price: Decimal
    customer: str
    country: str


class Level(msgspec.Struct):
    """Stock level of one product; opens at 0 and may be negative."""

    quantity: int


class Inventory(Unit):
    """Stock levels, one product a routing key."""

    stock = Map(str, Level, columns=("code",))

    @handler(route_by="code")
    async def move(self, code: str, quantity: int) -> int:
        """Add `quantity` (negative: cancelled) to the level of `code` and return the new level."""
        level = self.stock.get(code)
        quantity += level.quantity if level is not None else 0
        self.stock.put(code, Level(quantity))
        return quantity


class Orders(Unit):
    """Takes an invoice with all its lines; each line moves stock."""

    orders = Map(str, Order, columns=("invoice",))
    order_lines = Map(tuple[str, int], OrderLine, columns=("invoice", "line"))

    @handler(route_by="invoice")
    async def place(self, invoice: str, lines: list[InvoiceLine]) -> int:
        """Keep an invoice, or more lines of one, and move the stock of every line.

        Args:
            invoice: Invoice number; routes.
            lines: At most 1,000, each with another line number.

        Returns:
            Number of lines that the invoice has now.
        """
        # The moves of one invoice leave together. Run again after a failover they carry the same
        # tokens, so nothing moves twice.
        await asyncio.gather(
            *(self.call(Inventory.move, line.code, line.quantity) for line in lines)
        )
        first = min(lines, key=lambda line: (line.invoiced_at, line.number))
        order = self.orders.get(invoice) or Order(
            first.invoiced_at, first.customer, first.country, 0, 0, Decimal(0)
        )
        if first.invoiced_at < order.invoiced_at:
            order.invoiced_at, order.customer, order.country = (
                first.invoiced_at,
                first.customer,
                first.country,
            )
        for line in lines:
            self.order_lines.put(
                (invoice, line.number),
                OrderLine(
                    line.code,
                    line.description,
                    line.quantity,
                    line.invoiced_at,
                    line.price,
                    line.customer,
                    line.country,
                ),
            )
            order.quantity += line.quantity
            order.revenue = exact_sum(order.revenue, line.quantity, line.price)
        order.lines += len(lines)
        self.orders.put(invoice, order)
        return order.lines


def exact_sum(total: Decimal, quantity: int, price: Decimal) -> Decimal:
    """Return total + quantity * price without rounding, whatever the number of digits."""
    return MONEY.add(total, MONEY.multiply(Decimal(quantity), price))
