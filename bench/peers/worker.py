"""The load: one process that measures one contender at a time, as its standard input says.

Each line in is a JSON object, each line out is its result. Loop and pinning are fixed for the
process, so uvloop and plain asyncio are two workers.
"""

import argparse
import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import redis.asyncio
import spacegrid
import uvloop

from . import data
from .units import Burner

BATCH = 1_000
LOAD_BATCH = 5_000
Operation = Callable[[Iterator[bytes]], Awaitable[Any]]


class Contenders:
    """Connections to everything that is measured, opened when first asked for."""

    def __init__(self, options: argparse.Namespace, keys: list[bytes]) -> None:
        self.options, self.keys = options, keys
        self._redis: redis.asyncio.Redis | None = None
        self._grids: dict[str, spacegrid.AsyncGrid] = {}

    def redis(self) -> redis.asyncio.Redis:
        """Return the redis-py client: hiredis, its own pool, no decoding."""
        if self._redis is None:
            self._redis = redis.asyncio.Redis(port=self.options.redis, protocol=3)
        return self._redis

    async def grid(self, who: str) -> "spacegrid.AsyncGrid":
        """Return a client of `grid` (one node), `pair` (one synchronous backup) or `busy`."""
        if who not in self._grids:
            self._grids[who] = await spacegrid.connect(getattr(self.options, who), timeout=30.0)
        return self._grids[who]

    async def close(self) -> None:
        """Close what was opened."""
        if self._redis is not None:
            await self._redis.aclose()
        for grid in self._grids.values():
            await grid.close()

    async def operation(self, what: str, who: str) -> tuple[Operation, int]:
        """Return one operation of a contender, and how many entries it moves."""
        if who == "redis":
            return self._redis_operation(what)
        entries = (await self.grid(who)).map("bench", key=bytes, value=bytes)
        if what == "get":
            get = entries.get
            return lambda keys: get(next(keys)), 1
        if what == "put":
            put = entries.put
            return lambda keys: put(key := next(keys), data.value(key)), 1
        if what == "get_many":
            return lambda keys: entries.get_many(list(itertools.islice(keys, BATCH))), BATCH
        if what == "put_many":
            return (
                lambda keys: entries.put_many(
                    {key: data.value(key) for key in itertools.islice(keys, BATCH)}
                ),
                BATCH,
            )
        raise ValueError(f"unknown operation {what!r}")

    def _redis_operation(self, what: str) -> tuple[Operation, int]:
        client = self.redis()
        if what == "get":
            return lambda keys: client.get(next(keys)), 1
        if what == "put":
            return lambda keys: client.set(key := next(keys), data.value(key)), 1
        if what == "get_many":
            return lambda keys: client.mget(list(itertools.islice(keys, BATCH))), BATCH
        if what == "put_many":
            return (
                lambda keys: client.mset(
                    {key: data.value(key) for key in itertools.islice(keys, BATCH)}
                ),
                BATCH,
            )
        raise ValueError(f"unknown operation {what!r}")

    async def load(self, who: str) -> dict[str, float]:
        """Write every key once."""
        started = time.monotonic()
        if who == "redis":
            client = self.redis()
            for at in range(0, len(self.keys), LOAD_BATCH):
                await client.mset({key: data.value(key) for key in self.keys[at : at + LOAD_BATCH]})
        else:
            entries = (await self.grid(who)).map("bench", key=bytes, value=bytes)
            for at in range(0, len(self.keys), LOAD_BATCH):
                await entries.put_many(
                    {key: data.value(key) for key in self.keys[at : at + LOAD_BATCH]}
                )
        return {"seconds": time.monotonic() - started}

    async def check(self, who: str) -> dict[str, Any]:
        """Read a few keys back, so that nobody is measured on misses."""
        operation, _ = await self.operation("get", who)
        sample = self.keys[:: max(1, len(self.keys) // 100)]
        for key in sample:
            found = await operation(iter([key]))
            if found != data.value(key):
                raise ValueError(f"{who} returned {found!r} for {key!r}")
        return {"checked": len(sample)}

    async def measure(self, order: dict[str, Any]) -> dict[str, Any]:
        """Run one window of one operation; closed loop, `in_flight` tasks."""
        operation, entries = await self.operation(order["what"], order["who"])
        keys = itertools.cycle(self.keys)
        for _ in range(order.get("skip", 0)):
            next(keys)
        until = time.monotonic() + order["seconds"]
        latencies: list[float] = []
        keep = order.get("latencies", False)
        done = 0

        async def task() -> None:
            nonlocal done
            clock = time.monotonic
            while (began := clock()) < until:
                await operation(keys)
                done += 1
                if keep:
                    latencies.append(clock() - began)

        began = time.monotonic()
        await asyncio.gather(*(task() for _ in range(order["in_flight"])))
        elapsed = time.monotonic() - began
        latencies.sort()
        result: dict[str, Any] = {"per_s": done * entries / elapsed}
        if keep and latencies:
            result["p50_us"] = latencies[len(latencies) // 2] * 1e6
            result["p99_us"] = latencies[int(len(latencies) * 0.99)] * 1e6
        return result

    async def busy(self, order: dict[str, Any]) -> dict[str, Any]:
        """Measure gets while a unit of the same node burns a core in Python."""
        grid = await self.grid("grid")
        seconds = order["seconds"]
        burning = asyncio.ensure_future(grid.call(Burner.burn, "burn", seconds + 1.0))
        await asyncio.sleep(0.2)  # the handler has started; it says nothing before it ends
        result = await self.measure(order | {"what": "get", "who": "grid", "latencies": True})
        await burning
        return result


async def serve(options: argparse.Namespace) -> None:
    """Answer orders until the input ends."""
    contenders = Contenders(options, data.keys(options.entries))
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        if order["do"] == "load":
            result = await contenders.load(order["who"])
        elif order["do"] == "check":
            result = await contenders.check(order["who"])
        elif order["do"] == "busy":
            result = await contenders.busy(order)
        else:
            result = await contenders.measure(order)
        print(json.dumps(result), flush=True)
    await contenders.close()


def main() -> None:
    """Parse the arguments, pin the process, serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), required=True)
    parser.add_argument("--redis", type=int, required=True)
    parser.add_argument("--grid", required=True)
    parser.add_argument("--pair", required=True)
    parser.add_argument("--entries", type=int, required=True)
    parser.add_argument("--core", type=int)
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    factory = uvloop.new_event_loop if options.loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(options))


if __name__ == "__main__":
    main()
