"""Newest-first paging that loses no row.

The API pages by `before`, an instant, and shows instants in milliseconds. Rows that share a millisecond can straddle
the edge of a page, `before` may exclude or include its own instant, and there may be microseconds behind what is
shown. So the next `before` is the oldest instant of the page **plus one millisecond**: the rows of that instant are
asked for again, and known ones are told by their key.

More rows in one instant than fit a page cannot all be reached. When a full page brings nothing new, the walk steps
over the instant and says so (`Overflow`); it never goes on in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic

from .errors import PermanentError
from .models import Page, R, Row

# How often the same question is asked when it brings nothing new: an API whose order among equals is not stable
# shows other rows of the instant each time.
TIE_ATTEMPTS = 3
# A page that is short for no reason is likely to be longer the next time.
SHORT_ATTEMPTS = 10
DAY_MS = 24 * 3600 * 1000
# The resolution of the API's own clock, the `Date` header.
CLOCK_RESOLUTION = timedelta(seconds=1)


@dataclass(frozen=True)
class Overflow:
    """Rows of these instants (milliseconds, both ends included) may be out of reach. None: rows without an instant."""

    from_ms: int | None
    to_ms: int | None


@dataclass(frozen=True)
class Step(Generic[R]):
    """One page of a walk.

    `covered_from_ms`: every row from this instant up to the beginning of the walk has been read, or None while that
    cannot be said. The last page may reach further back than was asked for; it is 0 where the list has ended.
    `newest_ms`: the newest instant on the page that is not in the API's future, if any.
    """

    page: Page[R]
    covered_from_ms: int | None
    newest_ms: int | None
    overflow: Overflow | None
    is_last: bool


class Walk(Generic[R]):
    """Reads every row with an instant from `lo_ms` up to `before_ms` (None: from the newest), newest first: ask for the
    page before `before`, and let `take` have it, until `is_over`.

    Rows outside of that stretch that share a page with it come too. `lo_ms` may be raised meanwhile: somebody else
    reads what is below it.
    """

    def __init__(self, *, lo_ms: int, before_ms: int | None, stream: str) -> None:
        self.lo_ms = lo_ms
        self.is_over = False
        self.edge_ms: int | None = None  # the oldest instant read
        self._before_ms = before_ms
        self._stream = stream
        self._is_of_all = before_ms is None
        self._known_at_edge: set[str] = set()
        self._known_without: set[str] = set()  # keys of rows without an instant
        self._idle = 0  # answers in a row that brought nothing new
        self._confirmed_empty = False

    @property
    def before(self) -> str | None:
        """The ISO 8601 instant to ask for."""
        return None if self._before_ms is None else iso(self._before_ms)

    def take(self, page: Page[R]) -> Step[R]:
        """What the page that was asked for means. Raises `PermanentError` when the API breaks its own paging."""
        before_ms, stream = self._before_ms, self._stream
        fresh = 0
        oldest_ms: int | None = None
        without = above = 0
        instants_ms = [cursor_ms(row) for row in page.rows]
        for row, at_ms in zip(page.rows, instants_ms, strict=True):
            if at_ms is None:
                without += 1
                fresh += row.key not in self._known_without
                self._known_without.add(row.key)
                continue
            if before_ms is not None and at_ms > before_ms:
                above += 1
                continue
            if self.edge_ms is None or at_ms < self.edge_ms or self._is_new_at_edge(row, at_ms):
                fresh += 1
            oldest_ms = at_ms if oldest_ms is None else min(oldest_ms, at_ms)
        if oldest_ms is not None and (self.edge_ms is None or oldest_ms <= self.edge_ms):
            if oldest_ms != self.edge_ms:
                self.edge_ms, self._known_at_edge = oldest_ms, set()
            self._known_at_edge |= {
                row.key for row, at_ms in zip(page.rows, instants_ms, strict=True) if at_ms == self.edge_ms
            }

        edge_ms = self.edge_ms
        may_hide_rows = page.full or bool(page.has_more)
        overflow: Overflow | None = None
        is_last = False
        next_ms = before_ms
        if len(page) == 0:
            # An empty page that promises more is asked for once more, then believed to be the end.
            is_last = self._confirmed_empty or not page.has_more
            self._confirmed_empty = True
        elif (edge_ms is not None and edge_ms < self.lo_ms) or (page.has_more is False and not page.full):
            is_last = True
        elif oldest_ms is None and above:
            raise PermanentError(f"{stream}: the API answered with rows that are newer than the `before` it was given")
        elif oldest_ms is None and not without:
            raise PermanentError(f"{stream}: a whole page could not be read, so there is no instant to go on from")
        elif oldest_ms is None and before_ms is None:
            # Rows without an instant come first here; the others begin behind them.
            overflow = Overflow(None, None) if page.full else None
            next_ms = epoch_ms(page.server_at) + DAY_MS
        elif oldest_ms is None and edge_ms is None and self._is_of_all:
            raise PermanentError(f"{stream}: a page of rows without an instant hides the others")
        elif oldest_ms is None and edge_ms is None and not page.full and self._idle < SHORT_ATTEMPTS:
            self._idle += 1
        elif oldest_ms is None:
            # Rows without an instant come last here. Where they come first again, the others are behind them.
            overflow = Overflow(None, None) if may_hide_rows else None
            is_last = True
        elif fresh or edge_ms is None:
            self._idle = 0
            next_ms = oldest_ms + 1
        elif before_ms is None or before_ms > edge_ms:
            self._idle += 1
            attempts = TIE_ATTEMPTS if page.full else SHORT_ATTEMPTS
            if self._idle >= attempts or not may_hide_rows:
                self._idle = 0
                overflow = Overflow(edge_ms, edge_ms) if may_hide_rows else None
                next_ms = edge_ms
            else:
                next_ms = edge_ms + 1
        else:
            # `before` includes its instant, so this has to go below it. Microseconds behind the millisecond that is
            # skipped are then out of reach too.
            overflow = Overflow(edge_ms - 1, edge_ms)
            next_ms = edge_ms - 1

        if is_last and (edge_ms is None or edge_ms >= self.lo_ms):
            covered_from_ms: int | None = 0
        else:
            covered_from_ms = None if edge_ms is None else edge_ms + 1
        self.is_over = is_last
        self._before_ms = next_ms
        return Step(page, covered_from_ms, _newest_ms(page, instants_ms), overflow, is_last)

    def _is_new_at_edge(self, row: Row, at_ms: int) -> bool:
        return at_ms == self.edge_ms and row.key not in self._known_at_edge


def walk(
    fetch: Callable[[str | None], Page[R]], *, lo_ms: int, before_ms: int | None, stream: str
) -> Iterator[Step[R]]:
    """The steps of a `Walk`, one after another. `fetch` asks for the page before an ISO 8601 instant. Raises what it
    raises, and what `Walk.take` does."""
    reading: Walk[R] = Walk(lo_ms=lo_ms, before_ms=before_ms, stream=stream)
    while not reading.is_over:
        yield reading.take(fetch(reading.before))


def cursor_ms(row: Row) -> int | None:
    """The instant a row is ordered by, as it is shown: milliseconds since 1970, what is behind them cut off."""
    at = row.cursor_at
    return None if at is None else epoch_ms(at)


def iso(at_ms: int) -> str:
    """An instant as the API writes it: `2026-11-23T09:30:00.000Z`."""
    at = datetime.fromtimestamp(at_ms // 1000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"


def epoch_ms(at: datetime) -> int:
    """Milliseconds since 1970, what is behind them cut off."""
    # A division of timedeltas takes five times as long, and this is asked of every row.
    since = at - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


def epoch_us(at: datetime) -> int:
    """Microseconds since 1970, of UTC where the instant does not say."""
    since = (at if at.tzinfo else at.replace(tzinfo=UTC)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _newest_ms(page: Page[R], instants_ms: list[int | None]) -> int | None:
    # An instant in the future says nothing about what is still to come before it.
    latest_ms = epoch_ms(page.server_at + CLOCK_RESOLUTION)
    return max((at for at in instants_ms if at is not None and at <= latest_ms), default=None)
