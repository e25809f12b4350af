"""What chaos does to the grid, and what must be true of it afterwards.

A workload runs in rounds. In each, workers take steps until the fault of the round is repaired;
then the grid is quiet and the workload checks itself. `Mixed` is the workload of `spacegrid chaos`;
an application writes its own and gives it with `--workload module:Class`.
"""

from __future__ import annotations

from random import Random
from typing import Any, Final, Protocol

from spacegrid import _core
from spacegrid.client.asynchronous import AsyncGrid
from spacegrid.errors import PartitionLost, SpaceGridError
from spacegrid.testing.chaos.recorder import Recorder
from spacegrid.testing.chaos.units import Ledger
from spacegrid.testing.checks import Violation, check_history
from spacegrid.testing.history import Operation, Status

REGISTERS: Final = 16
COUNTERS: Final = 8
ACCOUNTS: Final = 8
TIMEOUTS_S: Final = (0.2, 1.0, 5.0)
CHECK_TIMEOUT_S: Final = 10.0


class Workload(Protocol):
    """Work on the grid that can be checked.

    Attributes:
        units: Units that it calls, each `module:Class`.
    """

    units: tuple[str, ...]

    async def start(self, grid: AsyncGrid, number: int) -> None:
        """Begin a round; numbers start at 1, in each cluster anew."""

    async def step(self, grid: AsyncGrid, recorder: Recorder, random: Random) -> None:
        """Do one thing. Many workers take steps at a time.

        Errors of the grid other than those that a recorder keeps end the run as a violation.
        """

    async def check(self, grid: AsyncGrid, recorder: Recorder) -> list[Violation]:
        """End a round: nobody writes, every node serves."""

    async def check_all(self, grid: AsyncGrid) -> list[Violation]:
        """Look once more at what all rounds have left."""


class Mixed:
    """Registers, counters, keys written once, and a unit's accounts; keys are new in each round."""

    def __init__(self) -> None:
        self.units: tuple[str, ...] = ("spacegrid.testing.chaos.units:Ledger",)
        self._number = 0
        self._serial = 0
        self._once = 0
        self._kept: dict[tuple[str, str], Any] = {}

    # ---- rounds

    async def start(self, grid: AsyncGrid, number: int) -> None:
        """Begin a round with keys of its own; the first one forgets an earlier cluster."""
        if number == 1:
            self._kept.clear()
        self._number, self._once = number, 0

    async def step(self, grid: AsyncGrid, recorder: Recorder, random: Random) -> None:
        """Do one operation, drawn at random."""
        timeout = random.choice(TIMEOUTS_S)
        draw = random.random()
        if draw < 0.6:
            await self._register(grid, recorder, random, timeout)
        elif draw < 0.8:
            key = f"c{self._number}-{random.randrange(COUNTERS)}"
            await self._incr(grid, recorder, key, timeout)
        elif draw < 0.95:
            account = f"a{self._number}-{random.randrange(ACCOUNTS)}"
            await self._add(grid, recorder, account, timeout)
        else:
            await self._write_once(grid, recorder, timeout)

    async def check(self, grid: AsyncGrid, recorder: Recorder) -> list[Violation]:
        """Read everything of the round, and check the round's history."""
        keys = sorted(
            {(o.key.partition("/")[0], o.key.partition("/")[2]) for o in recorder.history}
        )
        for map_name, key in keys:
            operation = await self._get(grid, recorder, map_name, key, CHECK_TIMEOUT_S)
            if operation.status is Status.OK:
                self._kept[map_name, key] = operation.result
        return check_history(recorder.history) + await self._check_postings(grid)

    async def check_all(self, grid: AsyncGrid) -> list[Violation]:
        """Read what earlier rounds left: later faults must not have touched it."""
        found: list[Violation] = []
        for (map_name, key), expected in self._kept.items():
            try:
                value = await self._map(grid, map_name).get(key, timeout=CHECK_TIMEOUT_S)
            except PartitionLost:
                continue
            except SpaceGridError as error:
                found.append(Violation("unhealed", f"{map_name}/{key}: {error}"))
                continue
            if map_name == "accounts" and value is not None:
                value = value.total
            if value != expected:
                kind = "lost" if value is None else "order"
                text = f"{map_name}/{key} is {value!r} at the end, was {expected!r} after its round"
                found.append(Violation(kind, text))
        return found

    # ---- operations

    async def _register(
        self, grid: AsyncGrid, recorder: Recorder, random: Random, timeout: float
    ) -> None:
        key = f"r{self._number}-{random.randrange(REGISTERS)}"
        kind = random.choice(("get", "get", "put", "put", "replace", "delete", "put_if_absent"))
        match kind:
            case "get":
                await self._get(grid, recorder, "registers", key, timeout)
            case "replace":
                await self._replace(grid, recorder, key, timeout)
            case _:
                await self._write(grid, recorder, kind, "registers", key, timeout)

    async def _get(
        self, grid: AsyncGrid, recorder: Recorder, map_name: str, key: str, timeout: float
    ) -> Operation:
        where = self._map(grid, map_name)

        def read(entry: Any) -> tuple[Any, int]:
            if entry is None:
                return None, 0
            value = entry.value.total if map_name == "accounts" else entry.value
            return value, entry.version

        operation = self._operation("get", map_name, key, grid)
        return await recorder.ask(operation, lambda: where.get_entry(key, timeout=timeout), read)

    async def _write(
        self,
        grid: AsyncGrid,
        recorder: Recorder,
        kind: str,
        map_name: str,
        key: str,
        timeout: float,
    ) -> None:
        where = self._map(grid, map_name)
        value = self._next_value()
        argument = None if kind == "delete" else value
        operation = self._operation(kind, map_name, key, grid, argument)
        if kind == "put":
            await recorder.ask(
                operation,
                lambda: where.put(key, value, timeout=timeout),
                lambda version: (None, version),
            )
        elif kind == "put_if_absent":
            await recorder.ask(operation, lambda: where.put_if_absent(key, value, timeout=timeout))
        else:
            await recorder.ask(operation, lambda: where.delete(key, timeout=timeout))

    async def _replace(self, grid: AsyncGrid, recorder: Recorder, key: str, timeout: float) -> None:
        found = await self._get(grid, recorder, "registers", key, timeout)
        if found.status is not Status.OK or found.result is None:
            return
        value, where = self._next_value(), self._map(grid, "registers")
        operation = self._operation("replace", "registers", key, grid, (found.result, value))
        await recorder.ask(
            operation,
            lambda: where.replace(key, value, version=found.version, timeout=timeout),
            lambda version: (True, version),
        )

    async def _incr(self, grid: AsyncGrid, recorder: Recorder, key: str, timeout: float) -> None:
        where = self._map(grid, "counters")
        operation = self._operation("incr", "counters", key, grid, 1)
        await recorder.ask(operation, lambda: where.incr(key, 1, timeout=timeout))

    async def _add(self, grid: AsyncGrid, recorder: Recorder, account: str, timeout: float) -> None:
        calls = grid.options(timeout=timeout)
        operation = self._operation("incr", "accounts", account, grid, 1)
        await recorder.ask(operation, lambda: calls.call(Ledger.add, account, 1))

    async def _write_once(self, grid: AsyncGrid, recorder: Recorder, timeout: float) -> None:
        """Two or three workers race for a key: one wins, and its value stays."""
        self._once += 1
        key = f"o{self._number}-{self._once // 3}"
        await self._write(grid, recorder, "put_if_absent", "registers", key, timeout)

    # ---- checks

    async def _check_postings(self, grid: AsyncGrid) -> list[Violation]:
        """Account and postings were written together, or neither was."""
        found: list[Violation] = []
        accounts, postings = grid.map(Ledger.accounts), grid.map(Ledger.postings)
        for number in range(ACCOUNTS):
            name = f"a{self._number}-{number}"
            try:
                account = await accounts.get(name, timeout=CHECK_TIMEOUT_S)
                if account is None:
                    continue
                keys = [(name, n + 1) for n in range(account.postings + 1)]
                listed = await postings.get_many(keys, timeout=CHECK_TIMEOUT_S)
            except PartitionLost:
                continue
            except SpaceGridError as error:
                found.append(Violation("unhealed", f"account {name}: {error}"))
                continue
            total = sum(posting.amount for posting in listed.values())
            if len(listed) != account.postings or total != account.total:
                text = f"account {name} is {account} with {len(listed)} postings of {total}"
                found.append(Violation("order", text))
        return found

    # ---- shared

    def _operation(
        self, kind: str, map_name: str, key: str, grid: AsyncGrid, argument: Any = None
    ) -> Operation:
        partition = _core.partition_of(_core.encode_key(key), grid.partition_count)
        return Operation(kind, f"{map_name}/{key}", argument, partition=partition)

    def _map(self, grid: AsyncGrid, name: str) -> Any:
        if name == "accounts":
            return grid.map(Ledger.accounts)
        return grid.map(f"chaos-{name}", key=str, value=int)

    def _next_value(self) -> int:
        self._serial += 1
        return self._serial
