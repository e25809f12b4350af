"""A data pump: one thread that carries a node's committed records into one sink.

The thread looks at the node's roles, takes partitions over or lets them go (`Plan`), reads whole
records after its cursors into a batch when one is due (`Pace`), has the sink write it, and only
then advances the cursors. A cursor pins the log: while the sink is away the log fills to its bound
and the node pushes writers back; the pump drops nothing.

Invariants:
    - A cursor never stands past what is in the sink.
    - A partition whose position is not in the log (a gap) is rewritten whole from a snapshot,
      counted, and logged; it is never read on from somewhere else.
    - Whatever goes wrong is retried with back-off and shown in the status, except a sink that
      belongs to somebody else: then the pump ends; and a node's own disk that failed: then the
      node ends.
    - What a local sink has written it has fsynced; the core is told each position after that.

Over 500 lines in one room: one thread's life, and all that others may ask of it meanwhile.

Who calls: the node's engine. `start`, `wake`, `flush`, `stop`, `status`, `call` from any thread.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import Any, Final, Literal, TypeVar, cast

from spacegrid.errors import (
    ConfigError,
    SinkError,
    SinkMismatch,
    SinkUnavailable,
    SpaceGridError,
    StoreDamaged,
    StoreFailed,
)
from spacegrid.limits import LOG_BYTES_DEFAULT, RECORD_BYTES_MAX
from spacegrid.pump.plan import Backoff, Pace, Plan, Steps
from spacegrid.pump.resync import begin_resync, group_by_size, wait_persisted
from spacegrid.pump.source import LogSource
from spacegrid.pump.status import PumpState, PumpStatus
from spacegrid.sink.base import DeadLetter, LocalSink, Part, Position, ReadBack, SharedSink

__all__ = ["Pump"]

T = TypeVar("T")

POLL_MAX_S: Final = 0.1
"""How often the node's roles are looked at without being woken."""
LOOK_MIN_S: Final = 0.005
"""Shortest time between two looks, however often the pump is woken."""
BATCH_BYTES_MAX: Final = RECORD_BYTES_MAX
LOG_BYTES_PRESSING: Final = LOG_BYTES_DEFAULT // 4
"""From here on, or a quarter of a smaller log's bound, batches don't wait for their interval."""
LOOK_MAX_S: Final = 0.05
"""Longest time spent writing between two looks at the roles."""

log = logging.getLogger(__name__)


class Pump:
    """Write-behind from one node into one sink.

    Args:
        source: The node.
        sink: Where to; used by the pump's thread only from `start` to `stop`.
        name: "shared": what the node is primary of. "local": every complete copy.
        batch_records: Records per transaction; the sink's own default when None.
        interval_s: Longest time a change waits for a batch to fill; the sink's default when None.
        log_bytes: The bound of the node's log.
        clock: Monotonic seconds.
        written: Called after something was written to a local sink: answers may wait for it.
        fatal: Told, on the pump's thread, that the node's own disk failed; does not return to a
            node that goes on acknowledging.

    Raises:
        ConfigError: A bound is not positive, or the name does not fit the sink.
    """

    def __init__(
        self,
        source: LogSource,
        sink: SharedSink | LocalSink,
        name: Literal["shared", "local"] = "shared",
        batch_records: int | None = None,
        interval_s: float | None = None,
        *,
        log_bytes: int = LOG_BYTES_DEFAULT,
        clock: Callable[[], float] = time.monotonic,
        written: Callable[[], None] | None = None,
        fatal: Callable[[StoreFailed], None] | None = None,
    ) -> None:
        self._batch_records = sink.batch_records if batch_records is None else batch_records
        self._interval_s = sink.interval_s if interval_s is None else interval_s
        if self._batch_records < 1 or self._interval_s < 0:
            raise ConfigError(
                f"pump has batches of {self._batch_records} records each {self._interval_s} s, "
                "must be at least 1 record and 0 s"
            )
        if sink.fenced != (name == "shared"):
            raise ConfigError(f"pump {name!r} can't write {sink.name}: that is the other kind")
        self.name = name
        self._source = source
        self._sink = sink
        self._pressing_bytes = min(LOG_BYTES_PRESSING, log_bytes // 4)
        self._clock = clock
        self._written = written
        self._fatal = fatal
        self._asked = False
        self._looked_s = -LOOK_MAX_S
        self._plan = Plan(fenced=sink.fenced)
        self._pace = Pace(self._batch_records, self._interval_s)
        self._backoff = Backoff()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._opened: Future[None] = Future()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._flushes: list[tuple[dict[int, int], Future[bool]]] = []
        self._gone: set[int] = set()
        self._turn = 0
        self._state: PumpState = "starting"
        self._error = ""
        self._due = 0
        self._written_records = 0
        self._written_rows = 0
        self._batch_count = 0
        self._resync_count = 0
        self._parked_count = 0

    # ---- any thread ----

    def start(self, timeout_s: float = 10.0) -> None:
        """Start the thread and open the sink.

        A sink that does not answer is no error: the pump goes on trying.

        Args:
            timeout_s: How long to wait for the first answer of the sink.

        Raises:
            SinkMismatch: It belongs to another cluster or layout; the pump has ended.
        """
        if self._thread is not None:
            raise RuntimeError(f"pump {self.name!r} was started before; make a new one")
        self._thread = threading.Thread(target=self._run, name=f"pump-{self.name}", daemon=True)
        self._thread.start()
        with contextlib.suppress(TimeoutError):
            self._opened.result(timeout_s)

    def wake(self) -> None:
        """There is something new in the log, or in the ownership table. Cheap; never waits."""
        self._wake.set()
        if not self._sink.fenced:
            self._source.wake_local()

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait until everything committed when this was called is in the sink, and durable there.

        Args:
            timeout_s: How long to wait.

        Returns:
            False when it took longer, or the pump has ended.
        """

        def begin() -> Future[bool]:
            reached: Future[bool] = Future()
            self._flushes.append((self._plan.targets(self._source.roles()), reached))
            return reached

        deadline_s = self._clock() + timeout_s
        try:
            reached = self.call(begin, timeout_s)
            return reached.result(max(0.0, deadline_s - self._clock()))
        except (TimeoutError, SinkUnavailable):
            return False

    def stop(self, flush: bool = True, timeout_s: float = 30.0) -> bool:
        """End the thread and close the sink.

        Args:
            flush: Carry over everything committed first.
            timeout_s: How long the flush may take.

        Returns:
            Whether everything committed is in the sink (always False without ``flush``).
        """
        flushed = flush and self._thread is not None and self.flush(timeout_s)
        self._stopping.set()
        self.wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        return flushed

    def status(self) -> PumpStatus:
        """What the pump is doing now."""
        return PumpStatus(
            name=self.name,
            sink=self._sink.name,
            state=self._state,
            partition_count=len(self._plan.taken),
            lag_records=self._plan.lag_records(),
            lag_ms=round(self._pace.waited_s(self._clock()) * 1000),
            written_records=self._written_records,
            written_rows=self._written_rows,
            batch_count=self._batch_count,
            resync_count=self._resync_count,
            parked_count=self._parked_count,
            error=self._error,
        )

    def dead_letters(self, timeout_s: float = 10.0) -> list[DeadLetter]:
        """All records parked in a shared sink, oldest first."""
        return self.call(self._shared().dead_letters, timeout_s)

    def release(self, letter_id: int, timeout_s: float = 10.0) -> None:
        """Write what a dead letter's keys hold now, and hold them back no longer.

        Args:
            letter_id: `DeadLetter.id`.
            timeout_s: How long to wait for the pump.

        Raises:
            SinkError: No such letter, another node owns it, the database still refuses, or what it
                is to be given is not on the copies' own disks yet.
        """

        def run() -> None:
            shared = self._shared()
            letters = {letter.id: letter.partition for letter in shared.dead_letters()}
            shared.release(letter_id, partial(read, letters.get(letter_id, -1)))

        def read(partition: int, name: str, key: bytes) -> tuple[bytes, int] | None:
            # Expiry is a record of the log like every other change, so an entry that is due but
            # not yet expired is still what the sink has to show.
            try:
                entry = self._source.read_entry(name, key, 0)
                # What is read may be newer than what the log gives to a shared sink.
                commits = {row[0]: row[5] for row in self._source.roles()}
                wait_persisted(self._source, partition, commits.get(partition, 0))
            except LookupError as error:
                raise SinkError(
                    f"dead letter {letter_id}: its partition is just being handed over, or is not "
                    "on its copies' disks yet",
                    sink=self._sink.name,
                ) from error
            return None if entry is None else (entry[0], entry[1])

        self.call(run, timeout_s)

    def read_back(self, partitions: Sequence[int], timeout_s: float) -> dict[int, ReadBack]:
        """What a shared sink has of partitions that nobody serves; see `SharedSink.read_back`."""
        return self.call(lambda: self._shared().read_back(partitions), timeout_s)

    def _shared(self) -> SharedSink:
        if not self._sink.fenced:
            raise ConfigError(f"{self._sink.name} has no dead letters: it takes every record")
        return cast(SharedSink, self._sink)

    def call(self, run: Callable[[], T], timeout_s: float) -> T:
        """Run something on the pump's thread, between two batches.

        Raises:
            TimeoutError: It was not run in time, and is not run later unless it had begun.
            SinkUnavailable: The pump has ended; the message says why.
        """
        future: Future[T] = Future()
        self._calls.append((run, future))
        self.wake()
        if self._state in ("stopped", "refused", "failed"):
            self._end_waiting()
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise

    # ---- the pump's thread ----

    def _run(self) -> None:
        try:
            while True:
                wait_s = self._attempt()
                if self._stopping.is_set():
                    break
                if self._state == "retrying":
                    # Only stop() cuts a back-off short; being woken is no reason to hurry.
                    if self._stopping.wait(wait_s):
                        break
                else:
                    self._pause(wait_s)
        except (SinkMismatch, StoreDamaged) as error:
            self._fail("refused", error)
            if not self._opened.done():
                self._opened.set_exception(error)
        except StoreFailed as error:
            self._fail("failed", error)
            if self._fatal is not None:
                self._fatal(error)
        finally:
            if self._state not in ("refused", "failed"):
                self._state = "stopped"
            if not self._opened.done():
                self._opened.set_result(None)
            with contextlib.suppress(SpaceGridError):
                self._sink.close()
            self._end_waiting()

    def _pause(self, wait_s: float) -> None:
        """Wait for the next round; an answer that waits for a local sink ends it at once."""
        if self._sink.fenced:
            self._wake.wait(wait_s)
        else:
            self._asked = self._source.wait_local(wait_s)
        if self._wake.is_set():
            self._wake.clear()
            if not self._asked:
                self._stopping.wait(LOOK_MIN_S)

    def _attempt(self) -> float:
        """One round; how long to wait before the next."""
        try:
            if self._state != "running":
                self._sink.open()
                self._state = "running"
                if self._sink.fenced:
                    # What answers may be another file, or have other tables, than before.
                    self._plan.retake_all()
            wait_s = self._round()
        except (SinkMismatch, StoreDamaged, StoreFailed):
            raise
        except Exception as error:
            # Nothing was advanced, so trying again is always right; a bug shows in the status.
            self._fail("retrying", error)
            self._plan.note(self._source.roles())
            self._pace.due(self._plan.lag_records(), self._clock(), pressed=False)
            wait_s = self._backoff.next_s()
        else:
            self._backoff.reset()
            self._error = ""
        if not self._opened.done():
            self._opened.set_result(None)
        return wait_s

    def _fail(self, state: PumpState, error: Exception) -> None:
        text = (
            str(error) if isinstance(error, SpaceGridError) else f"{type(error).__name__}: {error}"
        )
        if text != self._error:
            known = isinstance(error, SpaceGridError)
            log.warning(
                "pump %s: %s (%s)", self.name, text, state, exc_info=None if known else error
            )
        self._error = text
        self._state = state

    def _end_waiting(self) -> None:
        reason = f": {self._error}" if self._error else ""
        error = SinkUnavailable(f"pump {self.name!r} has ended{reason}", sink=self._sink.name)
        # The pump's thread and whoever asks of one that has ended may both be here.
        with contextlib.suppress(IndexError):
            while True:
                future = self._calls.popleft()[1]
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)
        for _, reached in self._flushes:
            with contextlib.suppress(InvalidStateError):
                reached.set_result(False)

    def _round(self) -> float:
        # Calls first: the look that follows then covers every flush that they began.
        self._run_calls()
        asked, self._asked = self._asked, False
        began_s = now_s = self._clock()
        if not asked or self._flushes or began_s - self._looked_s >= LOOK_MAX_S:
            self._look()
            self._looked_s = began_s
        pressed = bool(self._flushes) or self._source.status()["log_bytes"] >= self._pressing_bytes
        if asked:
            # Whatever there is, in full batches, until nothing is left: they share the fsyncs.
            self._due = max(self._due, self._batch_records)
        due = max(self._due, self._pace.due(self._plan.lag_records(), now_s, pressed=pressed))
        while due > 0 and not self._stopping.is_set():
            count = self._write_batch()
            due = due - count if count else 0
            now_s = self._clock()
            if self._written is not None:
                self._written()
            if self._calls or now_s - began_s > LOOK_MAX_S:
                break
        self._due = due
        self._pace.due(self._plan.lag_records(), now_s, pressed=False)
        self._end_flushes()
        if self._flushes or due > 0:
            return LOOK_MIN_S
        return self._pace.wait_s(now_s, POLL_MAX_S)

    def _run_calls(self) -> None:
        while self._calls:
            run, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue  # nobody waits for it any more
            try:
                future.set_result(run())
            except (SinkUnavailable, StoreFailed) as error:
                future.set_exception(error)
                raise
            except Exception as error:
                future.set_exception(error)

    def _end_flushes(self) -> None:
        reached = [future for targets, future in self._flushes if not self._plan.missing(targets)]
        if reached:
            self._sink.sync()
            self._flushes = [one for one in self._flushes if one[1] not in reached]
            for future in reached:
                future.set_result(True)

    # ---- ownership ----

    def _look(self) -> None:
        self._sink.sync()
        steps = self._plan.observe(self._source.roles())
        self._let_go(steps)
        if steps.take:
            self._take(steps.take)

    def _let_go(self, steps: Steps) -> None:
        for partition in (*steps.pause, *steps.gone):
            self._source.drop_cursor(self.name, partition)
        if steps.pause:
            self._sink.let_go(steps.pause, gone=False)
        # Until the sink has taken it: a disk that is full may not even delete.
        self._gone = self._gone.union(steps.gone) - steps.take.keys()
        if self._gone:
            self._sink.let_go(sorted(self._gone), gone=True)
            self._gone.clear()

    def _take(self, wanted: dict[int, int]) -> None:
        granted = self._sink.take(wanted)
        gaps: list[int] = []
        taken: dict[int, Position] = {}
        for partition in wanted:
            if partition not in granted:
                log.info("%s: partition %d has a newer owner", self._sink.name, partition)
                self._plan.refuse(partition)
                continue
            position = granted[partition] or (0, 0)
            if self._source.set_cursor(self.name, partition, *position):
                taken[partition] = position
            else:
                gaps.append(partition)
        empty = [partition for partition in taken if granted[partition] is None]
        if empty and not self._sink.fenced:
            # Before they count as taken: a disk that is full now is asked again at the next look.
            cast(LocalSink, self._sink).begin(empty)
        for partition, position in taken.items():
            self._plan.take(partition, position)
            self._report(partition)
        self._parked_count = self._count_parked()
        if gaps:
            self._resync(gaps, wanted)

    def _count_parked(self) -> int:
        return self._shared().dead_letter_count if self._sink.fenced else 0

    # ---- full resync ----

    def _resync(self, partitions: Sequence[int], epochs: dict[int, int]) -> None:
        entries = {row[0]: row[6] for row in self._source.roles()}
        for group in group_by_size(partitions, entries):
            self._resync_group(group, epochs)

    def _resync_group(self, partitions: Sequence[int], epochs: dict[int, int]) -> None:
        resyncs = []
        for partition in partitions:
            begun = begin_resync(self._source, self.name, partition, epochs[partition])
            if begun is not None:
                resyncs.append(begun)
        if not resyncs:
            return
        written = False
        try:
            outcome = self._sink.resync(resyncs)
            written = True
        except LookupError as error:
            if type(error) is not LookupError:
                raise  # a key or an index that was not there is a bug, and is shown as one
            # The copy left while it was read; the next look at the roles says what to do.
            return
        finally:
            if not written:
                for resync in resyncs:
                    self._source.drop_cursor(self.name, resync.partition)
        for resync in resyncs:
            if resync.partition in outcome.taken_away:
                # Not in the plan yet: the next look asks for it again, and is told who has it.
                self._source.drop_cursor(self.name, resync.partition)
            else:
                self._plan.take(resync.partition, resync.position)
                self._report(resync.partition)
        done = len(resyncs) - len(outcome.taken_away)
        self._resync_count += done
        self._written_rows += outcome.rows
        self._batch_count += 1
        self._parked_count = self._count_parked()
        log.info("%s: %d partitions written whole, %d rows", self._sink.name, done, outcome.rows)

    # ---- batches ----

    def _write_batch(self) -> int:
        """Write one batch; how many records it carried."""
        parts = self._gather()
        if not parts:
            return 0
        written = self._sink.write(parts)
        for partition in written.taken_away:
            # Somebody newer has it, or the database is not the one it was (an old backup was put
            # in its place): taking it over anew tells which.
            self._source.drop_cursor(self.name, partition)
            self._plan.retake(partition)
        for partition, position in written.moved.items():
            # A commit whose answer was lost did land, or somebody wrote in between: go on from what
            # the sink says, if the log has it.
            self._settle(partition, position)
        records = 0
        for part in parts:
            if part.partition in written.taken_away or part.partition in written.moved:
                continue
            records += part.record_count
            self._settle(part.partition, part.last)
        self._batch_count += 1
        self._written_records += records
        self._written_rows += written.rows
        if written.parked:
            self._parked_count = self._count_parked()
            log.warning("%s refuses %d records: dead letters", self._sink.name, written.parked)
        return records + len(written.moved)

    def _settle(self, partition: int, position: Position) -> None:
        if self._source.set_cursor(self.name, partition, *position):
            self._plan.advance(partition, position)
            self._report(partition)
        else:
            self._plan.retake(partition)

    def _report(self, partition: int) -> None:
        """Tell the node what of a partition survives a loss of power here."""
        if self._sink.fenced:
            return
        position = cast(LocalSink, self._sink).persisted(partition)
        if position is not None:
            self._source.set_persisted(partition, *position)

    def _gather(self) -> list[Part]:
        """Whole records of as many partitions as fit a batch, beginning elsewhere each time."""
        taken = self._plan.taken
        ready = [p for p in self._source.pump_ready(self.name) if p in taken]
        if not ready:
            return []
        self._turn = (self._turn + 1) % len(ready)
        parts: list[Part] = []
        records_left, bytes_left = self._batch_records, BATCH_BYTES_MAX
        for partition in ready[self._turn :] + ready[: self._turn]:
            batch = self._source.read_log(self.name, partition, records_left, bytes_left)
            if batch is None:
                continue
            epoch, first, last, record_count, changes = batch
            after = self._plan.position(partition)
            won_again = self._sink.fenced and epoch != self._plan.epoch(partition)
            if won_again or first[1] != after[1] + 1:
                # Lost and won, or left and joined, between two looks: to be taken over anew.
                self._plan.retake(partition)
                continue
            results = b"" if self._sink.fenced else self._source.streams(partition)
            parts.append(Part(partition, epoch, after, last, record_count, changes, results))
            records_left -= record_count
            bytes_left -= sum(len(c[2]) + len(c[3] or b"") for c in changes)
            if records_left <= 0 or bytes_left <= 0:
                break
        return parts
