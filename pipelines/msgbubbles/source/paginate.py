"""Newest-first paging that loses no row.

The API pages by `before`, a timestamp, and shows timestamps in milliseconds. Rows that share a millisecond can straddle
the edge of a page, `before` may exclude or include its own timestamp, and there may be microseconds behind what is
shown. So the next `before` is the oldest timestamp of the page **plus one millisecond**: the rows of that timestamp are
asked for again, and repeats are recognized by their key.

That also shows whether the timestamp can be trusted. The row that the boundary was taken from has to be on the next
page; then the API, too, puts everything newer on the pages before. Where the row is missing, the boundary was an
outlier (a `created_at` in 2001 on a page ordered by `sent_at`), and a newer one of the same page is tried, or another
field. Such rows are loaded, and no boundary is taken from them.

More rows at one timestamp than fit a page cannot all be reached. When a full page brings nothing new, the paginator
steps over the timestamp and reports it (`Overflow`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic

from msgbubbles.errors import PermanentError
from msgbubbles.models import Page, R, Row
from msgbubbles.times import BEGINNING_MS, DAY_MS, format_ms, to_epoch_ms

from .page_times import CURSOR, OTHER_FIELDS, Boundary, PageTimes, read_time_ms

# How often the same page is asked for when it brings nothing new: an API whose order among equals is not stable shows
# other rows of the timestamp each time.
TIE_ATTEMPTS = 3
# A page that is short for no reason is likely to be longer the next time.
SHORT_ATTEMPTS = 10
# Pages in a row that bring new rows and do not go further down, before the paginator steps over the timestamp: an API
# that makes up rows at one timestamp would keep it for ever. A random order among equals shows some 3,000 rows by then.
MAX_PAGES_AT_ONE_TIMESTAMP = 200
# Pages of which no row was found again at its own time, before the paginator gives up.
MAX_UNPROVEN_PAGES = 20
BEFORE_IGNORED = "the API answered with rows that are newer than the `before` it was given"


@dataclass(frozen=True)
class Overflow:
    """Rows from one millisecond to another, both included, may be out of reach; None: rows without a timestamp."""

    from_ms: int | None
    to_ms: int | None


@dataclass(frozen=True)
class PageResult(Generic[R]):
    """What one page says about the interval.

    `covered_from_ms`: every row from this time up to the beginning of the interval has been read, or None while that
    cannot be said. The last page may reach further back than was asked for; it is `BEGINNING_MS` where the list has
    ended. `newest_ms`: the newest time on the page that is not in the API's future, if any. `is_in_order`: whether the
    page is where its rows' times say, newest first; `outliers` are the keys of rows that are not.
    """

    page: Page[R]
    covered_from_ms: int | None
    newest_ms: int | None
    overflow: Overflow | None
    is_last: bool
    is_in_order: bool = True
    outliers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Asked(Generic[R]):
    """A page that a boundary was taken from, and the `before` that it was asked for with."""

    page: Page[R]
    times: PageTimes
    before_ms: int | None


@dataclass(frozen=True)
class _Facts(Generic[R]):
    """What decides where to go on from a page.

    `lowest_ms` is its oldest trusted time. `brings_new`: it has rows that the pages before did not show. `goes_down`:
    it reaches further down than they. `is_proven`: its times do not mislead. `sure_ms`: nothing is left out down to
    here. `awaited` has still to be proven.
    """

    page: Page[R]
    times: PageTimes
    awaited: Boundary | None
    lowest_ms: int | None
    brings_new: bool
    goes_down: bool
    is_proven: bool
    sure_ms: int | None


@dataclass
class _Next:
    """What follows a page: the `before` to ask for, the boundary that has to be proven, or the end."""

    before_ms: int | None
    overflow: Overflow | None
    expected: Boundary | None = None
    is_at_end: bool = False
    is_last: bool = False


class Paginator(Generic[R]):
    """Reads every row with a time from `lo_ms` up to `before_ms` (None: from the newest), newest first: request the
    page before `before` and hand it to `advance`, until `is_over`.

    Rows outside of that interval that share a page with it come too. `lo_ms` may be raised meanwhile, where somebody
    else reads what is below it.
    """

    def __init__(self, *, lo_ms: int, before_ms: int | None, stream: str) -> None:
        self.lo_ms = lo_ms
        self.is_over = False
        self.edge_ms: int | None = None  # the boundary of what was read
        self._before_ms = before_ms
        self._stream = stream
        self._is_of_all = before_ms is None
        self._field = CURSOR
        self._recent: set[str] = set()  # keys of the pages since `edge_ms` last went down
        self._idle = 0  # answers in a row that brought nothing new
        self._pages_here = 0  # answers in a row that brought new rows, and none further down
        self._confirmed_empty = False
        self._covered_from_ms: int | None = None
        # The boundary that the next page has to prove, and the newest that was proven.
        self._expected: Boundary | None = None
        self._proven_ms: int | None = None
        # The page that the boundary is of, and what else its boundary may be.
        self._last: _Asked[R] | None = None
        self._others: list[Boundary] | None = None
        self._misled: set[tuple[str, int]] = set()
        self._asked_again: frozenset[str] = frozenset()
        self._unproven_pages = 0
        self._ids_change = False
        # A tie overflow, unless one of these rows turns out to come after the tied ones.
        self._suspected: tuple[Overflow, frozenset[str]] | None = None
        self._may_hide_untimed = False

    @property
    def before(self) -> str | None:
        """The ISO 8601 timestamp to ask for."""
        return None if self._before_ms is None else format_ms(self._before_ms)

    def advance(self, page: Page[R]) -> PageResult[R]:
        """Take the page that was asked for, and move `before`. Raises `PermanentError` where paging is broken."""
        awaited = self._expected
        if awaited is not None:
            if awaited.is_on(page, by_time=self._ids_change):
                self._proven_ms, self._field, self._unproven_pages = awaited.at_ms, awaited.field, 0
                self.edge_ms = awaited.at_ms
                awaited = None
            elif not awaited.may_follow(page):
                return self._try_another(page, awaited)
        times = self._find_order(page)
        facts, overflow = self._examine(page, times, awaited)
        following = _Next(self._before_ms, overflow)
        self._decide(facts, following)
        is_at_end = following.is_at_end or (following.before_ms is not None and following.before_ms < BEGINNING_MS)

        if is_at_end and self._may_hide_untimed:
            following.overflow = following.overflow or Overflow(None, None)
        if is_at_end:
            self._covered_from_ms = BEGINNING_MS
        elif not self._may_hide_untimed:
            self._covered_from_ms = None if facts.sure_ms is None else facts.sure_ms + 1
        self.is_over = is_at_end or following.is_last
        if following.expected is not awaited:
            self._last, self._others = _Asked(page, times, self._before_ms), None
        self._before_ms, self._expected = following.before_ms, following.expected
        return self._build_result(page, times, following.overflow)

    def _examine(self, page: Page[R], times: PageTimes, awaited: Boundary | None) -> tuple[_Facts[R], Overflow | None]:
        """Compare a page with those before it. Returns the overflow that it proves, too."""
        before_ms, keys = self._before_ms, {row.key for row in page.rows}
        lowest_ms = min(times.trusted_ms, default=None)
        new_ms = [
            at
            for row, at in zip(page.rows, times.all_ms, strict=True)
            if row.key not in self._recent and (at is None or before_ms is None or at <= before_ms)
        ]
        goes_down = lowest_ms is not None and (self.edge_ms is None or lowest_ms < self.edge_ms)
        if goes_down:
            self.edge_ms, self._recent, self._pages_here = lowest_ms, set(), 0
        self._recent |= keys

        overflow = self._confirm_overflow(times, keys)
        is_proven = not self._asked_again & keys  # asked a second time, the same rows: their times mislead
        if self._asked_again and is_proven and self._last is not None:
            self._ids_change = self._ids_change or sorted(times.timed_ms) == sorted(self._last.times.timed_ms)
        if not is_proven and times.timed:
            overflow = Overflow(min(times.trusted_ms), max(times.trusted_ms))
        self._asked_again = frozenset()
        self._note_untimed(page, times, brings_timed=new_ms.count(None) < len(new_ms))
        facts = _Facts(
            page,
            times,
            awaited,
            lowest_ms,
            brings_new=bool(new_ms),
            goes_down=goes_down,
            is_proven=is_proven,
            sure_ms=self._find_sure_ms(page, times),
        )
        return facts, overflow

    def _decide(self, facts: _Facts[R], following: _Next) -> None:
        """Decide what follows a page."""
        page, times, lowest_ms, sure_ms = facts.page, facts.times, facts.lowest_ms, facts.sure_ms
        if len(page) == 0:
            # An empty page that promises more is asked for once more, then believed to be the end.
            following.is_at_end = self._confirmed_empty or not page.has_more
            self._confirmed_empty = True
        elif sure_ms is not None and sure_ms < self.lo_ms:
            following.is_last = True
        elif page.has_more is False and not page.full and (times.is_in_order or (lowest_ms is None and times.above)):
            following.is_at_end = True
        elif lowest_ms is None:
            self._decide_untimed(facts, following)
        elif facts.brings_new or facts.goes_down:
            self._continue_down(facts, following)
        else:
            self._decide_repeated(facts, following)

    def _decide_untimed(self, facts: _Facts[R], following: _Next) -> None:
        """Decide what follows a page of which no row has a time that counts."""
        page, above, stream = facts.page, facts.times.above, self._stream
        is_short = not page.full and self._idle < SHORT_ATTEMPTS
        if above and is_short:
            self._idle += 1
        elif above:
            raise PermanentError(f"{stream}: {BEFORE_IGNORED}")
        elif None not in facts.times.all_ms:
            raise PermanentError(f"{stream}: a whole page could not be read, so there is no timestamp to go on from")
        elif self._before_ms is None:
            # Rows without a time come first here; the others begin behind them.
            following.overflow = Overflow(None, None) if page.full else None
            following.before_ms = to_epoch_ms(page.server_at) + DAY_MS
        elif self.edge_ms is None and self._is_of_all:
            raise PermanentError(f"{stream}: a page of rows without a timestamp hides the others")
        elif self.edge_ms is None and is_short:
            self._idle += 1
        elif facts.brings_new and page.may_hide_rows and self._pages_here < MAX_PAGES_AT_ONE_TIMESTAMP:
            self._pages_here += 1
        else:
            # Rows without a time come last here. Where they come first again, the others are behind them.
            following.overflow = Overflow(None, None) if page.may_hide_rows else following.overflow
            following.is_at_end = True

    def _continue_down(self, facts: _Facts[R], following: _Next) -> None:
        """Go on below a page that brought new rows."""
        edge_ms, before_ms = self._edge(), self._before_ms
        self._idle = 0
        self._pages_here += not facts.goes_down
        if self._pages_here < MAX_PAGES_AT_ONE_TIMESTAMP:
            following.before_ms = edge_ms + 1
            following.expected = facts.awaited or (facts.times.boundary(edge_ms) if facts.is_proven else None)
        else:
            following.before_ms = edge_ms if before_ms is None or before_ms > edge_ms else edge_ms - 1
            following.overflow = Overflow(following.before_ms, edge_ms)

    def _decide_repeated(self, facts: _Facts[R], following: _Next) -> None:
        """Decide what follows a page that brought nothing new."""
        edge_ms, before_ms = self._edge(), self._before_ms
        page, times, may_hide_rows = facts.page, facts.times, facts.page.may_hide_rows
        if may_hide_rows and times.above > len(times.timed):
            raise PermanentError(f"{self._stream}: {BEFORE_IGNORED}")
        if lower := [at for at, _ in times.timed if at < edge_ms]:
            # Not in order: where the next row down is older for the API as well, nothing of the edge is hidden.
            self._idle = 0
            following.before_ms, following.expected = max(lower) + 1, times.boundary(max(lower))
        elif before_ms is None or before_ms > edge_ms:
            self._idle += 1
            older = times.untimed_after(page, edge_ms)
            if not older and may_hide_rows and self._idle < (TIE_ATTEMPTS if page.full else SHORT_ATTEMPTS):
                following.before_ms, following.expected = edge_ms + 1, facts.awaited
                return
            self._idle, following.before_ms = 0, edge_ms
            if may_hide_rows and older:
                self._suspected = Overflow(edge_ms, edge_ms), older
            elif may_hide_rows:
                following.overflow = Overflow(edge_ms, edge_ms)
        elif may_hide_rows:
            # `before` includes its own timestamp, so this has to go below it. Microseconds behind the millisecond that
            # is skipped are then out of reach too.
            following.before_ms = edge_ms - 1
            if self._suspected is not None:
                self._suspected = Overflow(edge_ms - 1, edge_ms), self._suspected[1]
            else:
                following.overflow = Overflow(edge_ms - 1, edge_ms)
        else:
            following.is_at_end = True  # nothing new twice

    def _edge(self) -> int:
        assert self.edge_ms is not None  # noqa: S101 - set by the first page that has a time
        return self.edge_ms

    def _build_result(
        self, page: Page[R], times: PageTimes, overflow: Overflow | None, *, is_in_order: bool = True
    ) -> PageResult[R]:
        outliers = times.find_outliers(page, self.edge_ms)
        is_in_order = is_in_order and times.is_in_order
        newest_ms, is_last = times.newest_ms(page), self.is_over
        return PageResult(page, self._covered_from_ms, newest_ms, overflow, is_last, is_in_order, outliers)

    def _try_another(self, page: Page[R], failed: Boundary) -> PageResult[R]:
        """Ask on from another boundary of the page before this one: the row that the last was taken from is not where
        its time says. Where no boundary is left, ask for that page once more: all of its rows may have moved.
        """
        last = self._last
        assert last is not None  # noqa: S101 - set with the boundary
        if self._others is None:
            self._others = self._find_boundaries(failed, last)
        self._misled.add((failed.field, failed.at_ms))
        self._covered_from_ms = None if self._proven_ms is None else self._proven_ms + 1
        if self._others:
            self._expected = self._others.pop(0)
            self.edge_ms, self._before_ms = self._expected.at_ms, self._expected.at_ms + 1
        else:
            self._unproven_pages += 1
            if self._unproven_pages > MAX_UNPROVEN_PAGES:
                raise PermanentError(
                    f"{self._stream}: rows are not where their times say, page after page: the API pages by a time "
                    "that it does not show"
                )
            self._asked_again = frozenset(row.key for row in last.page.rows)
            self._expected, self.edge_ms, self._before_ms = None, self._proven_ms, last.before_ms
            self._misled.clear()
        return self._build_result(page, self._read_times(CURSOR, page, last.before_ms), None, is_in_order=False)

    def _find_boundaries(self, failed: Boundary, last: _Asked[R]) -> list[Boundary]:
        """Find other boundaries of a page, which are newer: by another field that the page is in order of, then rows
        further up, and further with each.
        """
        fields = [field for field in (CURSOR, *OTHER_FIELDS) if field != last.times.field]
        others = [self._read_times(field, last.page, last.before_ms) for field in fields]
        boundaries = [
            times.boundary(times.in_order[-1])
            for times in others
            if times.can_be_order and times.in_order[-1] > failed.at_ms
        ]
        for times in [last.times] if last.times.field == CURSOR else [last.times, others[0]]:
            newer = sorted({at for at in times.trusted_ms if at > failed.at_ms or times is not last.times})
            places = {2**exponent - 1 for exponent in range(len(newer).bit_length())} | {len(newer) - 1}
            boundaries += [times.boundary(newer[place]) for place in sorted(places) if newer]
        return boundaries

    def _find_order(self, page: Page[R]) -> PageTimes:
        """Find the times that the page is in order of: those of the field that was right until now, if it can be."""
        times = self._read_times(self._field, page, self._before_ms)
        if times.is_mostly_in_order and not times.is_one_timestamp:
            return times
        fields = (field for field in (CURSOR, *OTHER_FIELDS) if field != self._field)
        others = (self._read_times(field, page, self._before_ms) for field in fields)
        return next((other for other in others if other.can_be_order), times)

    def _read_times(self, field: str, page: Page[R], before_ms: int | None) -> PageTimes:
        return PageTimes.from_page(page, field, before_ms, {at for name, at in self._misled if name == field})

    def _find_sure_ms(self, page: Page[R], times: PageTimes) -> int | None:
        """Find the time down to which the pages until now leave nothing out; None while that cannot be said. The API
        has shown it, or the page is in order.
        """
        sure_ms = times.sure_ms(page) if times.field == self._field else None
        return min((at for at in (sure_ms, self._proven_ms) if at is not None), default=None)

    def _confirm_overflow(self, times: PageTimes, keys: set[str]) -> Overflow | None:
        """Return a suspected tie overflow once a page below it comes without the rows that came last before."""
        if self._suspected is None:
            return None
        overflow, older = self._suspected
        if overflow.to_ms in times.all_ms:
            return None
        self._suspected = None
        return None if keys & older else overflow

    def _note_untimed(self, page: Page[R], times: PageTimes, *, brings_timed: bool) -> None:
        """Rows without a time at the end of a page may be followed by others, which `before` may leave out; but not
        where rows with a time follow.
        """
        if None in times.all_ms:
            self._may_hide_untimed = page.may_hide_rows and (times.all_ms[-1] is None or not times.is_in_order)
        elif brings_timed:
            self._may_hide_untimed = False


def paginate_interval(
    fetch: Callable[[str | None], Page[R]], *, lo_ms: int, before_ms: int | None, stream: str
) -> Iterator[PageResult[R]]:
    """Read an interval and yield the result of each page.

    `fetch` requests the page before an ISO 8601 timestamp. Raises what `fetch` and `Paginator.advance` raise.
    """
    paginator: Paginator[R] = Paginator(lo_ms=lo_ms, before_ms=before_ms, stream=stream)
    while not paginator.is_over:
        yield paginator.advance(fetch(paginator.before))


def cursor_ms(row: Row) -> int | None:
    """Return the time that a row is ordered by, in milliseconds since 1970, rounded down."""
    return read_time_ms(row, CURSOR)
