"""Steps of handlers: how one starts without a task, and how it becomes one when it suspends.

The first step of a handler is taken by hand. Meanwhile `asyncio.current_task()` is a `Spare`: a
real task that was made before and waits. A handler that never suspends leaves it unused, for the
next one; a handler that does suspend hands its coroutine to the spare, and is an ordinary task from
then on.

Who calls: `host`, on the unit thread only.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from types import coroutine
from typing import Any, Protocol

from spacegrid.errors import ConfigError
from spacegrid.types import current_turn

from .definition import Handler, Unit, handlers_of, maps_of
from .turn import TurnRun

__all__ = [
    "Runner",
    "Spare",
    "call_plain",
    "counters",
    "install",
    "new_event_loop",
    "take_first_step",
]


class Ends(Protocol):
    """Who is told how a suspended handler ended."""

    def on_returned(self, run: TurnRun, answer: Any) -> None:
        """It returned."""

    def on_raised(self, run: TurnRun, error: BaseException) -> None:
        """It raised."""

    def after_resume(self) -> None:
        """Called after either."""


class Runner:
    """A handler on this node: the unit's object, the function, its packers and its counters."""

    __slots__ = ("busy_ns", "codec", "failures", "function", "handler", "is_async", "runs", "unit")

    def __init__(self, handler: Handler[..., Any], unit: Unit) -> None:
        self.handler = handler
        self.unit = unit
        self.function: Callable[..., Any] = handler.function
        self.codec = handler.codec
        self.is_async = handler.is_async
        self.runs = 0
        self.failures = 0
        self.busy_ns = 0


class Spare:
    """A task that waits to take over a handler which suspended in its first step."""

    __slots__ = ("job", "task", "wake")

    def __init__(self, host: Ends, loop: asyncio.AbstractEventLoop) -> None:
        self.wake: asyncio.Future[None] = loop.create_future()
        self.job: tuple[TurnRun, Coroutine[Any, Any, Any], Any] | None = None
        self.task = loop.create_task(self._main(host), context=contextvars.Context())

    async def _main(self, host: Ends) -> None:
        try:
            await self.wake
        except asyncio.CancelledError:
            if self.job is None:
                return
        assert self.job is not None
        run, handler_coroutine, awaited = self.job
        if self.wake.cancelled() and awaited is not None:
            awaited.cancel()
        try:
            answer = await _follow(run.context, handler_coroutine, awaited)
        except BaseException as error:
            host.on_raised(run, error)
        else:
            host.on_returned(run, answer)
        host.after_resume()


@coroutine
def _follow(
    context: contextvars.Context, inner: Coroutine[Any, Any, Any], awaited: Any
) -> Generator[Any, Any, Any]:
    """Go on with a coroutine whose first step yielded ``awaited``, each step in its own context."""
    while True:
        try:
            value = yield awaited
        except BaseException as error:
            step: Callable[[Any], Any] = inner.throw
            argument: Any = error
        else:
            step, argument = inner.send, value
        try:
            awaited = context.run(step, argument)
        except StopIteration as stop:
            return stop.value


def take_first_step(run: TurnRun, inner: Coroutine[Any, Any, Any]) -> Any:
    """Step a handler's coroutine inside its own context; returns what it waits for."""
    current_turn.set(run)
    return inner.send(None)


def call_plain(run: TurnRun, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    """Run a plain handler inside its own context."""
    current_turn.set(run)
    runner = run.runner
    if kwargs:
        return runner.function(runner.unit, *args, **kwargs)
    return runner.function(runner.unit, *args)


def install(units: Sequence[type[Unit]]) -> tuple[list[Unit], dict[str, Runner]]:
    """Make one object of each unit, and find its handlers.

    Returns:
        The objects, and ``"Unit.handler"`` to its runner.

    Raises:
        ConfigError: Two units have one name, or one map name is declared with two value types.
        TypeError: A class is no unit, or an annotation of a handler can't be resolved.
    """
    objects: dict[str, Unit] = {}
    runners: dict[str, Runner] = {}
    declared: dict[str, tuple[str, int]] = {}
    for unit_class in units:
        if not (isinstance(unit_class, type) and issubclass(unit_class, Unit)):
            raise TypeError(f"{unit_class!r} is no unit: it must be a class derived from Unit")
        name = unit_class.__unit_name__
        if not name or name in objects:
            raise ConfigError(f"two units are named {name!r}" if name else "Unit itself is no unit")
        for spec in maps_of(unit_class).values():
            other, schema = declared.setdefault(spec.name, (name, spec.schema))
            if schema != spec.schema:
                raise ConfigError(
                    f"map {spec.name!r} has one value type in unit {other}, another in {name}"
                )
        unit = objects[name] = unit_class()
        for one in handlers_of(unit_class).values():
            try:
                runners[one.full_name] = Runner(one, unit)
            except NameError as error:
                raise TypeError(
                    f"{one.full_name}: an annotation is not defined: {error}"
                ) from error
    return list(objects.values()), runners


def counters(
    runners: Mapping[str, Runner], suspended: Sequence[TurnRun]
) -> dict[str, dict[str, float]]:
    """Counters of each handler, for `UnitHost.status`."""
    waiting = Counter(run.runner.handler.full_name for run in suspended)
    return {
        name: {
            "runs": runner.runs,
            "failures": runner.failures,
            "busy_ms": runner.busy_ns / 1e6,
            "suspended": waiting[name],
        }
        for name, runner in runners.items()
    }


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop for the unit thread: uvloop's where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
