"""The unit thread: it runs handlers on the turns that a node hands out.

One thread, one event loop, all units of the node. The grid thread hands over batches (`run`,
`settled`, `calls_done`); each costs one wake-up however many items it has, and none while the loop
is awake anyway.

A handler's first step is taken by hand, inside a context of its own: one that never suspends (the
usual case, since maps are read in this process) costs no task. The task that
`asyncio.current_task()` shows meanwhile is a spare that was made before; a handler that does
suspend takes it over and goes on as an ordinary task, so that timeouts, task groups and libraries
work.

Invariants: every turn that came in is ended with finish() or fail(), once; ending a turn never
starts the next one from inside itself (next turns are queued); after every batch the grid is
woken once, and after every slice of a long one. Nothing here holds a lock while a handler runs.

Who calls: the node's engine. A stopped host can't be started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
import time
from asyncio import tasks as asyncio_tasks
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final

from spacegrid import _core, clock
from spacegrid.errors import SpaceGridError
from spacegrid.wire.status import Status

from .arguments import InvalidArguments
from .calls import CallDesk
from .definition import Unit
from .failure import FailureLog, failure_of, handler_failure
from .runner import Runner, Spare, call_plain, counters, install, new_event_loop, take_first_step
from .turn import Bindings, OutgoingCall, TurnRun

__all__ = ["UnitHost"]

SLICE_TURNS: Final = 256
"""Turns run before the grid is woken and the loop gets a tick for everything else."""
SLICE_NS: Final = 2_000_000
TURNS_OPEN_MAX: Final = 50_000
"""Handlers suspended at one time; more are pushed back."""
TURN_TIMEOUT_S: Final = 30.0
CALL_TIMEOUT_S: Final = 5.0
STOP_MARGIN_S: Final = 10.0
"""How long the hooks and the end of the thread may take, beyond the turns."""
_BACKPRESSURE_HINT: Final = (50).to_bytes(4, "little")

_log = logging.getLogger("spacegrid.unit")


class UnitHost:
    """Runs the turns of one node's units on a thread of its own.

    Args:
        node: The node's data plane.
        units: Unit classes; one object of each is made here.
        submit_calls: Takes calls to other units, a batch at a time, on the unit thread; must only
            hand them over. Each is answered through `calls_done` or its ``on_done``.
        wake: Wakes the grid's loop, so that it takes the node's effects; called on the unit thread.
        turn_timeout_s: Seconds after which a suspended handler is ended with an error.
        call_timeout_s: Seconds that a call from a turn waits for its answer.

    Raises:
        ConfigError: Two units have one name, or one map name is declared with two types.
        TypeError: A class is no unit, or an annotation of a handler can't be resolved.
    """

    def __init__(
        self,
        node: _core.Node,
        units: Sequence[type[Unit]],
        submit_calls: Callable[[list[OutgoingCall]], None],
        wake: Callable[[], None],
        *,
        turn_timeout_s: float = TURN_TIMEOUT_S,
        call_timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        self._desk = CallDesk(node, submit_calls, self._on_void)
        self._wake = wake
        self._turn_timeout_s = turn_timeout_s
        self.call_timeout_ms = max(1, int(min(call_timeout_s, turn_timeout_s) * 1000))
        self._units, self._runners = install(units)
        self.bindings = Bindings()

        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._thread_id = 0
        self._base_context = contextvars.Context()
        # Hand-over from other threads. The flag is cleared before the inbox is read, so an item
        # that comes later schedules another drain.
        self._inbox: deque[tuple[int, Any]] = deque()
        self._drain_scheduled = True  # cleared when on_start is done: nothing runs before that
        self._closed = False
        self._ready: deque[_core.Turn] = deque()
        self._suspended: set[TurnRun] = set()
        self._spare: Spare | None = None
        self._flush_scheduled = False
        self._wake_due = False
        self._stopping = False
        self._stopper: asyncio.Task[None] | None = None
        self._all_ended: asyncio.Event | None = None
        self._failures = FailureLog(_log)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The unit thread's loop, once it runs."""
        return self._loop

    # ---- lifecycle ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread and run every unit's `on_start`; returns when turns can run.

        Raises:
            BaseException: What an `on_start` raised; the thread has ended then.
            RuntimeError: It was started before.
        """
        if self._thread is not None:
            raise RuntimeError("a unit host starts once")
        started: list[BaseException | None] = []
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._thread_main, args=(started, ready), name="spacegrid-units", daemon=True
        )
        self._thread.start()
        ready.wait()
        if started[0] is not None:
            self._thread.join()
            raise started[0]

    def stop(self, timeout_s: float = 10.0) -> None:
        """End all turns, run every unit's `on_stop`, end the thread; returns when that is done.

        Turns that come in from now on are refused as surely not applied. Suspended ones may end by
        themselves within the timeout, so the grid must go on answering their calls meanwhile: don't
        call this on the grid's loop. Idempotent.

        Args:
            timeout_s: Seconds that suspended handlers get.
        """
        thread, loop = self._thread, self._loop
        if thread is None or loop is None or not thread.is_alive():
            return
        if self.in_thread():
            raise RuntimeError("a unit host can't be stopped by a handler")
        self._post(_STOP, timeout_s)
        thread.join(timeout_s + STOP_MARGIN_S)
        if thread.is_alive():
            _log.error("the unit thread does not end: a handler or on_stop blocks it")

    def _thread_main(self, started: list[BaseException | None], ready: threading.Event) -> None:
        self._thread_id = threading.get_ident()
        loop = self._loop = new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            try:
                self._all_ended = asyncio.Event()
                loop.run_until_complete(self._start_units())
            except BaseException as error:
                started.append(error)
                return
            started.append(None)
            ready.set()
            self._schedule_drain()
            loop.run_forever()
        finally:
            self._close(loop)
            ready.set()

    async def _start_units(self) -> None:
        for unit in self._units:
            await unit.on_start()
            unit.__dict__["_serving"] = True

    async def _shut_down(self, timeout_s: float) -> None:
        assert self._loop is not None
        assert self._all_ended is not None
        if self._suspended:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_ended.wait(), timeout_s)
        for run in list(self._suspended):
            self._abandon(run, Status.UNKNOWN, b"the node stops")
        for unit in self._units:
            unit.__dict__["_serving"] = False
            try:
                await unit.on_stop()
            except Exception:
                _log.exception("on_stop of unit %s failed", type(unit).__unit_name__)
        self._loop.stop()

    def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        self._closed = True
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        self._refuse_inbox()
        self._wake()
        asyncio.set_event_loop(None)
        loop.close()

    # ---- hand-over from other threads -----------------------------------------------------------

    def run(self, turns: list[_core.Turn]) -> None:
        """Run these turns, each to its end; from any thread, at most one wake-up."""
        self._post(_TURNS, turns)

    def settled(self, tickets: Iterable[int]) -> None:
        """Tell which tickets of `Node.when_committed` are settled; from any thread."""
        self._post(_TICKETS, list(tickets))

    def calls_done(self, batch: Sequence[tuple[OutgoingCall, int, bytes]]) -> None:
        """Give the answers of submitted calls: (call, status, value) each; from any thread."""
        self._post(_DONE, batch)

    def _post(self, kind: int, payload: Any) -> None:
        self._inbox.append((kind, payload))
        if self._closed:
            self._refuse_inbox()
        elif not self._drain_scheduled:
            self._schedule_drain()

    def _schedule_drain(self) -> None:
        self._drain_scheduled = True
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._drain, context=self._base_context)
        except RuntimeError:  # the loop was closed between the check and the call
            self._refuse_inbox()

    def _refuse_inbox(self) -> None:
        """Refuse turns that came too late; what else came concerns turns that have ended."""
        while self._ready:
            self._refuse(self._ready.popleft())
        while self._inbox:
            kind, payload = self._inbox.popleft()
            if kind == _TURNS:
                for turn in payload:
                    self._refuse(turn)

    def _refuse(self, first: _core.Turn) -> None:
        waiting = [first]
        while waiting:
            waiting.extend(waiting.pop().fail(Status.UNAVAILABLE, b"", clock.now_ms()))

    # ---- the unit thread ------------------------------------------------------------------------

    def in_thread(self) -> bool:
        """Whether the caller is on the unit thread."""
        return threading.get_ident() == self._thread_id

    def new_future(self) -> asyncio.Future[Any]:
        """A future of the unit thread's loop."""
        assert self._loop is not None
        return self._loop.create_future()

    def _drain(self) -> None:
        self._drain_scheduled = False
        inbox = self._inbox
        while inbox:
            kind, payload = inbox.popleft()
            if kind == _TURNS:
                self._ready.extend(payload)
            elif kind == _DONE:
                self._desk.done(payload)
            elif kind == _TICKETS:
                self._desk.settled(payload)
            else:
                assert self._loop is not None
                self._stopping = True
                self._stopper = self._loop.create_task(self._shut_down(payload))
        self._run_slice()

    def _run_slice(self) -> None:
        """Run ready turns, but not for so long that the grid or other handlers wait for it."""
        ready = self._ready
        if ready:
            now_ns = time.perf_counter_ns()
            end_ns = now_ns + SLICE_NS
            for _ in range(SLICE_TURNS):
                turn = ready.popleft()
                now_ns = self._start_turn(turn, now_ns)
                if not ready or now_ns > end_ns:
                    break
        self._after_step()
        if ready:
            self._drain_soon()

    def _drain_soon(self) -> None:
        """Go on in the next loop tick; on the unit thread."""
        if not self._drain_scheduled:
            self._drain_scheduled = True
            assert self._loop is not None
            self._loop.call_soon(self._drain, context=self._base_context)

    def _start_turn(self, turn: _core.Turn, now_ns: int) -> int:
        """Take the first step of a turn. Returns the time after it, in ns."""
        runner = self._runners.get(turn.handler)
        if runner is None or self._stopping or len(self._suspended) >= TURNS_OPEN_MAX:
            self._turn_away(turn, runner)
            return now_ns
        runner.runs += 1
        try:
            args, kwargs = runner.codec.unpack(turn.arguments)
        except InvalidArguments as error:
            runner.failures += 1
            self._wake_due = True
            self._ready.extend(turn.fail(Status.INVALID, str(error).encode(), clock.now_ms()))
            return now_ns
        context = contextvars.Context()
        run = TurnRun(self, turn, runner, context)
        if runner.is_async:
            self._first_step(run, args, kwargs)
        else:
            try:
                answer = context.run(call_plain, run, args, kwargs)
            except BaseException as error:
                self.on_raised(run, error)
            else:
                self.on_returned(run, answer)
        after_ns = time.perf_counter_ns()
        runner.busy_ns += after_ns - now_ns
        return after_ns

    def _first_step(
        self, run: TurnRun, args: tuple[Any, ...], kwargs: dict[str, Any] | None
    ) -> None:
        loop, runner, spare = self._loop, run.runner, self._spare
        assert loop is not None
        if spare is None or spare.wake.done():
            spare = self._spare = Spare(self, loop)
        inner: Coroutine[Any, Any, Any] = (
            runner.function(runner.unit, *args, **kwargs)
            if kwargs
            else runner.function(runner.unit, *args)
        )
        asyncio_tasks._enter_task(loop, spare.task)
        try:
            awaited = run.context.run(take_first_step, run, inner)
        except StopIteration as stop:
            asyncio_tasks._leave_task(loop, spare.task)
            self.on_returned(run, stop.value)
        except BaseException as error:
            asyncio_tasks._leave_task(loop, spare.task)
            self.on_raised(run, error)
        else:
            asyncio_tasks._leave_task(loop, spare.task)
            run.task = spare.task
            run.timer = loop.call_later(self._turn_timeout_s, self._on_turn_timeout, run)
            self._suspended.add(run)
            spare.job = (run, inner, awaited)
            if not spare.wake.done():
                spare.wake.set_result(None)
            self._spare = None

    def _turn_away(self, turn: _core.Turn, runner: Runner | None) -> None:
        now_ms = clock.now_ms()
        if runner is None:
            text = f"no unit here has the handler {turn.handler!r}"
            following = turn.fail(Status.NO_SUCH_HANDLER, text.encode(), now_ms)
        elif self._stopping:
            following = turn.fail(Status.UNAVAILABLE, b"", now_ms)
        else:
            following = turn.fail(Status.BACKPRESSURE, _BACKPRESSURE_HINT, now_ms)
        self._ready.extend(following)
        self._wake_due = True

    # ---- ends of turns --------------------------------------------------------------------------

    def on_returned(self, run: TurnRun, answer: Any) -> None:
        """A handler returned: pack its answer and append its record."""
        if run.ended:
            return
        if run.open_calls is not None:
            waiting = next((c for c in run.open_calls if not c.future.done()), None)
            if waiting is not None:
                self.on_raised(run, _not_awaited(run, waiting))
                return
        try:
            reply = run.runner.codec.encode_reply(answer)
            following = run.turn.finish(reply, clock.now_ms())
        except (SpaceGridError, ValueError) as error:
            self.on_raised(run, error)
            return
        except _core.TurnOver:
            following = []
        self._end(run)
        self._ready.extend(following)

    def on_raised(self, run: TurnRun, error: BaseException) -> None:
        """A handler raised: nothing it wrote is kept."""
        if run.ended:
            return
        run.runner.failures += 1
        status, value = failure_of(error)
        if status == Status.HANDLER_ERROR:
            self._failures.log(run.runner.handler.full_name, error)
        self._fail(run, status, value)

    def _fail(self, run: TurnRun, status: int, value: bytes) -> None:
        try:
            following = run.turn.fail(status, value, clock.now_ms())
        except _core.TurnOver:
            following = []
        self._end(run)
        self._ready.extend(following)

    def _end(self, run: TurnRun) -> None:
        run.ended = True
        self._wake_due = True
        if run.open_calls is not None:
            for call in run.open_calls:
                call.future.cancel()
        if run.task is not None:
            self._suspended.discard(run)
            if run.timer is not None:
                run.timer.cancel()
            if self._stopping and self._all_ended is not None and not self._suspended:
                self._all_ended.set()

    def _abandon(self, run: TurnRun, status: int, value: bytes) -> None:
        """End a suspended turn now, whatever its handler does with the cancellation."""
        if run.ended:
            return
        self._fail(run, status, value)
        if run.task is not None:
            run.task.cancel()

    def _on_turn_timeout(self, run: TurnRun) -> None:
        if run.ended:
            return
        run.runner.failures += 1
        name = run.runner.handler.full_name
        error = TimeoutError(f"{name} timed out: not done after {self._turn_timeout_s:g} s")
        self._failures.log(name, error)
        self._abandon(run, Status.HANDLER_ERROR, handler_failure(error))
        self.after_resume()

    def after_resume(self) -> None:
        """After a suspended handler ended by itself: run what is next, tell the grid."""
        if self._ready:
            self._drain_soon()
        else:
            self._schedule_flush()

    # ---- calls and wake-ups -----------------------------------------------------------------

    def queue_call(self, call: OutgoingCall) -> None:
        """Take a call from a turn; it leaves with the other calls of this tick."""
        self._desk.queue(call)
        self._schedule_flush()

    def _on_void(self, run: TurnRun) -> None:
        """What the turn has read never happened; its caller asks again and it runs again."""
        self._abandon(run, Status.UNKNOWN, b"")

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            assert self._loop is not None
            self._loop.call_soon(self._after_step, context=self._base_context)

    def _after_step(self) -> None:
        """Send what this loop tick queued, all together, and wake the grid once."""
        self._flush_scheduled = False
        self._desk.flush()
        if self._wake_due:
            self._wake_due = False
            self._wake()

    # ---- status ---------------------------------------------------------------------------------

    def status(self) -> dict[str, dict[str, float]]:
        """Counters of each handler: runs, failures, busy_ms (first steps only), suspended."""
        return counters(self._runners, list(self._suspended))


_TURNS: Final = 0
_TICKETS: Final = 1
_DONE: Final = 2
_STOP: Final = 3


def _not_awaited(run: TurnRun, call: OutgoingCall) -> RuntimeError:
    return RuntimeError(
        f"{run.runner.handler.full_name} returned before its call of {call.name} was answered\n"
        "hint: await every self.call"
    )
