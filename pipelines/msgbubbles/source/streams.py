"""Read one stream: plan from its coverage, read intervals, load the rows, and extend the coverage."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, MutableMapping
from contextlib import closing
from datetime import timedelta
from functools import partial
from typing import Any, Generic

from msgbubbles.api_time import MAX_SURPRISE
from msgbubbles.client import Client
from msgbubbles.errors import ApiError, Halt, LimitReached, MsgBubblesError, is_unit_error, until
from msgbubbles.models import Page, R, StreamCoverage, fingerprint
from msgbubbles.times import from_epoch_ms, to_epoch_ms

from .buffer import RowBuffer
from .coverage import OPEN_END_MS, Coverage, Task, plan_incremental, plan_refresh
from .failed_reads import FailedPages, FailedReads
from .fetch import InFlight, count_workers
from .intervals import IntervalQueue, OpenInterval
from .paginate import PageResult, Paginator
from .rejected import RejectedIntervals
from .run import Run, StreamContext, save_overflows
from .state import STATES_BY_STREAM, ListState, RejectedInterval, ResourceState, decode, encode

Fetch = Callable[[str | None], Page[R]]
Read = Callable[[Any, StreamContext], Iterator[Any]]

# Stored times of reading that are further ahead of the API's clock came from a clock that was wrong.
MAX_AHEAD_MS = round(MAX_SURPRISE / timedelta(milliseconds=1))


class StreamReader(Generic[R]):
    """Reads the rows of one list endpoint, and yields items for dlt.

    `fetch` requests the page before an ISO 8601 time. `state` is consistent wherever the reading ends.
    """

    # Whether the next page may be requested while the rows of one are still being loaded.
    reads_ahead = True

    def __init__(self, stream: str, fetch: Fetch[R], state: ListState, context: StreamContext) -> None:
        self.stream = stream
        self.state = state
        self.context = context
        self.buffer = context.buffer
        self.run = context.run
        self.settings = self.run.settings
        self.progress = self.run.get_progress(stream)
        self.coverage = Coverage(state.covered)
        self.seen = frozenset(state.seen)
        self.seen_ms = state.seen_ms
        self.now_ms: int | None = None  # the API's clock at the last page
        # The intervals that were read, with their tasks.
        self.intervals: list[tuple[Task, int, int]] = []
        self._rejected = RejectedIntervals(state)
        self._rejected_again: set[str] | None = None  # null while no rejected rows are read again
        self._failed_pages = FailedPages(stream, fetch, context.failed)
        self._now_seen: set[str] = set()
        self._now_seen_ms: int | None = None
        self._fetch = fetch
        self._pages_left = self.run.batch_pages
        self._is_first_batch = self.progress.pages == 0
        self._pages_before_refresh: int | None = None  # null while nothing is refreshed
        self.progress.covered_before = self.progress.covered_before or Coverage(self.coverage.intervals)
        self.progress.covered = self.coverage

    def read(self) -> Iterator[Any]:
        """Read new rows, then those due for a refresh, then those never read, until a limit of the run is reached."""
        try:
            yield from self._read()
            self.finish()
        except Halt:
            self.finish()
            raise
        finally:
            self._save()

    def _read(self) -> Iterator[Any]:
        start_ms, refresh_pages = self.settings.start_ms, self.progress.refresh_pages
        is_cut_off = True
        with until("batch"):
            yield from self._read_tasks([plan_incremental(self.coverage, start_ms, self.settings.lookback_ms)])
            yield from self._read_rejected()
            yield from self._refresh()
            is_cut_off = False
        # New rows that were cut off become a gap, and every batch reads at least one page of the gaps. So the batches
        # of a run come to an end, however busy the account is.
        is_cut_off = is_cut_off and (not self.coverage.intervals or self.progress.refresh_pages > refresh_pages)
        self._pages_left = None if self._pages_left is None else max(self._pages_left, 1)
        # If the newest page of a gap failed and is not due yet, start below it.
        below = {hi_ms: lo_ms for lo_ms, hi_ms in self._failed_pages.list_waiting()}
        gaps = [(lo_ms, below.get(hi_ms, hi_ms)) for lo_ms, hi_ms in self.coverage.gaps(start_ms)]
        readable = [Task("backfill", lo_ms, hi_ms) for lo_ms, hi_ms in gaps if lo_ms < hi_ms]
        yield from self._read_tasks(readable, self._choose_workers)
        if is_cut_off:
            raise LimitReached("batch")

    def finish(self) -> None:
        """Evaluate what was read, once everything that this run allows has been read."""

    def _refresh(self) -> Iterator[Any]:
        rules, before = self.settings.refresh_rules[self.stream], None
        self._pages_before_refresh = self.progress.pages
        try:
            with until("refresh share"):
                while True:
                    readable = self.coverage
                    for lo_ms, hi_ms in self._failed_pages.list_waiting():
                        readable = readable.without(lo_ms, hi_ms)
                    task = plan_refresh(readable, rules, self.settings.start_ms, self.now_ms or 0)
                    if task is None or task == before:
                        break
                    self.check_refresh_share()
                    yield from self._read_tasks([task])
                    before = task
        finally:
            self.progress.refresh_pages += self.progress.pages - self._pages_before_refresh
            self._pages_before_refresh = None

    def _read_rejected(self) -> Iterator[Any]:
        """Read the intervals again in which rows were rejected. Rows that are rejected again do not count again."""
        now_ms = to_epoch_ms(self.run.clock.now())
        self.progress.ignore_rejected(self._rejected.hashes)
        for entry in self._rejected.list_due(now_ms) if self._is_first_batch else ():
            again = yield from self._read_again(entry)
            if again is not None:
                self.run.readable_again |= self._rejected.finish(entry, again, now_ms)

    def _read_again(self, entry: RejectedInterval) -> Generator[Any, None, set[str] | None]:
        """Read an interval, and return the hashes of the rows that are rejected again; null if it was not all read."""
        task = Task("refresh", entry.lo_ms, entry.hi_ms)
        self._rejected_again = again = set[str]()
        try:
            yield from self._read_tasks([task])
        finally:
            self._rejected_again = None
        return again if any(read == task and lo_ms <= entry.lo_ms for read, lo_ms, _ in self.intervals) else None

    def _note_rejected(self, result: PageResult[R], interval: OpenInterval[R]) -> None:
        """Record the interval of a page with rejected rows, whose own times are unknown."""
        hashes = {row.row_hash for row in result.page.rejected}
        if self._rejected_again is not None:
            self._rejected_again |= hashes
            return
        hi_ms = interval.task.hi_ms if interval.from_ms is None else interval.from_ms + 1
        hi_ms = to_epoch_ms(result.page.server_at) + 1 if hi_ms is None else hi_ms
        lo_ms = min([*map(to_epoch_ms, result.page.cursor_times), hi_ms - 1])
        self._rejected.add(lo_ms, hi_ms, hashes, to_epoch_ms(self.run.clock.now()))

    def check_refresh_share(self) -> None:
        """Raise `LimitReached` when the requests for reading again are used up."""
        if self._pages_before_refresh is None or self.now_ms is None:
            return
        allowed = self.settings.limit_refresh(self.seen_ms, self.now_ms)
        if self.progress.pages - self._pages_before_refresh + 1 > allowed:
            raise LimitReached("refresh share")

    def _read_tasks(self, tasks: Iterable[Task], workers: Callable[[], int] = lambda: 1) -> Iterator[Any]:
        with closing(self._pages(tasks, workers)) as pages:
            for interval, result in pages:
                self.progress.note(result)
                yield from self.load(result, interval)
                interval.from_ms = self._covered_from(result, interval.task)

    def _pages(
        self, tasks: Iterable[Task], workers: Callable[[], int]
    ) -> Generator[tuple[OpenInterval[R], PageResult[R]]]:
        """Yield the pages of these intervals, while the next pages are in flight.

        An error or a limit ends all intervals, once the outstanding requests have been answered.
        """
        queue = IntervalQueue[R](tasks, workers)
        in_flight: InFlight[Page[R]] = self.run.in_flight() if self.reads_ahead else InFlight()
        ended_by: MsgBubblesError | None = None
        try:
            while True:
                while ended_by is None and (task := queue.take()):
                    interval = self._open(task)
                    ended_by = self._ask(in_flight, interval)
                    if ended_by is None:
                        queue.open.append(interval)
                if not queue.open:
                    break
                interval, answer = in_flight.answer()
                goes_on, result = False, None
                try:
                    result = self._take_answer(interval, answer, queue)
                except MsgBubblesError as error:
                    ended_by = ended_by or error
                if result is not None:
                    is_further = interval.advance(result, self._covered_from(result, interval.task))
                    if not interval.is_over:
                        ended_by = ended_by or self._ask(in_flight, interval, is_further=is_further)
                        goes_on = ended_by is None
                    yield interval, result
                if not goes_on:
                    queue.open.remove(interval)
                    self._store_interval(interval)
        finally:
            in_flight.close()
            for interval in queue.open:
                self._store_interval(interval)
        if ended_by:
            raise ended_by

    def _take_answer(
        self, interval: OpenInterval[R], answer: Callable[[], Page[R]], queue: IntervalQueue[R]
    ) -> PageResult[R] | None:
        """Take the answer for an interval. Raises errors that do not concern only this page.

        If the page cannot be read, record that, queue the part of the interval below it, and return null.
        """
        try:
            page = answer()
        except ApiError as error:
            # Before the first answer, the page need not be the reason.
            if not is_unit_error(error) or not self.run.traffic.answered:
                raise
            task = interval.task
            hi_ms = task.hi_ms if interval.read_from_ms is None else interval.read_from_ms
            now_ms = self.now_ms or to_epoch_ms(self.run.clock.now())
            below_ms = self._failed_pages.skip(interval.paginator.before, task.lo_ms, hi_ms, now_ms, error)
            if below_ms > task.lo_ms:
                queue.waiting.appendleft(
                    Task("backfill" if task.kind == "incremental" else task.kind, task.lo_ms, below_ms)
                )
            return None
        self.count(page)
        return interval.paginator.advance(page)

    def _choose_workers(self) -> int:
        if not self.reads_ahead:
            return 1
        wanted = count_workers(self.settings.requests_per_minute, self.run.traffic.latency_seconds)
        return min(wanted, self.settings.parallel_requests)

    def _open(self, task: Task) -> OpenInterval[R]:
        before = tuple(self.coverage.intervals)
        if task.kind == "incremental" and self._is_first_batch:
            # From here on, the lookback counts as unread, so that it remains a gap if this is cut off. But rows that
            # this run has read stay covered: otherwise, more rows than a batch takes would never be finished.
            self.coverage.forget_from(task.lo_ms)
        paginator = Paginator[R](lo_ms=task.lo_ms, before_ms=task.hi_ms)
        # In an account that was never read, only the newest page counts as new. The rest is a gap like any other.
        return OpenInterval(task, paginator, before, task.kind == "incremental" and self.reads_ahead and not before)

    def _ask(
        self, in_flight: InFlight[Page[R]], interval: OpenInterval[R], *, is_further: bool = False
    ) -> MsgBubblesError | None:
        """Request the next page of an interval; return the limit that prevents it, if any."""
        try:
            if is_further:
                self.check_refresh_share()
            request = self._build_request(interval.paginator.before)
        except LimitReached as reached:
            return reached
        in_flight.ask(interval, request)
        return None

    def _build_request(self, before: str | None) -> Callable[[], Page[R]]:
        self.check_batch()
        self.take_from_batch()
        return partial(self._fetch, before)

    def _store_interval(self, interval: OpenInterval[R]) -> None:
        """Record the part of an interval that was read as covered."""
        from_ms, to_ms, read_ms = interval.from_ms, interval.to_ms, interval.read_ms
        if from_ms is None or read_ms is None:
            return
        # An empty list covers no time, but shows that all its rows are gone.
        if to_ms is not None:
            self._cover(from_ms, to_ms + 1, read_ms, interval)
        self.intervals.append((interval.task, from_ms, OPEN_END_MS if to_ms is None else to_ms + 1))

    def _cover(self, lo_ms: int, hi_ms: int, read_ms: int, interval: OpenInterval[R]) -> None:
        before = [covered for covered in interval.before if covered[0] < hi_ms and covered[1] > lo_ms]
        if not (interval.has_skipped and before):
            self.coverage.add(lo_ms, hi_ms, read_ms)
            return
        # Skipped rows were not read now: their statuses are as old as before.
        self.coverage.add(lo_ms, hi_ms, min(read for _, _, read in before))
        for lo, hi, read in before:
            self.coverage.add(max(lo, lo_ms), min(hi, hi_ms), read)

    def _covered_from(self, result: PageResult[R], _task: Task) -> int | None:
        return result.covered_from_ms

    def load(self, result: PageResult[R], interval: OpenInterval[R]) -> Iterator[Any]:
        """Load the rows of one page; from the newest page, only those that have changed since the last run."""
        is_newest = interval.task.kind == "incremental" and self._now_seen_ms is None
        self.buffer.add(result.page, skip=self.seen if is_newest else frozenset())
        if result.page.rejected:
            self._note_rejected(result, interval)
        if is_newest:
            self.mark_seen(result.page, {fingerprint(row) for row in result.page.rows})
        yield from self.buffer.flush_full()

    def mark_seen(self, page: Page[Any], fingerprints: set[str]) -> None:
        self._now_seen_ms = self._now_seen_ms or to_epoch_ms(page.server_at)
        self._now_seen |= fingerprints

    def check_batch(self) -> None:
        """Raise `LimitReached` when all pages of this batch have been requested."""
        if self._pages_left is not None and self._pages_left <= 0:
            raise LimitReached("batch")

    def take_from_batch(self) -> None:
        self._pages_left = None if self._pages_left is None else self._pages_left - 1

    def note_time(self, page: Page[Any]) -> None:
        """Take the API's time from a page. On the first page, forget stored times that are in the future."""
        is_first, self.now_ms = self.now_ms is None, to_epoch_ms(page.server_at)
        if is_first:
            self.forget_times_after(self.now_ms + MAX_AHEAD_MS)

    def forget_times_after(self, latest_ms: int) -> None:
        self.coverage.forget_readings_after(latest_ms)
        if self.state.seen_ms > latest_ms:
            self.seen_ms = self.state.seen_ms = 0

    def count(self, page: Page[Any]) -> None:
        self.note_time(page)
        self.progress.count(page)
        self.run.on_page()

    def _save(self) -> None:
        read = Coverage((lo, OPEN_END_MS if task.hi_ms is None else hi, 0) for task, lo, hi in self.intervals)
        self._failed_pages.forget(read)
        self.state.covered = self.coverage.compact(self.now_ms or 0).intervals
        if self._now_seen_ms is not None:
            self.state.seen = sorted(self._now_seen)
            self.state.seen_ms = self._now_seen_ms
        save_overflows(self.state, {*self.state.overflows} | self.progress.overflows, self.run, self.stream)


def read_stream(
    read: Read, client: Client, buffer: RowBuffer, resource: MutableMapping[str, Any], run: Run
) -> Iterator[Any]:
    """Run one reader until it ends or a limit is reached, load its rows, and record why it ended.

    `resource` is dlt's state of the resource.
    """
    progress = run.get_progress(buffer.stream)
    progress.is_unfinished = False
    buffer.on_twins = lambda table, hashes: run.get_progress(table).reject(hashes)
    buffer.refused = run.refused
    if run.is_stopped:
        return
    state, own = decode(resource, ResourceState), decode(resource, STATES_BY_STREAM[buffer.stream])
    context = StreamContext(client, buffer, run, FailedReads(state, run, client))
    try:
        if state.tables != buffer.tables:
            yield from buffer.empty_tables()
            state.tables = buffer.tables
        try:
            yield from _notify(read(own, context), run)
        except Halt as halt:
            progress.is_unfinished = isinstance(halt, LimitReached) and halt.limit == "batch"
            run.halt = run.halt if progress.is_unfinished else halt
        except MsgBubblesError as error:
            if not run.keep_on_error:
                raise
            if is_unit_error(error):  # another stream may have been read
                error.args = (f"{buffer.stream}: {error}",)
            run.error = run.error or error
        _put_coverage(buffer, state, run)
        yield from _notify(buffer.flush(), run)
    finally:
        encode(resource, state, own)
    progress.rejected += buffer.refused_rows


def _put_coverage(buffer: RowBuffer, state: ResourceState, run: Run) -> None:
    """Load the interval in which the stream is complete, if it has changed. The marts rely on it."""
    progress = run.get_progress(buffer.stream)
    newest = progress.covered.newest_interval if progress.covered else None
    if newest is None:
        if not progress.is_empty or run.is_stopped or run.error or state.failed_reads or state.complete:
            return
        newest = (run.settings.start_ms, to_epoch_ms(run.clock.now()) - run.settings.lookback_ms)
    # When the newest rows are deleted, their time stays covered.
    complete = (newest[0], max(newest[1], (state.complete or newest)[1]))
    if state.complete != complete:
        state.complete = complete
        buffer.put_coverage(StreamCoverage(buffer.stream, *map(from_epoch_ms, complete)), run.clock.now())


def _notify(items: Iterator[Any], run: Run) -> Iterator[Any]:
    for item in items:
        run.on_rows()
        yield item
