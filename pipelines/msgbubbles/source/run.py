"""The limits of a run, and its results."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgbubbles.api_time import Clock
from msgbubbles.client import Client
from msgbubbles.decode import list_unknown_fields
from msgbubbles.errors import ApiError, Halt, MsgBubblesError, is_unit_error
from msgbubbles.models import Page
from msgbubbles.rate_limit import RateLimiter
from msgbubbles.settings import DEFAULTS, SourceSettings
from msgbubbles.times import to_epoch_ms
from msgbubbles.transport import Traffic, Transport

from .buffer import Changes, RowBuffer
from .coverage import Coverage
from .failed_reads import FailedReads
from .fetch import InFlight, InThreads
from .paginate import Overflow, PageResult
from .state import ListState
from .stored import Warehouse


@dataclass
class StreamProgress:
    """Progress of a run on one stream.

    Attributes:
        rows: Rows that were read; `odd` of them had values that are not valid JSON.
        overflows: The tie overflows of this run; `standing` are those that are neither repaired nor accepted.
        order_contradictions: Pages that are not in the order of the cursor time, or not where it says.
        reached_ms: The oldest timestamp of the last page.
        covered_before, covered: The coverage before the run and now; null if missing.
    """

    pages: int = 0
    refresh_pages: int = 0
    rows: int = 0
    rejected: int = 0
    odd: int = 0
    new_fields: set[str] = field(default_factory=set)
    overflows: set[Overflow] = field(default_factory=set)
    standing: set[Overflow] = field(default_factory=set)
    order_contradictions: int = 0
    reached_ms: int | None = None
    is_unfinished: bool = False
    covered_before: Coverage | None = None
    covered: Coverage | None = None

    _rejected: set[str] = field(default_factory=set)
    _odd: set[str] = field(default_factory=set)

    @property
    def is_empty(self) -> bool:
        """Whether the stream was read and has no rows. Rows that are not visible yet may follow."""
        return self.pages > 0 and not (self.rows or self.rejected or self.is_unfinished)

    def count(self, page: Page[Any]) -> None:
        """Count a page and its rows. A rejected or odd row counts once, however often it is read."""
        self.pages += 1
        self.rows += len(page.rows)
        self.reject({row.row_hash for row in page.rejected})
        self.odd += len(page.odd - self._odd)
        self._odd |= page.odd
        self.new_fields.update(list_unknown_fields(page.rows))
        oldest = min(page.cursor_times, default=None)
        self.reached_ms = self.reached_ms if oldest is None else to_epoch_ms(oldest)

    def reject(self, hashes: set[str]) -> None:
        """Count rejected rows by their hashes."""
        self.rejected += len(hashes - self._rejected)
        self._rejected |= hashes

    def ignore_rejected(self, hashes: set[str]) -> None:
        """Count these rejected rows no more."""
        self._rejected |= hashes

    def note(self, result: PageResult[Any]) -> None:
        if result.overflow:
            self.overflows.add(result.overflow)
        self.order_contradictions += not result.is_in_order


@dataclass
class Run:
    """The limits of a run, and its results.

    Attributes:
        batch_pages: Pages that a stream reads before its rows are loaded; the rest is then unfinished. With fewer
            than `settings.MIN_BATCH_PAGES`, a batch may end within rows of one timestamp, and the next repeat them.
        max_requests: The number of requests, retries included.
        stop: Set it to end the run after the page in flight.
        keep_on_error: Whether an error ends the reading and is stored in `error`, so that the rows read before it are
            loaded. Otherwise it is raised, and dlt drops the load.
        missing: If set, only these rows are read, by id.
        accept_overflows: Whether to treat all known tie overflows as complete.
        warehouse: The stored rows, if the destination can be queried.
        refused: Returns which rows of an Arrow table the destination refuses; set once a load failed for its data.
        in_flight: Builds the queue of requests in flight.
        readable_again: Hashes of rejected rows whose interval was read again without one.
        failed_now: Units that failed in this run, by kind and id; the run does not try them again.
    """

    batch_pages: int | None = None
    max_requests: int | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    keep_on_error: bool = False
    missing: MissingRows | None = None
    accept_overflows: bool = False
    clock: Clock = field(default_factory=Clock)
    on_page: Callable[[], None] = lambda: None
    on_rows: Callable[[], None] = lambda: None
    on_wait: Callable[[str, float], None] = lambda _why, _seconds: None
    warehouse: Warehouse | None = None
    refused: Callable[[str, Any], list[bool]] | None = None
    settings: SourceSettings = DEFAULTS
    in_flight: Callable[[], InFlight[Any]] = InThreads
    traffic: Traffic = field(default_factory=Traffic)
    streams: dict[str, StreamProgress] = field(default_factory=dict)
    changes: dict[str, Changes] = field(default_factory=dict)
    reconciled: Counter[str] = field(default_factory=Counter)
    feed: bool | None = None
    halt: Halt | None = None
    error: MsgBubblesError | None = None
    readable_again: set[str] = field(default_factory=set)
    failed_now: set[tuple[str, str]] = field(default_factory=set)
    failures_in_a_row: int = 0
    failed_reads_changed: bool = False

    @property
    def is_stopped(self) -> bool:
        """Whether there is no point in another request."""
        if self.halt is not None:
            return True
        return isinstance(self.error, ApiError) and (not is_unit_error(self.error) or not self.traffic.answered)

    @property
    def is_unfinished(self) -> bool:
        """Whether another batch is to be read."""
        return not self.is_stopped and any(progress.is_unfinished for progress in self.streams.values())

    def build_transport(self, api_key: str, settings: SourceSettings) -> Transport:
        """Build a transport that counts its requests here, and stops with the run."""
        per_minute = settings.requests_per_minute
        return Transport(
            settings.base_url,
            api_key,
            RateLimiter.for_key(api_key, per_minute, settings.budget_dir) if per_minute else None,
            timeout_seconds=settings.timeout_seconds,
            max_attempts=settings.max_attempts,
            traffic=self.traffic,
            max_requests=self.max_requests,
            stop=self.stop,
            on_wait=self.on_wait,
            clock=self.clock,
        )

    def get_progress(self, stream: str) -> StreamProgress:
        return self.streams.setdefault(stream, StreamProgress())

    def count_loaded(self, table: str) -> int:
        """Return how many rows of a table were new or changed."""
        return self.changes[table].loaded if table in self.changes else 0


@dataclass(frozen=True)
class MissingRows:
    """Rows that are missing in the warehouse, and have to be read by id.

    Attributes:
        threads: Chats of which to read all messages.
        lagging: Chats whose newest message is missing, with the time of that message.
        overflows: Whether to read the messages of overflowed timestamps chat by chat.
        chats_proven: Whether messages prove that no chat is missing, although a tie overflow hid some of the list.
        known_from_events: Chats with messages that only webhooks mention, with their first and last time.
        groups: Groups to ask for their participants, with the participants stored before.
        limit: The number of requests.
        named_by_events: Chats that only webhooks mention; a 404 means that they never existed.
        all_chats_known: Whether the list showed all chats.
    """

    chats: Sequence[str] = ()
    threads: Sequence[str] = ()
    lagging: Mapping[str, int] = field(default_factory=dict)
    overflows: bool = False
    chats_proven: bool = False
    known_from_events: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    groups: Mapping[str, Sequence[str] | None] = field(default_factory=dict)
    limit: int | None = None
    named_by_events: Sequence[str] = ()
    all_chats_known: bool = False


@dataclass(frozen=True)
class StreamContext:
    """The shared state of the readers of one stream.

    `before_request` is called before each request about one chat, and may raise `LimitReached`.
    """

    client: Client
    buffer: RowBuffer
    run: Run
    failed: FailedReads
    before_request: Callable[[], None] = lambda: None


def save_overflows(state: ListState, spans: set[Overflow], run: Run, stream: str) -> None:
    """Store `spans`, the overflows that are not repaired, except those that were accepted now or earlier."""
    accepted = {*state.overflows_accepted, *(state.overflows if run.accept_overflows else ())}
    run.get_progress(stream).standing = spans - accepted
    state.overflows, state.overflows_accepted = (
        sorted(some, key=lambda span: (span.from_ms or 0, span.to_ms or 0)) for some in (spans - accepted, accepted)
    )
