"""Reads one stream: plans from its coverage, walks, lands the rows, and moves its coverage as far as was read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Generic

from . import coverage as plan
from .client import Client
from .coverage import Coverage, Task
from .errors import AuthenticationError, ConfigurationError, Halt, MsgBubblesError, PermanentError, RetryableError
from .landing import Landing
from .models import Chat, Message, Page, R, fingerprint, unknown_fields
from .transport import Traffic
from .walk import Overflow, Step, cursor_ms, epoch_ms, walk

MIN_SLICE_PAGES = 20

State = dict[str, Any]
Fetch = Callable[[str | None], Page[R]]


class SliceEnd(Halt):
    """The pages of this slice are read; the rest of the stream is for the next."""


@dataclass
class StreamProgress:
    """What a run has done to one stream. `rows` were read, `landed` were new or changed. `reached_ms` is the oldest
    instant of the page read last."""

    pages: int = 0
    rows: int = 0
    landed: int = 0
    rejected: int = 0
    new_fields: set[str] = field(default_factory=set)
    overflows: set[Overflow] = field(default_factory=set)
    reached_ms: int | None = None
    unfinished: bool = False


@dataclass
class Run:
    """What a run allows its streams, and what came of it.

    `slice_pages`: pages a stream reads before what it has is loaded; the rest is then `unfinished`. With fewer than
    `MIN_SLICE_PAGES`, a slice may end within the ties of one instant, and the next begin there again. `max_requests`:
    all requests of the run. `stop`: set it, and the run ends after the page in flight. `keep_on_error`: a fault ends
    the reading and is kept in `error`, so that what was read before it is loaded; otherwise it is raised, and dlt
    drops the load.
    """

    slice_pages: int | None = None
    max_requests: int | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    keep_on_error: bool = False
    on_page: Callable[[], None] = lambda: None
    on_rows: Callable[[], None] = lambda: None
    on_wait: Callable[[str, float], None] = lambda _why, _seconds: None
    traffic: Traffic = field(default_factory=Traffic)
    streams: dict[str, StreamProgress] = field(default_factory=dict)
    feed: bool | None = None
    halt: Halt | None = None
    error: MsgBubblesError | None = None

    @property
    def stopped(self) -> bool:
        """Whether another request would be unwanted, or useless."""
        return self.halt is not None or isinstance(self.error, AuthenticationError | RetryableError)

    @property
    def unfinished(self) -> bool:
        """Whether there is something left for another slice."""
        return not self.stopped and any(progress.unfinished for progress in self.streams.values())

    def progress(self, stream: str) -> StreamProgress:
        return self.streams.setdefault(stream, StreamProgress())


@dataclass(frozen=True)
class Settings:
    """`start_ms`: nothing older is read. `settle_ms`: how late a row may become visible after its own instant."""

    start_ms: int = 0
    settle_ms: int = 300_000


@dataclass
class _Reach:
    """How far one task has come: everything in [from_ms, to_ms] was read, beginning at `read_ms`."""

    from_ms: int | None = None
    to_ms: int | None = None
    read_ms: int | None = None


class StreamReader(Generic[R]):
    """Reads the rows of one list endpoint, and yields items for dlt.

    `state` is kept by dlt with the rows: `covered` (coverage), `seen` (fingerprints of the newest page at `seen_ms`, so
    that what has not changed is not landed again) and `overflows`.
    """

    def __init__(
        self, stream: str, fetch: Fetch[R], landing: Landing, state: State, settings: Settings, run: Run
    ) -> None:
        self.stream = stream
        self.landing = landing
        self.settings = settings
        self.progress = run.progress(stream)
        self.coverage = Coverage((lo, hi, read) for lo, hi, read in state.get("covered", ()))
        self.seen: frozenset[str] = frozenset(state.get("seen", ()))
        self.seen_ms: int = state.get("seen_ms", 0)
        self._now_seen: set[str] = set()
        self._now_seen_ms: int | None = None
        self._fetch = fetch
        self._state = state
        self._run = run
        self._pages_left = run.slice_pages
        self._rejected_before: set[str] = set()

    def read(self) -> Iterator[Any]:
        """Read the head, then the gaps, as far as the run allows. The state is right wherever this ends."""
        start_ms, settle_ms = self.settings.start_ms, self.settings.settle_ms
        try:
            cut_off: SliceEnd | None = None
            try:
                yield from self._read_task(plan.head(self.coverage, start_ms, settle_ms))
            except SliceEnd as end:
                cut_off = end
            # A head that is cut off leaves a gap, and every slice reads a page of the gaps at least: so the slices of
            # a run come to an end, however busy the account is.
            self._pages_left = None if self._pages_left is None else max(self._pages_left, 1)
            for task in plan.gaps(self.coverage, start_ms):
                yield from self._read_task(task)
            if cut_off and not self.coverage.pieces:
                raise cut_off
        finally:
            self._save()

    def _read_task(self, task: Task) -> Iterator[Any]:
        reach = _Reach(to_ms=None if task.hi_ms is None else task.hi_ms - 1)
        if task.kind == "head":
            # What is not settled counts as unread from here on, so that a head that is cut off leaves it as a gap.
            self.coverage.forget_from(task.lo_ms)
        try:
            steps = walk(self._allowed(self._fetch), lo_ms=task.lo_ms, before_ms=task.hi_ms, stream=self.stream)
            for step in steps:
                reach.read_ms = reach.read_ms or epoch_ms(step.page.read_at)
                reach.to_ms = step.newest_ms if reach.to_ms is None else reach.to_ms
                if step.overflow:
                    self.progress.overflows.add(step.overflow)
                yield from self.land(step, task, reach)
                reach.from_ms = step.covered_from_ms
        finally:
            if reach.from_ms is not None and reach.to_ms is not None and reach.read_ms is not None:
                self.coverage.add(reach.from_ms, reach.to_ms + 1, reach.read_ms)

    def land(self, step: Step[R], task: Task, _reach: _Reach) -> Iterator[Any]:
        """Land the rows of one page. On the newest page, what has not changed since it was last read is left out."""
        is_newest = task.kind == "head" and self._now_seen_ms is None
        self.landing.add(step.page, skip=self.seen if is_newest else frozenset())
        if is_newest:
            self.mark_seen(step.page, {fingerprint(row) for row in step.page.rows})
        yield from self.landing.full_tables()

    def mark_seen(self, page: Page[Any], fingerprints: set[str]) -> None:
        self._now_seen_ms = self._now_seen_ms or epoch_ms(page.server_at)
        self._now_seen |= fingerprints

    def _allowed(self, fetch: Fetch[Any]) -> Fetch[Any]:
        """The same, but no page more than the slice allows, and every page counted."""

        def allowed(before: str | None) -> Page[Any]:
            if self._pages_left == 0:
                raise SliceEnd
            page = fetch(before)
            if self._pages_left is not None:
                self._pages_left -= 1
            self.count(page)
            return page

        return allowed

    def count(self, page: Page[Any]) -> None:
        progress = self.progress
        progress.pages += 1
        progress.rows += len(page.rows)
        # What is at the edge of a page is on the next one again.
        rejected = {one.row_hash for one in page.rejected}
        progress.rejected += len(rejected - self._rejected_before)
        self._rejected_before = rejected
        progress.new_fields.update(unknown_fields(page.rows))
        oldest_ms = min((at for row in page.rows if (at := cursor_ms(row)) is not None), default=None)
        progress.reached_ms = progress.reached_ms if oldest_ms is None else oldest_ms
        self._run.on_page()

    def _save(self) -> None:
        now_ms = time.time_ns() // 1_000_000
        self._state["covered"] = [list(piece) for piece in self.coverage.compacted(now_ms).pieces]
        if self._now_seen_ms is not None:
            self._state["seen"] = sorted(self._now_seen)
            self._state["seen_ms"] = self._now_seen_ms
        known = {Overflow(*span) for span in self._state.get("overflows", ())} | self.progress.overflows
        if known:
            self._state["overflows"] = [[span.from_ms, span.to_ms] for span in sorted(known, key=_by_instant)]


class ThreadReader(StreamReader[Chat]):
    """Reads messages thread by thread, for accounts whose API does not answer the whole feed.

    It walks the chats and reads the messages of each, so its coverage is in the time of `last_message_at`: *of every
    chat that lay here then, the messages have been read*.
    """

    def __init__(self, client: Client, landing: Landing, state: State, settings: Settings, run: Run) -> None:
        super().__init__("messages", lambda before: client.list_chats(before=before), landing, state, settings, run)
        self._client = client
        # Messages older than this have been read in every thread: up to here no thread is missing.
        complete_to = self.coverage.complete_to(settings.start_ms)
        self._floor_ms = (
            settings.start_ms if complete_to is None else max(complete_to - 1 - settings.settle_ms, settings.start_ms)
        )

    def count(self, page: Page[Any]) -> None:
        if page.rows and isinstance(page.rows[0], Chat):
            self.progress.pages += 1
        else:
            super().count(page)

    def land(self, step: Step[Chat], task: Task, reach: _Reach) -> Iterator[Any]:
        is_newest = task.kind == "head" and reach.from_ms is None
        self.landing.add_rejected(step.page)
        for chat in sorted(step.page.rows, key=_newest_first):
            at_ms = cursor_ms(chat)
            if at_ms is not None and (at_ms < task.lo_ms or (task.hi_ms is not None and at_ms >= task.hi_ms)):
                continue
            mark = fingerprint(chat)
            if not self._is_settled(mark, at_ms):
                yield from self._read_thread(chat)
            if is_newest:
                self.mark_seen(step.page, {mark})
            if at_ms is not None:
                reach.from_ms = at_ms + 1

    def _is_settled(self, mark: str, at_ms: int | None) -> bool:
        """Whether the thread was read as it is now, and so long after its last message that none can have come late."""
        return mark in self.seen and (at_ms or 0) + self.settings.settle_ms < self.seen_ms

    def _read_thread(self, chat: Chat) -> Iterator[Any]:
        def fetch(before: str | None) -> Page[Message]:
            return self._client.list_messages(chat.id, before=before)

        for step in walk(self._allowed(fetch), lo_ms=self._floor_ms, before_ms=None, stream=self.stream):
            if step.overflow:
                self.progress.overflows.add(step.overflow)
            self.landing.add(step.page)
            yield from self.landing.full_tables()


def read_messages(client: Client, landing: Landing, state: State, settings: Settings, run: Run) -> Iterator[Any]:
    """Messages, from the account's feed where the API answers it, else thread by thread.

    Which it is is found out by the first page, and remembered in `state`; either way has its own coverage there.
    """
    first: Page[Message] | None = None
    if state.get("feed") is not False:
        try:
            first = client.list_messages()
        except PermanentError as error:
            if error.status not in FEED_REFUSED:
                raise
        if first is None or len(first):
            state["feed"] = first is not None
    # An empty feed may be an account without messages, or an API that answers nothing without a conversation.
    run.feed = bool(first)
    if first:
        pages = [first]

        def fetch(before: str | None) -> Page[Message]:
            if before is None and pages:
                return pages.pop()
            return client.list_messages(before=before)

        yield from StreamReader("messages", fetch, landing, state.setdefault("by_feed", {}), settings, run).read()
    else:
        yield from ThreadReader(client, landing, state.setdefault("by_thread", {}), settings, run).read()


FEED_REFUSED = frozenset({400, 404, 405, 422})


def read_chats(client: Client, landing: Landing, state: State, settings: Settings, run: Run) -> Iterator[Any]:
    """Chats, newest first by `last_message_at`."""

    def fetch(before: str | None) -> Page[Chat]:
        return client.list_chats(before=before)

    return StreamReader("chats", fetch, landing, state, settings, run).read()


def read_numbers(client: Client, landing: Landing, state: State, _settings: Settings, run: Run) -> Iterator[Any]:
    """The account's own numbers: one request, whatever their number."""
    page = client.list_numbers()
    progress = run.progress("numbers")
    progress.pages += 1
    progress.rows += len(page.rows)
    progress.rejected += len(page.rejected)
    progress.new_fields.update(unknown_fields(page.rows))
    landing.add(page, skip=frozenset(state.get("seen", ())))
    state["seen"] = sorted(fingerprint(row) for row in page.rows)
    run.on_page()
    yield from landing.full_tables()


Read = Callable[[Client, Landing, State, Settings, Run], Iterator[Any]]


def read_stream(
    read: Read, client: Client, landing: Landing, state: State, settings: Settings, run: Run
) -> Iterator[Any]:
    """Run one reader to where the run allows, land all that it read, and sort out why it ended."""
    progress = run.progress(landing.stream)
    progress.unfinished = False
    if run.stopped:
        return
    if not state.get("has_tables"):
        yield from landing.empty_tables()
        state["has_tables"] = True
    try:
        yield from _announced(read(client, landing, state, settings, run), run)
    except SliceEnd:
        progress.unfinished = True
    except Halt as halt:
        run.halt = halt
    except MsgBubblesError as error:
        if not run.keep_on_error:
            raise
        run.error = run.error or error
    yield from _announced(landing.rest(), run)
    progress.landed += landing.landed


def _announced(items: Iterator[Any], run: Run) -> Iterator[Any]:
    for item in items:
        run.on_rows()
        yield item


def start_of(start_date: str | None) -> int:
    """The first instant to read, in milliseconds; `start_date` is an ISO 8601 date or time, UTC unless it says.

    Raises `ConfigurationError`.
    """
    if start_date is None:
        return 0
    try:
        at = datetime.fromisoformat(start_date)
    except ValueError:
        raise ConfigurationError('start_date is not a date; expected one like "2026-01-31"') from None
    return epoch_ms(at if at.tzinfo else at.replace(tzinfo=UTC))


def _newest_first(chat: Chat) -> timedelta:
    return datetime.max.replace(tzinfo=UTC) - (chat.cursor_at or datetime.max.replace(tzinfo=UTC))


def _by_instant(span: Overflow) -> tuple[int, int]:
    return (span.from_ms or 0, span.to_ms or 0)
