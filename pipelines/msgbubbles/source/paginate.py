"""Page through a list, newest first, without losing a row.

The API pages by `before`, a timestamp, and shows timestamps in milliseconds. Rows that share a millisecond can straddle
two pages, `before` may exclude or include its own timestamp, and the API may order by hidden microseconds. So the next
`before` is the oldest timestamp of the page **plus one millisecond**: the rows of that timestamp are requested again,
and repeats are dropped by key.

That also shows whether the timestamp can be trusted. If the next page has the row that the boundary was taken from,
everything newer was on earlier pages. If not, the boundary was an outlier (a `created_at` in 2001 on a page ordered by
`sent_at`), and a newer one of the same page is tried, or another field. Outliers are loaded like other rows.

If more rows share a timestamp than fit a page, some cannot be reached. When a full page brings nothing new, the
paginator skips the timestamp and reports it (`Overflow`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple

from msgbubbles.errors import PermanentError
from msgbubbles.models import Page, R, Row
from msgbubbles.times import BEGINNING_MS, DAY_MS, format_ms, to_epoch_ms

from .page_times import CURSOR, OTHER_FIELDS, Boundary, PageTimes, read_time_ms

# How often a page that brings nothing new is requested: an API with an unstable order among ties shows other rows.
TIE_ATTEMPTS = 3
# A page that is short for no reason is likely to be longer the next time.
SHORT_ATTEMPTS = 10
# Pages in a row with new rows that do not reach further down, before the timestamp is skipped: an API that keeps
# inventing rows at one timestamp would never end. A random order among ties shows some 3,000 rows by then.
MAX_PAGES_AT_ONE_TIMESTAMP = 200
# Pages without a proven boundary before the paginator gives up.
MAX_UNPROVEN_PAGES = 20
BEFORE_IGNORED = "the API answered with rows that are newer than the `before` it was given"


class Overflow(NamedTuple):
    """A tie overflow: some rows in [from, to] may be out of reach; null for rows without a timestamp."""

    from_ms: int | None
    to_ms: int | None


@dataclass(frozen=True)
class PageResult(Generic[R]):
    """The part of the interval that one page covers.

    Attributes:
        covered_from_ms: Everything from this time on has been read; null while unknown. The last page may reach
            below the interval; it is `BEGINNING_MS` at the end of the list.
        newest_ms: The newest time on the page that is not in the API's future; null without one.
        is_in_order: Whether the rows are where their times say, newest first.
        outliers: The keys of the rows that are not.
    """

    page: Page[R]
    covered_from_ms: int | None
    newest_ms: int | None
    overflow: Overflow | None
    is_in_order: bool = True
    outliers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Previous(Generic[R]):
    """The page that the boundary was taken from, and the `before` of its request."""

    page: Page[R]
    times: PageTimes
    before_ms: int | None


@dataclass(frozen=True)
class _Facts(Generic[R]):
    """The facts that decide where to continue below a page.

    Attributes:
        awaited: The boundary that is not proven yet.
        lowest_ms: The oldest trusted time of the page.
        brings_new: Whether it has rows that earlier pages did not show.
        goes_down: Whether it reaches further down than they do.
        is_proven: Whether its times do not mislead.
        sure_ms: The time down to which nothing is left out.
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
    """The next request after a page: its `before`, the boundary it has to prove, or the end."""

    before_ms: int | None
    overflow: Overflow | None
    expected: Boundary | None = None
    is_at_end: bool = False
    is_last: bool = False


class Paginator(Generic[R]):
    """Reads every row from `before_ms` (null: the newest) down to `lo_ms`.

    Until `is_over`, request the page before `before` and pass it to `advance`. Pages may include rows outside of the
    interval. Raise `lo_ms` meanwhile if another worker reads what is below.
    """

    def __init__(self, *, lo_ms: int, before_ms: int | None) -> None:
        self.lo_ms = lo_ms
        self.is_over = False
        self.edge_ms: int | None = None  # the boundary of what was read
        self._before_ms = before_ms
        self._begins_at_newest = before_ms is None
        self._field = CURSOR
        self._recent: set[str] = set()  # keys of the pages since `edge_ms` last went down
        self._idle = 0  # pages in a row that brought nothing new
        self._pages_here = 0  # pages in a row that brought new rows, but none further down
        self._confirmed_empty = False
        self._covered_from_ms: int | None = None
        # The boundary that the next page has to prove, and the newest that was proven.
        self._expected: Boundary | None = None
        self._proven_ms: int | None = None
        # The page that the boundary was taken from, and its other possible boundaries.
        self._previous: _Previous[R] | None = None
        self._others: list[Boundary] | None = None
        self._misleading: set[tuple[str, int]] = set()
        self._requested_again: frozenset[str] = frozenset()
        self._unproven_pages = 0
        self._ids_change = False
        # A tie overflow, unless one of these rows turns out to come after the tied ones.
        self._suspected: tuple[Overflow, frozenset[str]] | None = None
        self._may_hide_untimed = False

    @property
    def before(self) -> str | None:
        """The ISO 8601 timestamp to request."""
        return None if self._before_ms is None else format_ms(self._before_ms)

    def advance(self, page: Page[R]) -> PageResult[R]:
        """Take the requested page, and move `before`. Raises `PermanentError` if the API's paging is broken."""
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
            self._previous, self._others = _Previous(page, times, self._before_ms), None
        self._before_ms, self._expected = following.before_ms, following.expected
        return self._build_result(page, times, following.overflow)

    def _examine(self, page: Page[R], times: PageTimes, awaited: Boundary | None) -> tuple[_Facts[R], Overflow | None]:
        """Compare a page with those before it. Return also the overflow that it proves."""
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
        is_proven = not self._requested_again & keys  # the same rows, requested again: their times mislead
        if self._requested_again and is_proven and self._previous is not None:
            self._ids_change = self._ids_change or sorted(times.timed_ms) == sorted(self._previous.times.timed_ms)
        if not is_proven and times.timed and page.may_hide_rows:
            overflow = Overflow(min(times.trusted_ms), max(times.trusted_ms))
        self._requested_again = frozenset()
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
            # An empty page with `has_more` is requested once more, then taken for the end.
            following.is_at_end = self._confirmed_empty or not page.has_more
            self._confirmed_empty = True
        elif sure_ms is not None and sure_ms < self.lo_ms:
            following.is_last = True
        elif page.has_more is False and not page.full and (times.is_in_order or (lowest_ms is None and times.above)):
            following.is_at_end = True
        elif lowest_ms is None or self.edge_ms is None:  # the first page with a time sets the edge
            self._decide_untimed(facts, following)
        elif facts.brings_new or facts.goes_down:
            self._continue_down(facts, following, self.edge_ms)
        else:
            self._decide_repeated(facts, following, self.edge_ms)

    def _decide_untimed(self, facts: _Facts[R], following: _Next) -> None:
        """Decide what follows a page without a usable time."""
        page, above = facts.page, facts.times.above
        is_short = not page.full and self._idle < SHORT_ATTEMPTS
        if above and is_short:
            self._idle += 1
        elif above:
            raise PermanentError(BEFORE_IGNORED)
        elif None not in facts.times.all_ms:
            raise PermanentError("no row of a page could be read, so there is no timestamp to continue from")
        elif self._before_ms is None:
            # This API lists rows without a time first; the others follow.
            following.overflow = Overflow(None, None) if page.full else None
            following.before_ms = to_epoch_ms(page.server_at) + DAY_MS
        elif self.edge_ms is None and self._begins_at_newest:
            raise PermanentError("a page of rows without a timestamp hides the others")
        elif self.edge_ms is None and is_short:
            self._idle += 1
        elif facts.brings_new and page.may_hide_rows and self._pages_here < MAX_PAGES_AT_ONE_TIMESTAMP:
            self._pages_here += 1
        else:
            # This API lists rows without a time last. If it lists them first on every page, they hide the others.
            following.overflow = Overflow(None, None) if page.may_hide_rows else following.overflow
            following.is_at_end = True

    def _continue_down(self, facts: _Facts[R], following: _Next, edge_ms: int) -> None:
        """Continue below a page that brought new rows."""
        before_ms = self._before_ms
        self._idle = 0
        self._pages_here += not facts.goes_down
        if self._pages_here < MAX_PAGES_AT_ONE_TIMESTAMP:
            following.before_ms = edge_ms + 1
            following.expected = facts.awaited or (facts.times.boundary(edge_ms) if facts.is_proven else None)
        else:
            following.before_ms = edge_ms if before_ms is None or before_ms > edge_ms else edge_ms - 1
            following.overflow = Overflow(following.before_ms, edge_ms)

    def _decide_repeated(self, facts: _Facts[R], following: _Next, edge_ms: int) -> None:
        """Decide what follows a page that brought nothing new."""
        before_ms = self._before_ms
        page, times, may_hide_rows = facts.page, facts.times, facts.page.may_hide_rows
        if may_hide_rows and times.above > len(times.timed):
            raise PermanentError(BEFORE_IGNORED)
        if lower := [at for at, _ in times.timed if at < edge_ms]:
            # Not in order. If the next older row is older for the API as well, no row at the edge is hidden.
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
            # `before` includes its own timestamp, so the next one has to be lower. Hidden microseconds of the skipped
            # millisecond are then out of reach, too.
            following.before_ms = edge_ms - 1
            if self._suspected is not None:
                self._suspected = Overflow(edge_ms - 1, edge_ms), self._suspected[1]
            else:
                following.overflow = Overflow(edge_ms - 1, edge_ms)
        else:
            following.is_at_end = True  # nothing new twice

    def _build_result(
        self, page: Page[R], times: PageTimes, overflow: Overflow | None, *, is_in_order: bool = True
    ) -> PageResult[R]:
        outliers = times.find_outliers(page, self.edge_ms)
        is_in_order = is_in_order and times.is_in_order
        return PageResult(page, self._covered_from_ms, times.newest_ms(page), overflow, is_in_order, outliers)

    def _try_another(self, page: Page[R], failed: Boundary) -> PageResult[R]:
        """Continue from another boundary of the previous page, because a row is not where its time says.

        If no boundary is left, request that page once more: all of its rows may have moved.
        """
        previous = self._previous
        assert previous is not None  # noqa: S101 - set with the boundary
        if self._others is None:
            self._others = self._find_boundaries(failed, previous)
        self._misleading.add((failed.field, failed.at_ms))
        self._covered_from_ms = None if self._proven_ms is None else self._proven_ms + 1
        if self._others:
            self._expected = self._others.pop(0)
            self.edge_ms, self._before_ms = self._expected.at_ms, self._expected.at_ms + 1
        else:
            self._unproven_pages += 1
            if self._unproven_pages > MAX_UNPROVEN_PAGES:
                raise PermanentError(
                    "page after page, rows are not where their times say: the API pages by a time that it does not show"
                )
            self._requested_again = frozenset(row.key for row in previous.page.rows)
            self._expected, self.edge_ms, self._before_ms = None, self._proven_ms, previous.before_ms
            self._misleading.clear()
        return self._build_result(page, self._read_times(CURSOR, page, previous.before_ms), None, is_in_order=False)

    def _find_boundaries(self, failed: Boundary, previous: _Previous[R]) -> list[Boundary]:
        """Find newer boundaries of a page: by another field that orders it, then rows further and further up."""
        others = self._read_other_times(previous.times.field, previous.page, previous.before_ms)
        boundaries = [
            times.boundary(times.in_order[-1])
            for times in others
            if times.can_be_order and times.in_order[-1] > failed.at_ms
        ]
        for times in [previous.times] if previous.times.field == CURSOR else [previous.times, others[0]]:
            newer = sorted({at for at in times.trusted_ms if at > failed.at_ms or times is not previous.times})
            indices = {2**exponent - 1 for exponent in range(len(newer).bit_length())} | {len(newer) - 1}
            boundaries += [times.boundary(newer[index]) for index in sorted(indices) if newer]
        return boundaries

    def _find_order(self, page: Page[R]) -> PageTimes:
        """Find the times that order the page: those of the current field, if possible."""
        times = self._read_times(self._field, page, self._before_ms)
        if times.is_mostly_in_order and not times.is_one_timestamp:
            return times
        others = self._read_other_times(self._field, page, self._before_ms)
        return next((other for other in others if other.can_be_order), times)

    def _read_times(self, field: str, page: Page[R], before_ms: int | None) -> PageTimes:
        return PageTimes.from_page(page, field, before_ms, {at for name, at in self._misleading if name == field})

    def _read_other_times(self, field: str, page: Page[R], before_ms: int | None) -> list[PageTimes]:
        return [self._read_times(other, page, before_ms) for other in (CURSOR, *OTHER_FIELDS) if other != field]

    def _find_sure_ms(self, page: Page[R], times: PageTimes) -> int | None:
        """Find the time down to which nothing is left out, proven by the API or by the order; null while unknown."""
        sure_ms = times.sure_ms(page) if times.field == self._field else None
        return min((at for at in (sure_ms, self._proven_ms) if at is not None), default=None)

    def _confirm_overflow(self, times: PageTimes, keys: set[str]) -> Overflow | None:
        """Return the suspected overflow, if the page is below it and lacks the rows that came last before."""
        if self._suspected is None:
            return None
        overflow, older = self._suspected
        if overflow.to_ms in times.all_ms:
            return None
        self._suspected = None
        return None if keys & older else overflow

    def _note_untimed(self, page: Page[R], times: PageTimes, *, brings_timed: bool) -> None:
        """Record whether rows without a time may be hidden: `before` may exclude others that follow a page's last row.

        There are none if rows with a time follow.
        """
        if None in times.all_ms:
            self._may_hide_untimed = page.may_hide_rows and (times.all_ms[-1] is None or not times.is_in_order)
        elif brings_timed:
            self._may_hide_untimed = False


def paginate_interval(
    fetch: Callable[[str | None], Page[R]], *, lo_ms: int, before_ms: int | None
) -> Iterator[PageResult[R]]:
    """Read an interval and yield the result of each page. `fetch` requests the page before an ISO 8601 timestamp."""
    paginator: Paginator[R] = Paginator(lo_ms=lo_ms, before_ms=before_ms)
    while not paginator.is_over:
        yield paginator.advance(fetch(paginator.before))


def cursor_ms(row: Row) -> int | None:
    """Return the cursor time of a row in milliseconds since 1970, rounded down."""
    return read_time_ms(row, CURSOR)
