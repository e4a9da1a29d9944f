"""What a run allows its streams, and what came of it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgbubbles.client import Client
from msgbubbles.decode import unknown_fields
from msgbubbles.errors import ApiError, Halt, MsgBubblesError, is_unit_error
from msgbubbles.models import Page
from msgbubbles.times import to_epoch_ms
from msgbubbles.transport import Clock, Traffic

from .buffer import Changes, RowBuffer
from .config import Settings
from .coverage import Coverage
from .failed_reads import FailedReads
from .fetch import InFlight, InThreads
from .paginate import Overflow, PageResult
from .state import ListState
from .stored import Warehouse


class BatchEnd(Halt):
    """The pages of this slice are read; the rest of the stream is for the next."""


class ShareSpent(Halt):
    """The requests that this run may spend on reading again are spent."""


@dataclass
class StreamProgress:
    """What a run has done to one stream. `rows` were read, `odd` of them held values that are not valid JSON.
    `reached_ms` is the oldest timestamp of the page read last. `overflows` are the tie overflows that the run met,
    `standing` those that are neither repaired nor accepted. `order_contradictions` counts pages whose rows are not in
    the order of the time that is read, or not where it says. `covered_before` and `covered` are the coverage before the
    run and now, null while nothing is covered.
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
    unfinished: bool = False
    covered_before: Coverage | None = None
    covered: Coverage | None = None

    _rejected: set[str] = field(default_factory=set)
    _odd: set[str] = field(default_factory=set)

    def count(self, page: Page[Any]) -> None:
        """Count a page and its rows. What is wrong with a row counts once, however often the run reads it."""
        self.pages += 1
        self.rows += len(page.rows)
        self.reject({row.row_hash for row in page.rejected})
        self.odd += len(page.odd - self._odd)
        self._odd |= page.odd
        self.new_fields.update(unknown_fields(page.rows))
        oldest = min((at for row in page.rows if (at := row.cursor_at) is not None), default=None)
        self.reached_ms = self.reached_ms if oldest is None else to_epoch_ms(oldest)

    def reject(self, hashes: set[str]) -> None:
        """Count rows that are in `rejected_rows`, by their hashes."""
        self.rejected += len(hashes - self._rejected)
        self._rejected |= hashes

    def note(self, result: PageResult[Any]) -> None:
        """Keep what a page says of the walk."""
        if result.overflow:
            self.overflows.add(result.overflow)
        self.order_contradictions += not result.is_in_order


@dataclass
class Run:
    """What a run allows its streams, and what came of it.

    `batch_pages`: pages a stream reads before what it has is loaded; the rest is then `unfinished`. With fewer than
    `settings.MIN_BATCH_PAGES`, a slice may end within the ties of one instant, and the next begin there again.
    `max_requests`: all requests of the run. `stop`: set it, and the run ends after the page in flight.
    `keep_on_error`: a fault ends the reading and is kept in `error`, so that what was read before it is loaded;
    otherwise it is raised, and dlt drops the load. `missing`: what to read by id, and nothing else.
    `accept_overflows`: nothing is missing at the tie overflows known until now. `clock` tells the wall time.
    `warehouse`: what is stored, where it can be asked. `refused`: which rows of a table (Arrow) the destination
    refuses, where a load has failed for its data. `settings`: what the source was configured with. `in_flight` makes
    what keeps the requests that are under way.
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
    settings: Settings | None = None
    in_flight: Callable[[], InFlight[Any]] = InThreads
    traffic: Traffic = field(default_factory=Traffic)
    streams: dict[str, StreamProgress] = field(default_factory=dict)
    changes: dict[str, Changes] = field(default_factory=dict)
    reconciled: Counter[str] = field(default_factory=Counter)
    feed: bool | None = None
    halt: Halt | None = None
    error: MsgBubblesError | None = None
    # Units that failed in this run, by kind and id: they are left alone until the next.
    failed_now: set[tuple[str, str]] = field(default_factory=set)
    failures_in_a_row: int = 0
    failed_reads_changed: bool = False

    @property
    def stopped(self) -> bool:
        """Whether another request would be unwanted, or useless."""
        if self.halt is not None:
            return True
        return isinstance(self.error, ApiError) and (not is_unit_error(self.error) or not self.traffic.answered)

    @property
    def unfinished(self) -> bool:
        """Whether there is something left for another slice."""
        return not self.stopped and any(progress.unfinished for progress in self.streams.values())

    def progress(self, stream: str) -> StreamProgress:
        return self.streams.setdefault(stream, StreamProgress())

    def reject(self, table: str, hashes: set[str]) -> None:
        """Count rows that could be read and are in `rejected_rows` all the same."""
        self.progress(table).reject(hashes)

    def loaded(self, table: str) -> int:
        """Rows of a table that were new or changed."""
        return self.changes[table].loaded if table in self.changes else 0


@dataclass(frozen=True)
class MissingRows:
    """What is missing in the warehouse, to be read by id: `chats`, and all messages of `threads`. `lagging` are threads
    whose newest message is missing, with the instant of that message. With `overflows`, the messages of instants that
    hold more than the feed shows are read thread by thread; `chats_proven` says that no chat is missing, though a list
    could not show all of them, and `all_chats_known` that the list showed all. `known_from_events` are
    chats with messages that are known only from events, with their first and last time. `groups` are
    to be asked for their participants, with those they had before. `limit` bounds the requests. Only events name the
    chats of `named_by_events`: one of those that is not found never was one.
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
    """What the readers of one stream share."""

    client: Client
    buffer: RowBuffer
    settings: Settings
    run: Run
    failed: FailedReads


def known_overflows(state: ListState) -> set[Overflow]:
    """Return the tie overflows of a stream that were neither repaired nor accepted."""
    return {Overflow(*span) for span in state.overflows}


def save_overflows(state: ListState, spans: set[Overflow], run: Run, stream: str) -> None:
    """Keep what is not repaired: all `spans`, but for those that were accepted, in this run or before."""
    accepted = {Overflow(*span) for span in state.overflows_accepted}
    accepted |= known_overflows(state) if run.accept_overflows else set()
    run.progress(stream).standing = spans - accepted
    state.overflows, state.overflows_accepted = _sorted(spans - accepted), _sorted(accepted)


def _sorted(spans: set[Overflow]) -> list[tuple[int | None, int | None]]:
    return sorted(((span.from_ms, span.to_ms) for span in spans), key=lambda span: (span[0] or 0, span[1] or 0))
