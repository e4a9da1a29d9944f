"""Reads one stream: plans from its coverage, walks, lands the rows, and moves its coverage as far as was read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, MutableMapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Generic

from msgbubbles.api_time import MAX_SURPRISE
from msgbubbles.client import Client
from msgbubbles.decode import unknown_fields
from msgbubbles.errors import (
    ApiError,
    ForbiddenError,
    Halt,
    MsgBubblesError,
    NotFoundError,
    PermanentError,
    is_unit_error,
)
from msgbubbles.models import Chat, Message, Number, Page, R, StreamCoverage, fingerprint
from msgbubbles.times import DAY_MS, HOUR_MS, format_ms, from_epoch_ms, to_epoch_ms

from . import coverage as plan
from . import reconcile as repairs
from .buffer import NewChat, RowBuffer
from .config import Settings
from .coverage import Coverage, Piece, Task
from .failed_reads import FailedReads
from .fetch import InFlight, OneByOne, walks_at_once
from .paginate import PageResult, Paginator, cursor_ms, paginate_interval
from .run import BatchEnd, Run, ShareSpent, known_overflows, save_overflows
from .state import (
    ChatsState,
    FailedRead,
    ListState,
    MessagesState,
    NumbersState,
    ResourceState,
    decode,
    encode,
)

Fetch = Callable[[str | None], Page[R]]


# A run that comes after a long pause does not make up for all of it: it would take as long.
MAX_MINUTES_BETWEEN_RUNS = 60.0
NEVER_MS = 2**53
# A page that cannot be read is passed over in steps that grow by this, until the API answers below it.
GROWTH_OF_PASSED_TIME = 4
# A mark may be so far ahead of the API's clock; later ones were made by a clock that was wrong.
MAX_AHEAD_MS = round(MAX_SURPRISE / timedelta(milliseconds=1))


@dataclass(frozen=True)
class Sharing:
    """When a walk leaves a part of what it was to read to another. The other's first page, and its own last one, show
    rows that are not theirs: more walks cost more requests."""

    # How much it keeps.
    pages_kept: int = 64
    # Less than this is read sooner by the walk that is at it.
    fewest_pages: int = 32
    # A walk that has read fewer may be at its end, and says little of how much time a page takes up.
    pages_before: int = 2
    # A walk that has met the end of the list below it looks there again when it has read so many times the pages.
    times_the_pages: int = 4


SHARING = Sharing()


@dataclass
class _Reach:
    """How far one task has come: everything in [from_ms, to_ms] was read, beginning at `read_ms`, the API's clock.
    `before` is what had been read when it began; it stays true of what is `passed_over`, because it has not changed."""

    from_ms: int | None = None
    to_ms: int | None = None
    read_ms: int | None = None
    before: tuple[Piece, ...] = ()
    passed_over: bool = False


@dataclass(eq=False)
class _Stretch(Generic[R]):
    """A task, the walk that reads it, and how far that has come. With `is_one_page` it is over when anything of it is
    covered."""

    task: Task
    paginator: Paginator[R]
    reach: _Reach
    is_one_page: bool
    # What reads the older part of what this stretch was to read.
    below: _Stretch[R] | None = field(default=None, init=False)
    _pages: int = field(default=0, init=False)
    _pages_when_shared: int = field(default=0, init=False)
    _covered_from_ms: int | None = field(default=None, init=False)

    def came_on_by(self, step: PageResult[R], covered_from_ms: int | None) -> bool:
        """Whether a page has covered more."""
        self.reach.read_ms = self.reach.read_ms or to_epoch_ms(step.page.server_at)
        self.reach.to_ms = step.newest_ms if self.reach.to_ms is None else self.reach.to_ms
        self._pages += 1
        came_on = covered_from_ms != self._covered_from_ms
        self._covered_from_ms = covered_from_ms
        return came_on

    @property
    def is_over(self) -> bool:
        lo_ms, to_ms = self._covered_from_ms, self.reach.to_ms
        return self.paginator.is_over or (
            self.is_one_page and lo_ms is not None and to_ms is not None and lo_ms <= to_ms
        )

    @property
    def covered_from_ms(self) -> int | None:
        """From when on all has been read, up to the end; the end itself at first, null where that is now."""
        return self.task.hi_ms if self._covered_from_ms is None else self._covered_from_ms

    @property
    def pages_left(self) -> float:
        """About how many pages of it could be read by others; 0 while nobody knows."""
        # A list may end long before the time that is asked for does, and each walk below its end is a request too many.
        # So one has to show a row before the next begins above it; where it shows none, that is nearly all there is.
        if self._pages < SHARING.pages_before:
            return 0.0
        if self.below is not None and self.below.paginator.edge_ms is None:
            is_end = self.below.paginator.is_over
            if not is_end or self._pages < SHARING.times_the_pages * self._pages_when_shared:
                return 0.0
        return self._unread_ms / self._page_ms

    @property
    def _unread_ms(self) -> int:
        return 0 if self.paginator.edge_ms is None else max(self.paginator.edge_ms - self.task.lo_ms, 0)

    @property
    def _page_ms(self) -> float:
        """How much time a page takes up."""
        hi_ms, edge_ms = self.task.hi_ms, self.paginator.edge_ms
        return 1.0 if hi_ms is None or edge_ms is None else max((hi_ms - edge_ms) / self._pages, 1.0)

    def older_part(self) -> Task:
        """A part of what is still to be read, which this stretch ends above from now on."""
        kept_ms = min(self._unread_ms // 2, round(SHARING.pages_kept * self._page_ms))
        lo_ms, at_ms = self.task.lo_ms, self.task.lo_ms + self._unread_ms - kept_ms
        self.task = Task(self.task.kind, at_ms, self.task.hi_ms)
        self.paginator.lo_ms = at_ms
        self._pages_when_shared = self._pages
        return Task(self.task.kind, lo_ms, at_ms)


class StreamReader(Generic[R]):
    """Reads the rows of one list endpoint, and yields items for dlt.

    `state` is kept by dlt with the rows.
    """

    # Whether the next page may be asked for while the rows of one are still being landed.
    reads_ahead = True

    def __init__(
        self,
        stream: str,
        fetch: Fetch[R],
        buffer: RowBuffer,
        state: ListState,
        settings: Settings,
        run: Run,
        failed: FailedReads,
    ) -> None:
        self.stream = stream
        self.failed = failed
        self.buffer = buffer
        self.settings = settings
        self.progress = run.progress(stream)
        self.coverage = Coverage(state.covered)
        self.seen = frozenset(state.seen)
        self.seen_ms = state.seen_ms
        self.state = state
        self.run = run
        self.now_ms: int | None = None  # the API's clock, by the last page
        self._now_seen: set[str] = set()
        self._now_seen_ms: int | None = None
        self._fetch = fetch
        self._pages_left = run.batch_pages
        self._is_first_batch = self.progress.pages == 0
        self._refresh_from: int | None = None  # the pages read before the refresh began
        self._rejected_before: set[str] = set()
        self._odd_before: frozenset[str] = frozenset()
        # What was read, by the task that asked for it.
        self.stretches: list[tuple[Task, int, int]] = []
        self.progress.covered_before = self.progress.covered_before or Coverage(self.coverage.pieces)
        self.progress.covered = self.coverage

    def read(self) -> Iterator[Any]:
        """Read the head, then what has to be read again, then the gaps, as far as the run allows. The state is right
        wherever this ends."""
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
            yield from self._read_tasks([plan.head(self.coverage, start_ms, lookback_ms)])
        except BatchEnd as end:
            cut_off = None if self.coverage.pieces else end
        else:
            pages = self.progress.refresh_pages
            try:
                yield from self._read_again()
            except BatchEnd as end:
                cut_off = end if self.progress.refresh_pages > pages else None
        # A head that is cut off leaves a gap, and every slice reads a page of the gaps at least: so the slices of a run
        # come to an end, however busy the account is.
        self._pages_left = None if self._pages_left is None else max(self._pages_left, 1)
        # A gap that begins with a page that is not to be tried now begins below it.
        below = {hi_ms: lo_ms for lo_ms, hi_ms in self._waiting_pages()}
        gaps = [(lo_ms, below.get(hi_ms, hi_ms)) for lo_ms, hi_ms in self.coverage.gaps(start_ms)]
        readable = [Task("gap", lo_ms, hi_ms) for lo_ms, hi_ms in gaps if lo_ms < hi_ms]
        yield from self._read_tasks(readable, self._walks_at_once)
        if cut_off:
            raise cut_off

    def finish(self) -> None:
        """What is to be done when all that this run allows has been read."""

    def _read_again(self) -> Iterator[Any]:
        tiers, before = self.settings.tiers.get(self.stream, ()), None
        self._refresh_from = self.progress.pages
        try:
            while True:
                readable = self.coverage
                for lo_ms, hi_ms in self._waiting_pages():
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
        """Raises `ShareSpent` when this run has read enough again."""
        per_minute, now_ms = self.settings.refresh_per_minute, self.now_ms
        if self._refresh_from is None or per_minute is None or now_ms is None:
            return
        minutes = min(max((now_ms - self.seen_ms) / 60_000, 0.0), MAX_MINUTES_BETWEEN_RUNS)
        # One page is always allowed, or a small share would never come to anything.
        if self.progress.pages - self._refresh_from + 1 > max(per_minute * minutes, 1.0):
            raise ShareSpent

    def _read_tasks(self, tasks: Iterable[Task], walks: Callable[[], int] = lambda: 1) -> Iterator[Any]:
        with closing(self._steps(tasks, walks)) as steps:
            for stretch, step in steps:
                self.progress.note(step)
                yield from self.land(step, stretch.task, stretch.reach)
                stretch.reach.from_ms = self._covered_from(step, stretch.task)

    def _steps(self, tasks: Iterable[Task], walks: Callable[[], int]) -> Generator[tuple[_Stretch[R], PageResult[R]]]:
        """The pages of these stretches, read by so many walks at once; where there are fewer stretches, they are shared
        out. While a page is dealt with, the next is on its way. What ends one walk ends the others, once what they have
        asked for has come."""
        waiting, reading = deque(tasks), list[_Stretch[R]]()
        in_flight: InFlight[Page[R]] = self.run.in_flight() if self.reads_ahead else OneByOne()
        ended_by: MsgBubblesError | None = None
        try:
            while True:
                while ended_by is None and len(reading) < walks() and (one := self._begun(waiting, reading)):
                    ended_by = self._ask(in_flight, one)
                    if ended_by is None:
                        reading.append(one)
                if not reading:
                    break
                stretch, answer = in_flight.answer()
                goes_on = False
                try:
                    page = self._page(stretch, answer, waiting)
                    if page is not None:
                        self.count(page)
                        step = stretch.paginator.advance(page)
                except MsgBubblesError as error:
                    ended_by, page = ended_by or error, None
                if page is not None:
                    came_on = stretch.came_on_by(step, self._covered_from(step, stretch.task))
                    if not stretch.is_over:
                        ended_by = ended_by or self._ask(in_flight, stretch, came_on=came_on)
                        goes_on = ended_by is None
                    yield stretch, step
                if not goes_on:
                    reading.remove(stretch)
                    self._keep(stretch)
        finally:
            in_flight.close()
            for stretch in reading:
                self._keep(stretch)
        if ended_by:
            raise ended_by

    def _page(self, stretch: _Stretch[R], answer: Callable[[], Page[R]], waiting: deque[Task]) -> Page[R] | None:
        """The next page of a stretch; null where it cannot be read, which is recorded, and what is below it waits to be
        read. Raises an error that is not about the page."""
        try:
            return answer()
        except ApiError as error:
            # Where nothing was answered yet, nothing says that the fault is the page's.
            if not is_unit_error(error) or not self.run.traffic.answered:
                raise
            lo_ms, hi_ms = stretch.task.lo_ms, stretch.covered_from_ms
            below_ms = max(self._answered_below(stretch.paginator.before, error), lo_ms)
            self.failed.record(
                "page", f"{self.stream} before {'now' if hi_ms is None else format_ms(hi_ms)}", error, below_ms
            )
            if below_ms > lo_ms:
                kind = "gap" if stretch.task.kind == "head" else stretch.task.kind
                waiting.appendleft(Task(kind, lo_ms, below_ms))
            return None

    def _answered_below(self, before: str | None, error: ApiError) -> int:
        """The first time below a page that cannot be read which the API has a page for. Raises `error` where there is
        none: then nothing of the list can be read.

        Nobody can say how much time the page takes up, so what is passed over grows until the API answers.
        """
        now_ms = self.now_ms or to_epoch_ms(self.run.clock.now())
        hi_ms = now_ms if before is None else to_epoch_ms(datetime.fromisoformat(before))
        passed_ms = 1
        with self.failed.few_tries():
            while hi_ms - passed_ms > 0:
                try:
                    self._fetch(format_ms(hi_ms - passed_ms))
                except ApiError as again:
                    if not is_unit_error(again):
                        raise
                    self.failed.check_api(again)
                    passed_ms *= GROWTH_OF_PASSED_TIME
                else:
                    self.run.failures_in_a_row = 0
                    return hi_ms - passed_ms
        raise error

    def _failed_pages(self) -> Iterator[tuple[FailedRead, int, int]]:
        """The pages of this list that failed, each with the interval that is missing for it."""
        for entry in self.failed.all("page"):
            stream, _, before = entry.id.partition(" before ")
            if stream == self.stream and entry.from_ms is not None:
                yield entry, entry.from_ms, NEVER_MS if before == "now" else to_epoch_ms(datetime.fromisoformat(before))

    def _waiting_pages(self) -> list[tuple[int, int]]:
        """The intervals of failed pages that are not to be tried now."""
        pages = self._failed_pages()
        return [(lo_ms, hi_ms) for entry, lo_ms, hi_ms in pages if self.failed.is_waiting("page", entry.id)]

    def _forget_pages_read(self) -> None:
        """Pages that failed once are no longer failed reads when their interval has been read."""
        read = Coverage((lo, NEVER_MS if task.hi_ms is None else hi, 0) for task, lo, hi in self.stretches)
        for entry, lo_ms, hi_ms in list(self._failed_pages()):
            if (read.complete_to(lo_ms) or 0) >= hi_ms:
                self.failed.remove(entry)

    def _walks_at_once(self) -> int:
        if not self.reads_ahead:
            return 1
        settings = self.settings
        wanted = walks_at_once(settings.requests_per_minute, self.run.traffic.latency_seconds)
        return max(min(wanted, settings.most_walks), settings.least_walks)

    def _begun(self, waiting: deque[Task], reading: list[_Stretch[R]]) -> _Stretch[R] | None:
        """Another stretch to read: one that waits, or a part of one that is being read; null where there is none."""
        longest: _Stretch[R] | None = None
        if waiting:
            task = waiting.popleft()
        else:
            longest = max(reading, key=lambda one: one.pages_left, default=None)
            if longest is None or longest.task.kind != "gap" or longest.pages_left < SHARING.fewest_pages:
                return None
            task = longest.older_part()
        reach = _Reach(to_ms=None if task.hi_ms is None else task.hi_ms - 1, before=tuple(self.coverage.pieces))
        if task.kind == "head" and self._is_first_batch:
            # What is not settled counts as unread from here on, so that a head that is cut off leaves it as a gap. What
            # this run has read stays read, or a head that is longer than a slice would never come to its end.
            self.coverage.forget_from(task.lo_ms)
        paginator = Paginator[R](lo_ms=task.lo_ms, before_ms=task.hi_ms, stream=self.stream)
        # Of an account that was never read, the newest page is the head, and all the rest a gap like any other.
        is_one_page = task.kind == "head" and self.reads_ahead and not reach.before
        begun = _Stretch(task, paginator, reach, is_one_page)
        if longest is not None:
            longest.below = begun
        return begun

    def _ask(
        self, in_flight: InFlight[Page[R]], stretch: _Stretch[R], *, came_on: bool = False
    ) -> MsgBubblesError | None:
        """Ask for the next page of a stretch; or say what does not allow it."""
        try:
            if came_on:
                self.check_share()
            question = self._question(stretch.paginator.before)
        except MsgBubblesError as why:
            return why
        in_flight.ask(stretch, question)
        return None

    def _question(self, before: str | None) -> Callable[[], Page[R]]:
        self.check_batch()
        self.take_from_batch()
        return partial(self._fetch, before)

    def _keep(self, stretch: _Stretch[R]) -> None:
        """Count as covered what was read of a stretch."""
        reach = stretch.reach
        if reach.from_ms is not None and reach.read_ms is not None:
            # A list that is empty now says nothing of any time, but that all that was in it is gone.
            if reach.to_ms is not None:
                self._cover(reach.from_ms, reach.to_ms + 1, reach.read_ms, reach)
            self.stretches.append((stretch.task, reach.from_ms, NEVER_MS if reach.to_ms is None else reach.to_ms + 1))

    def _cover(self, lo_ms: int, hi_ms: int, read_ms: int, reach: _Reach) -> None:
        before = [piece for piece in reach.before if piece[0] < hi_ms and piece[1] > lo_ms]
        if not (reach.passed_over and before):
            self.coverage.add(lo_ms, hi_ms, read_ms)
            return
        # What was passed over was not read now, so its statuses are as old as they were.
        self.coverage.add(lo_ms, hi_ms, min(read for _, _, read in before))
        for lo, hi, read in before:
            self.coverage.add(max(lo, lo_ms), min(hi, hi_ms), read)

    def _covered_from(self, step: PageResult[R], _task: Task) -> int | None:
        return step.covered_from_ms

    def land(self, step: PageResult[R], task: Task, _reach: _Reach) -> Iterator[Any]:
        """Land the rows of one page. On the newest page, what has not changed since it was last read is left out."""
        is_newest = task.kind == "head" and self._now_seen_ms is None
        self.buffer.add(step.page, skip=self.seen if is_newest else frozenset())
        if is_newest:
            self.mark_seen(step.page, {fingerprint(row) for row in step.page.rows})
        yield from self.buffer.flush_full()

    def mark_seen(self, page: Page[Any], fingerprints: set[str]) -> None:
        self._now_seen_ms = self._now_seen_ms or to_epoch_ms(page.server_at)
        self._now_seen |= fingerprints

    def check_batch(self) -> None:
        """Raises `BatchEnd` when the pages of this slice have been read, or asked for."""
        if self._pages_left is not None and self._pages_left <= 0:
            raise BatchEnd

    def take_from_batch(self) -> None:
        self._pages_left = None if self._pages_left is None else self._pages_left - 1

    def note_time(self, page: Page[Any]) -> None:
        """Take the API's time from a page. With the first, forget marks of readings that are still to come."""
        is_first, self.now_ms = self.now_ms is None, to_epoch_ms(page.server_at)
        if is_first:
            self.forget_times_after(self.now_ms + MAX_AHEAD_MS)

    def forget_times_after(self, latest_ms: int) -> None:
        """Forget when something was read, where that is still to come."""
        self.coverage.forget_readings_after(latest_ms)
        if self.state.seen_ms > latest_ms:
            self.seen_ms = self.state.seen_ms = 0

    def count(self, page: Page[Any]) -> None:
        self.note_time(page)
        progress = self.progress
        progress.pages += 1
        progress.rows += len(page.rows)
        # What is at the edge of a page is on the next one again.
        rejected = {one.row_hash for one in page.rejected}
        progress.rejected += len(rejected - self._rejected_before)
        self._rejected_before = rejected
        progress.odd += len(page.odd - self._odd_before)
        self._odd_before = page.odd
        progress.new_fields.update(unknown_fields(page.rows))
        oldest = min((at for row in page.rows if (at := row.cursor_at) is not None), default=None)
        progress.reached_ms = progress.reached_ms if oldest is None else to_epoch_ms(oldest)
        self.run.on_page()

    def _save(self) -> None:
        self._forget_pages_read()
        self.state.covered = self.coverage.compacted(self.now_ms or 0).pieces
        if self._now_seen_ms is not None:
            self.state.seen = sorted(self._now_seen)
            self.state.seen_ms = self._now_seen_ms
        save_overflows(self.state, known_overflows(self.state) | self.progress.overflows, self.run, self.stream)


class ChatReader(StreamReader[Chat]):
    """Reads the chats, and notes which of them did not show up where they should have.

    `missed` in the state counts, by id, the sweeps that did not show a chat. It is no proof of a delete: a chat that
    gets a message while its stretch is read moves out of it.
    """

    def __init__(
        self,
        fetch: Fetch[Chat],
        buffer: RowBuffer,
        state: ChatsState,
        settings: Settings,
        run: Run,
        failed: FailedReads,
    ) -> None:
        super().__init__("chats", fetch, buffer, state, settings, run, failed)
        self._chats = state
        self._shown: set[str] = set()
        buffer.on_chats = self._note_threads
        # Up to here, all chats that were visible are known; not so while the first run has gaps to fill.
        has_gaps = bool(self.coverage.gaps(settings.start_ms))
        self._known_to_ms = 0 if has_gaps else (self.coverage.newest_ms or 0) - settings.lookback_ms

    def count(self, page: Page[Any]) -> None:
        super().count(page)
        self._shown.update(row.key for row in page.rows)

    def _note_threads(self, chats: list[NewChat]) -> None:
        """A chat that is there again, or that should have been known long ago, was hidden for a while: its messages
        were too, and their time has been read."""
        for chat in chats:
            was_hidden = chat.created_at is not None and to_epoch_ms(chat.created_at) < self._known_to_ms
            if chat.is_back or (was_hidden and self.run.repair is None):
                self._chats.threads.append(chat.id)

    def forget_times_after(self, latest_ms: int) -> None:
        super().forget_times_after(latest_ms)
        state = self._chats
        state.head_swept_ms = 0 if state.head_swept_ms > latest_ms else state.head_swept_ms
        state.timeless_asked_ms = 0 if state.timeless_asked_ms > latest_ms else state.timeless_asked_ms
        if (state.participants_hidden_ms or 0) > latest_ms:
            state.participants_hidden_ms = None

    def finish(self) -> None:
        missed = self._chats.missed
        for chat_id in self._shown & missed.keys():
            del missed[chat_id]
        warehouse, now_ms = self.run.warehouse, self.now_ms or 0
        if warehouse is None:
            return
        for task, lo_ms, hi_ms in self.stretches:
            if task.kind == "gap":
                continue
            if task.kind == "head":
                # The newest page is read by every run; that is often enough to make a sweep of every hour's.
                if now_ms - self._chats.head_swept_ms < HOUR_MS:
                    continue
                self._chats.head_swept_ms = now_ms
                hi_ms = NEVER_MS  # nothing is newer than the newest page, and the chat that was may be deleted
            for chat_id in warehouse.chats_between(lo_ms, hi_ms) - self._shown:
                if chat_id in missed or len(missed) < MAX_MISSED:
                    missed[chat_id] = missed.get(chat_id, 0) + 1
        if now_ms - self._chats.timeless_asked_ms >= DAY_MS:
            self._chats.timeless_asked_ms = now_ms
            for chat_id in warehouse.chats_without_time(MAX_TIMELESS):
                if chat_id not in self._shown:
                    missed[chat_id] = repairs.SWEEPS_MISSED


# More than this at once are more likely the API's fault than deletes; those that are left are missed again.
MAX_MISSED = 1000
MAX_TIMELESS = 50


class ThreadReader(StreamReader[Chat]):
    """Reads messages thread by thread, for accounts whose API does not answer the whole feed.

    It walks the chats and reads the messages of each, so its coverage is in the time of `last_message_at`: *of every
    chat that lay here then, the messages have been read*.
    """

    reads_ahead = False

    def __init__(
        self,
        fetch: Fetch[Chat],
        client: Client,
        buffer: RowBuffer,
        state: ListState,
        settings: Settings,
        run: Run,
        failed: FailedReads,
    ) -> None:
        super().__init__("messages", fetch, buffer, state, settings, run, failed)
        self._client = client
        self._failed = failed
        # Messages older than this have been read in every thread: up to here no thread is missing.
        complete_to = self.coverage.complete_to(settings.start_ms)
        self._floor_ms = (
            settings.start_ms if complete_to is None else max(complete_to - 1 - settings.lookback_ms, settings.start_ms)
        )

    def _question(self, before: str | None) -> Callable[[], Page[Chat]]:
        def fetch() -> Page[Chat]:
            # Not before the threads of the page before it have been read.
            self.check_batch()
            self.take_from_batch()
            return self._fetch(before)

        return fetch

    def count(self, page: Page[Any]) -> None:
        if page.rows and isinstance(page.rows[0], Chat):
            self.note_time(page)
            self.progress.pages += 1
        else:
            super().count(page)

    def _covered_from(self, step: PageResult[Chat], task: Task) -> int | None:
        # Of what a page shows beyond the task, no messages are read.
        return None if step.covered_from_ms is None else max(step.covered_from_ms, task.lo_ms)

    def land(self, step: PageResult[Chat], task: Task, reach: _Reach) -> Iterator[Any]:
        is_newest = task.kind == "head" and reach.from_ms is None
        covered_ms = self._covered_from(step, task)
        self.buffer.add_rejected(step.page)
        for rejected in step.page.rejected:
            # A chat whose row cannot be read has messages all the same.
            if rejected.key is not None and rejected.row_hash not in self.seen:
                yield from self._read_thread(rejected.key, self._floor_ms)
            if is_newest:
                self.mark_seen(step.page, {rejected.row_hash})
        for chat in sorted(step.page.rows, key=_newest_first):
            at_ms = cursor_ms(chat)
            is_outlier = chat.key in step.outliers  # listed within the task, whatever time it shows
            is_outside = at_ms is not None and (at_ms < task.lo_ms or (task.hi_ms is not None and at_ms >= task.hi_ms))
            if is_outside and not is_outlier:
                continue
            if reach.from_ms is not None and (task.hi_ms is None or reach.from_ms < task.hi_ms):
                self.check_batch()
            mark = fingerprint(chat)
            if task.kind != "refresh" and self._is_settled(mark, at_ms):
                reach.passed_over = True
            else:
                lo_ms = self._refresh_floor_ms() if task.kind == "refresh" else self._floor_ms
                yield from self._read_thread(chat.id, lo_ms)
            if is_newest:
                self.mark_seen(step.page, {mark})
            if at_ms is not None and covered_ms is not None:
                reach.from_ms = max(at_ms + 1, covered_ms)
                self.check_share()

    def _is_settled(self, mark: str, at_ms: int | None) -> bool:
        """Whether the thread was read as it is now, and so long after its last message that none can have come late."""
        return mark in self.seen and (at_ms or 0) + self.settings.lookback_ms < self.seen_ms

    def _refresh_floor_ms(self) -> int:
        """How far back messages are read again."""
        within = [tier.within_ms for tier in self.settings.tiers.get(self.stream, ())]
        widest = max((one for one in within if one is not None), default=0)
        start_ms = self.settings.start_ms
        return start_ms if None in within else max(start_ms, (self.now_ms or 0) - widest)

    def _read_thread(self, chat_id: str, lo_ms: int) -> Iterator[Any]:
        # A thread is read whole, however long the slice gets by it: half of one is nothing that could be gone on from.
        def fetch(before: str | None) -> Page[Message]:
            page = self._client.list_messages(chat_id, before=before)
            self.take_from_batch()
            self.count(page)
            return page

        if self._failed.is_waiting("thread", chat_id, lo_ms):
            return
        # A thread that is deleted while its page is read is not there to be read.
        with self._failed.attempt("thread", chat_id, lo_ms), suppress(NotFoundError):
            for step in paginate_interval(fetch, lo_ms=lo_ms, before_ms=None, stream=self.stream):
                self.progress.note(step)
                self.buffer.add(step.page)
                yield from self.buffer.flush_full()


def read_messages(
    client: Client, buffer: RowBuffer, state: MessagesState, settings: Settings, run: Run, failed: FailedReads
) -> Iterator[Any]:
    """Messages, from the account's feed where the API answers it, else chat by chat.

    An API that refuses the feed is asked for it again once a day; while the feed only fails, this run reads chat by
    chat. Each way has its own coverage in `state`.
    """
    if run.repair is not None:
        if run.repair.overflows:
            yield from repairs.read_overflows(client, buffer, state.by_feed, run, failed)
        return
    first = _first_of_feed(client, state, run, failed)
    # An empty feed may be an account without messages, or an API that answers nothing without a conversation.
    run.feed = bool(first)
    if first:
        pages = [first]

        def fetch(before: str | None) -> Page[Message]:
            if before is None and pages:
                return pages.pop()
            return client.list_messages(before=before)

        try:
            yield from StreamReader("messages", fetch, buffer, state.by_feed, settings, run, failed).read()
        finally:
            for chat_id, error in client.unknown_chats.items():
                failed.record("thread", chat_id, error, settings.start_ms)
    else:

        def listed(before: str | None) -> Page[Chat]:
            page = client.list_chats(before=before)
            if state.feed_refused_ms is not None:
                state.feed = False  # said by an API that answers something else
            return page

        _add_coverage_of_feed(state, settings.start_ms)
        yield from ThreadReader(listed, client, buffer, state.by_thread, settings, run, failed).read()
    for thread in failed.due("thread"):
        from_ms = settings.start_ms if thread.from_ms is None else thread.from_ms
        yield from repairs.read_thread(client, buffer, thread.id, from_ms, None, run, None, failed)


def _first_of_feed(client: Client, state: MessagesState, run: Run, failed: FailedReads) -> Page[Message] | None:
    """The newest page of the account's feed; null where the API refuses it, or does not manage to answer it."""
    now_ms = to_epoch_ms(run.clock.now())
    is_refused = state.feed is False and now_ms - (state.feed_refused_ms or 0) < DAY_MS
    if is_refused or failed.is_waiting("feed", "messages"):
        return None
    first: Page[Message] | None = None
    with failed.attempt("feed", "messages"):
        try:
            first = client.list_messages()
        except (PermanentError, ForbiddenError):
            state.feed_refused_ms = now_ms
    if first:
        state.feed, state.feed_refused_ms = True, None
    return first


def _add_coverage_of_feed(state: MessagesState, start_ms: int) -> None:
    """What the feed has shown without a gap since the start need not be read again chat by chat."""
    of_feed = Coverage(state.by_feed.covered)
    complete_to = of_feed.complete_to(start_ms)
    if complete_to is None:
        return
    covered = Coverage(state.by_thread.covered)
    if (covered.complete_to(start_ms) or 0) < complete_to:
        for lo, hi, read in of_feed.pieces:
            covered.add(lo, min(hi, complete_to), read)
        state.by_thread.covered = covered.pieces


def read_chats(
    client: Client, buffer: RowBuffer, state: ChatsState, settings: Settings, run: Run, failed: FailedReads
) -> Iterator[Any]:
    """Chats, newest first by `last_message_at`; then those that have to be asked for by id."""

    reader = ChatReader(lambda before: client.list_chats(before=before), buffer, state, settings, run, failed)
    if run.repair is None:
        yield from reader.read()
    yield from repairs.read_by_id(client, buffer, state, settings, run, failed)


def read_numbers(
    client: Client, buffer: RowBuffer, state: NumbersState, _settings: Settings, run: Run, failed: FailedReads
) -> Iterator[Any]:
    """The account's own numbers: one request, whatever their number."""
    if failed.is_waiting("numbers", "numbers"):
        return
    page: Page[Number] | None = None
    with failed.attempt("numbers", "numbers"), suppress(NotFoundError):  # one way to write an empty list
        page = client.list_numbers()
    if page is None:
        return
    progress = run.progress("numbers")
    progress.pages += 1
    progress.rows += len(page.rows)
    progress.rejected += len(page.rejected)
    progress.odd += len(page.odd)
    progress.new_fields.update(unknown_fields(page.rows))
    buffer.add(page, skip=frozenset(state.seen))
    state.seen = sorted(fingerprint(row) for row in page.rows)
    run.on_page()
    yield from buffer.flush_full()


Read = Callable[[Client, RowBuffer, Any, Settings, Run, FailedReads], Iterator[Any]]
KINDS: dict[str, type[NumbersState | MessagesState | ChatsState]] = {
    "numbers": NumbersState,
    "messages": MessagesState,
    "chats": ChatsState,
}


def read_stream(
    read: Read, client: Client, buffer: RowBuffer, resource: MutableMapping[str, Any], settings: Settings, run: Run
) -> Iterator[Any]:
    """Run one reader to where the run allows, land all that it read, and sort out why it ended. `resource` is dlt's
    state of the resource."""
    state, own = decode(resource, ResourceState), decode(resource, KINDS[buffer.stream])
    try:
        yield from _read_stream(read, client, buffer, state, own, settings, run)
    finally:
        encode(resource, state, own)


def _read_stream(
    read: Read, client: Client, buffer: RowBuffer, state: ResourceState, own: Any, settings: Settings, run: Run
) -> Iterator[Any]:
    progress = run.progress(buffer.stream)
    progress.unfinished = False
    buffer.on_twins = run.reject
    buffer.refused = run.refused
    if run.stopped:
        return
    if state.tables != buffer.tables:
        yield from buffer.empty_tables()
        state.tables = buffer.tables
    try:
        yield from _announced(read(client, buffer, own, settings, run, FailedReads(state, run, client)), run)
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
    progress.rejected += buffer.refused_rows


def _put_coverage(buffer: RowBuffer, state: ResourceState, run: Run) -> None:
    """What marts may rely on is kept beside the rows, when it is another than before."""
    covered = run.progress(buffer.stream).covered
    stretch = covered.newest_stretch if covered else None
    if stretch is None:
        return
    # Where the newest rows are deleted, what was read stays read.
    complete = (stretch[0], max(stretch[1], (state.complete or stretch)[1]))
    if state.complete != complete:
        state.complete = complete
        buffer.put_coverage(StreamCoverage(buffer.stream, *map(from_epoch_ms, complete)), run.clock.now())


def _announced(items: Iterator[Any], run: Run) -> Iterator[Any]:
    for item in items:
        run.on_rows()
        yield item


def _newest_first(chat: Chat) -> timedelta:
    return datetime.max.replace(tzinfo=UTC) - (chat.cursor_at or datetime.max.replace(tzinfo=UTC))
