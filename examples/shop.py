# shop.py    spacegrid up --nodes 3 --unit shop:Shop --sql sqlite:///shop.db     then: python shop.py
import asyncio, msgspec, spacegrid
from spacegrid import Map, Unit, handler

class Stock(msgspec.Struct):
    left: int

class Order(msgspec.Struct):
    quantity: int

class Shop(Unit):
    stock = Map(str, Stock, columns=("sku",))
    orders = Map(tuple[str, str], Order, columns=("sku", "customer"))     # the first part of a key routes

    @handler(route_by="sku")
    async def buy(self, sku: str, customer: str, quantity: int = 1) -> bool:
        item = self.stock.get(sku)                                        # in this process: nothing to await
        if item is None or item.left < quantity:
            return False
        self.stock.put(sku, Stock(item.left - quantity))                  # one commit, on two nodes,
        self.orders.put((sku, customer), Order(quantity))                 # with SQL behind the request
        return True

async def main() -> None:
    async with spacegrid.connect("localhost:7700") as grid:
        await grid.map(Shop.stock).put("tea", Stock(10))
        print(await asyncio.gather(*(grid.call(Shop.buy, "tea", f"c{n}") for n in range(12))))   # ten True

if __name__ == "__main__":
    asyncio.run(main())
