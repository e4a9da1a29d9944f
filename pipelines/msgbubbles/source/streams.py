"""Reads one stream: plans from its coverage, reads intervals, loads the rows, and covers as far as was read."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, MutableMapping
from contextlib import closing
from datetime import timedelta
from functools import partial
from typing import Any, Generic

from msgbubbles.api_time import MAX_SURPRISE
from msgbubbles.client import Client
from msgbubbles.errors import ApiError, Halt, MsgBubblesError, is_unit_error
from msgbubbles.models import Page, R, StreamCoverage, fingerprint
from msgbubbles.times import from_epoch_ms, to_epoch_ms

from . import coverage as plan
from .buffer import RowBuffer
from .config import Settings
from .coverage import Coverage, Task
from .failed_pages import NEVER_MS, FailedPages
from .failed_reads import FailedReads
from .fetch import InFlight, OneByOne, walks_at_once
from .intervals import IntervalQueue, OpenInterval
from .paginate import PageResult, Paginator
from .run import BatchEnd, Run, ShareSpent, StreamContext, known_overflows, save_overflows
from .state import ChatsState, ListState, MessagesState, NumbersState, ResourceState, decode, encode

Fetch = Callable[[str | None], Page[R]]
Read = Callable[[Any, StreamContext], Iterator[Any]]

# A run that comes after a long pause does not make up for all of it: it would take as long.
MAX_MINUTES_BETWEEN_RUNS = 60.0
# A time of reading may be so far ahead of the API's clock; later ones were made by a clock that was wrong.
MAX_AHEAD_MS = round(MAX_SURPRISE / timedelta(milliseconds=1))
STATES: dict[str, type[NumbersState | MessagesState | ChatsState]] = {
    "numbers": NumbersState,
    "messages": MessagesState,
    "chats": ChatsState,
}


class StreamReader(Generic[R]):
    """Reads the rows of one list endpoint, and yields items for dlt.

    `fetch` asks for the page before an ISO 8601 time. `state` is right wherever the reading ends.
    """

    # Whether the next page may be asked for while the rows of one are still being loaded.
    reads_ahead = True

    def __init__(self, stream: str, fetch: Fetch[R], state: ListState, context: StreamContext) -> None:
        self.stream = stream
        self.state = state
        self.context = context
        self.buffer = context.buffer
        self.settings = context.settings
        self.run = context.run
        self.progress = self.run.progress(stream)
        self.coverage = Coverage(state.covered)
        self.seen = frozenset(state.seen)
        self.seen_ms = state.seen_ms
        self.now_ms: int | None = None  # the API's clock, by the last page
        # What was read, by the task that asked for it.
        self.intervals: list[tuple[Task, int, int]] = []
        self._failed_pages = FailedPages(stream, fetch, context.failed)
        self._now_seen: set[str] = set()
        self._now_seen_ms: int | None = None
        self._fetch = fetch
        self._pages_left = self.run.batch_pages
        self._is_first_batch = self.progress.pages == 0
        self._refresh_from: int | None = None  # the pages read before the refresh began
        self.progress.covered_before = self.progress.covered_before or Coverage(self.coverage.intervals)
        self.progress.covered = self.coverage

    def read(self) -> Iterator[Any]:
        """Read what is new, then what has to be read again, then what was never read, as far as the run allows."""
        try:
            yield from self._read()
            self.finish()
        except Halt:
            self.finish()
            raise
        finally:
            self._save()

    def _read(self) -> Iterator[Any]:
        start_ms, lookback_ms = self.settings.start_ms, self.settings.lookback_ms
        cut_off: BatchEnd | None = None
        try:
            yield from self._read_tasks([plan.incremental(self.coverage, start_ms, lookback_ms)])
        except BatchEnd as end:
            cut_off = None if self.coverage.intervals else end
        else:
            pages = self.progress.refresh_pages
            try:
                yield from self._read_again()
            except BatchEnd as end:
                cut_off = end if self.progress.refresh_pages > pages else None
        # What is new and was cut off becomes a gap, and every batch reads a page of the gaps at least: so the batches
        # of a run come to an end, however busy the account is.
        self._pages_left = None if self._pages_left is None else max(self._pages_left, 1)
        # A gap that begins with a page that is not to be tried now begins below it.
        below = {hi_ms: lo_ms for lo_ms, hi_ms in self._failed_pages.waiting()}
        gaps = [(lo_ms, below.get(hi_ms, hi_ms)) for lo_ms, hi_ms in self.coverage.gaps(start_ms)]
        readable = [Task("backfill", lo_ms, hi_ms) for lo_ms, hi_ms in gaps if lo_ms < hi_ms]
        yield from self._read_tasks(readable, self._workers)
        if cut_off:
            raise cut_off

    def finish(self) -> None:
        """Do what is to be done when all that this run allows has been read."""

    def _read_again(self) -> Iterator[Any]:
        tiers, before = self.settings.tiers.get(self.stream, ()), None
        self._refresh_from = self.progress.pages
        try:
            while True:
                readable = self.coverage
                for lo_ms, hi_ms in self._failed_pages.waiting():
                    readable = readable.without(lo_ms, hi_ms)
                task = plan.refresh(readable, tiers, self.settings.start_ms, self.now_ms or 0)
                if task is None or task == before:
                    break
                self.check_share()
                yield from self._read_tasks([task])
                before = task
        except ShareSpent:
            pass
        finally:
            self.progress.refresh_pages += self.progress.pages - self._refresh_from
            self._refresh_from = None

    def check_share(self) -> None:
        """Raise `ShareSpent` when this run has read enough again."""
        per_minute, now_ms = self.settings.refresh_per_minute, self.now_ms
        if self._refresh_from is None or per_minute is None or now_ms is None:
            return
        minutes = min(max((now_ms - self.seen_ms) / 60_000, 0.0), MAX_MINUTES_BETWEEN_RUNS)
        # One page is always allowed, or a small share would never come to anything.
        if self.progress.pages - self._refresh_from + 1 > max(per_minute * minutes, 1.0):
            raise ShareSpent

    def _read_tasks(self, tasks: Iterable[Task], workers: Callable[[], int] = lambda: 1) -> Iterator[Any]:
        with closing(self._pages(tasks, workers)) as pages:
            for interval, step in pages:
                self.progress.note(step)
                yield from self.load(step, interval)
                interval.from_ms = self._covered_from(step, interval.task)

    def _pages(
        self, tasks: Iterable[Task], workers: Callable[[], int]
    ) -> Generator[tuple[OpenInterval[R], PageResult[R]]]:
        """Yield the pages of these intervals. While one is dealt with, the next is on its way. What ends one interval
        ends the others, once what they have asked for has come.
        """
        queue = IntervalQueue[R](tasks, workers)
        in_flight: InFlight[Page[R]] = self.run.in_flight() if self.reads_ahead else OneByOne()
        ended_by: MsgBubblesError | None = None
        try:
            while True:
                while ended_by is None and (task := queue.take()):
                    interval = self._begin(task)
                    ended_by = self._ask(in_flight, interval)
                    if ended_by is None:
                        queue.open.append(interval)
                if not queue.open:
                    break
                interval, answer = in_flight.answer()
                goes_on, step = False, None
                try:
                    step = self._next_step(interval, answer, queue)
                except MsgBubblesError as error:
                    ended_by = ended_by or error
                if step is not None:
                    is_further = interval.advance(step, self._covered_from(step, interval.task))
                    if not interval.is_over:
                        ended_by = ended_by or self._ask(in_flight, interval, is_further=is_further)
                        goes_on = ended_by is None
                    yield interval, step
                if not goes_on:
                    queue.open.remove(interval)
                    self._keep(interval)
        finally:
            in_flight.close()
            for interval in queue.open:
                self._keep(interval)
        if ended_by:
            raise ended_by

    def _next_step(
        self, interval: OpenInterval[R], answer: Callable[[], Page[R]], queue: IntervalQueue[R]
    ) -> PageResult[R] | None:
        """Take the answer for an interval. Return null where the page cannot be read: that is recorded, and what is
        below it waits to be read. Raises an error that is not about the page.
        """
        try:
            page = answer()
        except ApiError as error:
            # Where nothing was answered yet, nothing says that the fault is the page's.
            if not is_unit_error(error) or not self.run.traffic.answered:
                raise
            task = interval.task
            hi_ms = task.hi_ms if interval.read_from_ms is None else interval.read_from_ms
            now_ms = self.now_ms or to_epoch_ms(self.run.clock.now())
            below_ms = self._failed_pages.pass_over(interval.paginator.before, task.lo_ms, hi_ms, now_ms, error)
            if below_ms > task.lo_ms:
                queue.waiting.appendleft(
                    Task("backfill" if task.kind == "incremental" else task.kind, task.lo_ms, below_ms)
                )
            return None
        self.count(page)
        return interval.paginator.advance(page)

    def _workers(self) -> int:
        if not self.reads_ahead:
            return 1
        settings = self.settings
        wanted = walks_at_once(settings.requests_per_minute, self.run.traffic.latency_seconds)
        return max(min(wanted, settings.most_walks), settings.least_walks)

    def _begin(self, task: Task) -> OpenInterval[R]:
        before = tuple(self.coverage.intervals)
        if task.kind == "incremental" and self._is_first_batch:
            # What is within the lookback counts as unread from here on, so that it is left as a gap when this is cut
            # off. What this run has read stays read, or what is more than a batch would never come to its end.
            self.coverage.forget_from(task.lo_ms)
        paginator = Paginator[R](lo_ms=task.lo_ms, before_ms=task.hi_ms, stream=self.stream)
        # Of an account that was never read, the newest page is what is new, and all the rest a gap like any other.
        return OpenInterval(task, paginator, before, task.kind == "incremental" and self.reads_ahead and not before)

    def _ask(
        self, in_flight: InFlight[Page[R]], interval: OpenInterval[R], *, is_further: bool = False
    ) -> MsgBubblesError | None:
        """Ask for the next page of an interval; or return what does not allow it."""
        try:
            if is_further:
                self.check_share()
            question = self._question(interval.paginator.before)
        except MsgBubblesError as why:
            return why
        in_flight.ask(interval, question)
        return None

    def _question(self, before: str | None) -> Callable[[], Page[R]]:
        self.check_batch()
        self.take_from_batch()
        return partial(self._fetch, before)

    def _keep(self, interval: OpenInterval[R]) -> None:
        """Count as covered what was read of an interval."""
        from_ms, to_ms, read_ms = interval.from_ms, interval.to_ms, interval.read_ms
        if from_ms is None or read_ms is None:
            return
        # A list that is empty now says nothing of any time, but that all that was in it is gone.
        if to_ms is not None:
            self._cover(from_ms, to_ms + 1, read_ms, interval)
        self.intervals.append((interval.task, from_ms, NEVER_MS if to_ms is None else to_ms + 1))

    def _cover(self, lo_ms: int, hi_ms: int, read_ms: int, interval: OpenInterval[R]) -> None:
        before = [piece for piece in interval.before if piece[0] < hi_ms and piece[1] > lo_ms]
        if not (interval.has_skipped and before):
            self.coverage.add(lo_ms, hi_ms, read_ms)
            return
        # What was skipped was not read now, so its statuses are as old as they were.
        self.coverage.add(lo_ms, hi_ms, min(read for _, _, read in before))
        for lo, hi, read in before:
            self.coverage.add(max(lo, lo_ms), min(hi, hi_ms), read)

    def _covered_from(self, step: PageResult[R], _task: Task) -> int | None:
        return step.covered_from_ms

    def load(self, step: PageResult[R], interval: OpenInterval[R]) -> Iterator[Any]:
        """Load the rows of one page. On the newest page, what has not changed since it was last read is left out."""
        is_newest = interval.task.kind == "incremental" and self._now_seen_ms is None
        self.buffer.add(step.page, skip=self.seen if is_newest else frozenset())
        if is_newest:
            self.mark_seen(step.page, {fingerprint(row) for row in step.page.rows})
        yield from self.buffer.flush_full()

    def mark_seen(self, page: Page[Any], fingerprints: set[str]) -> None:
        """Remember rows of the newest page."""
        self._now_seen_ms = self._now_seen_ms or to_epoch_ms(page.server_at)
        self._now_seen |= fingerprints

    def check_batch(self) -> None:
        """Raise `BatchEnd` when the pages of this batch have been read, or asked for."""
        if self._pages_left is not None and self._pages_left <= 0:
            raise BatchEnd

    def take_from_batch(self) -> None:
        """Count one page of this batch."""
        self._pages_left = None if self._pages_left is None else self._pages_left - 1

    def note_time(self, page: Page[Any]) -> None:
        """Take the API's time from a page. With the first, forget times of reading that are still to come."""
        is_first, self.now_ms = self.now_ms is None, to_epoch_ms(page.server_at)
        if is_first:
            self.forget_times_after(self.now_ms + MAX_AHEAD_MS)

    def forget_times_after(self, latest_ms: int) -> None:
        """Forget when something was read, where that is still to come."""
        self.coverage.forget_readings_after(latest_ms)
        if self.state.seen_ms > latest_ms:
            self.seen_ms = self.state.seen_ms = 0

    def count(self, page: Page[Any]) -> None:
        """Count a page of the list."""
        self.note_time(page)
        self.progress.count(page)
        self.run.on_page()

    def _save(self) -> None:
        read = Coverage((lo, NEVER_MS if task.hi_ms is None else hi, 0) for task, lo, hi in self.intervals)
        self._failed_pages.forget(read)
        self.state.covered = self.coverage.compact(self.now_ms or 0).intervals
        if self._now_seen_ms is not None:
            self.state.seen = sorted(self._now_seen)
            self.state.seen_ms = self._now_seen_ms
        save_overflows(self.state, known_overflows(self.state) | self.progress.overflows, self.run, self.stream)


def read_stream(
    read: Read, client: Client, buffer: RowBuffer, resource: MutableMapping[str, Any], settings: Settings, run: Run
) -> Iterator[Any]:
    """Run one reader to where the run allows, load all that it read, and sort out why it ended. `resource` is dlt's
    state of the resource.
    """
    progress = run.progress(buffer.stream)
    progress.unfinished = False
    buffer.on_twins = run.reject
    buffer.refused = run.refused
    if run.stopped:
        return
    state, own = decode(resource, ResourceState), decode(resource, STATES[buffer.stream])
    context = StreamContext(client, buffer, settings, run, FailedReads(state, run, client))
    try:
        if state.tables != buffer.tables:
            yield from buffer.empty_tables()
            state.tables = buffer.tables
        try:
            yield from _announced(read(own, context), run)
        except BatchEnd:
            progress.unfinished = True
        except Halt as halt:
            run.halt = halt
        except MsgBubblesError as error:
            if not run.keep_on_error:
                raise
            run.error = run.error or error
        _put_coverage(buffer, state, run)
        yield from _announced(buffer.flush(), run)
    finally:
        encode(resource, state, own)
    progress.rejected += buffer.refused_rows


def _put_coverage(buffer: RowBuffer, state: ResourceState, run: Run) -> None:
    """Load what marts may rely on, when it is another than before."""
    covered = run.progress(buffer.stream).covered
    newest = covered.newest_interval if covered else None
    if newest is None:
        return
    # Where the newest rows are deleted, what was read stays read.
    complete = (newest[0], max(newest[1], (state.complete or newest)[1]))
    if state.complete != complete:
        state.complete = complete
        buffer.put_coverage(StreamCoverage(buffer.stream, *map(from_epoch_ms, complete)), run.clock.now())


def _announced(items: Iterator[Any], run: Run) -> Iterator[Any]:
    for item in items:
        run.on_rows()
        yield item
