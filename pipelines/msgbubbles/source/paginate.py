"""Newest-first paging that loses no row.

The API pages by `before`, a timestamp, and shows timestamps in milliseconds. Rows that share a millisecond can straddle
the edge of a page, `before` may exclude or include its own timestamp, and there may be microseconds behind what is
shown. So the next `before` is the oldest timestamp of the page **plus one millisecond**: the rows of that timestamp are
asked for again, and known ones are recognized by their key.

That also shows whether the timestamp can be trusted. The row that the boundary was taken from has to be on the next
page; then the API, too, puts everything newer on the pages before. Where the row is missing, the boundary was an
outlier (a `created_at` in 2001 on a page ordered by `sent_at`), and a newer one of the same page is tried, or another
field. Such rows are loaded and move nothing.

More rows at one timestamp than fit a page cannot all be reached. When a full page brings nothing new, the walk steps
over the timestamp and reports it (`Overflow`); it never goes on in silence.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Generic

from msgbubbles.errors import PermanentError
from msgbubbles.models import Page, R, Row
from msgbubbles.times import BEGINNING_MS, DAY_MS, format_ms, to_epoch_ms

# How often the same question is asked when it brings nothing new: an API whose order among equals is not stable
# shows other rows of the instant each time.
TIE_ATTEMPTS = 3
# A page that is short for no reason is likely to be longer the next time.
SHORT_ATTEMPTS = 10
# Pages in a row that bring new rows and do not go further down, before a walk steps over the timestamp: an API that
# makes up rows at one timestamp would keep it for ever. A random order among equals shows some 3,000 rows within these.
MAX_PAGES_AT_ONE_TIMESTAMP = 200
# Pages of which no row was found again at its own time, before a walk gives up.
MAX_UNPROVEN_PAGES = 20
# This share of a page's rows has to be in order for the others to count as outliers.
MOSTLY = 0.75
# Fewer rows can be in order by chance, or share a timestamp, whatever the API orders them by.
FEWEST_ROWS_IN_ORDER = 10
# At most this share of a page, at its end, is taken for outliers when so many times the time between the other rows
# lies before it.
DOUBTFUL_SHARE, DOUBTFUL_GAP = 10, 4
# The time that a row is ordered by, as `models` says, and what the API may order by instead.
CURSOR = ""
OTHER_FIELDS = ("sent_at", "updated_at", "created_at")
BEFORE_IGNORED = "the API answered with rows that are newer than the `before` it was given"
# The API's clock is the `Date` header: whole seconds, and servers cache it for one more or two.
CLOCK_TOLERANCE = timedelta(seconds=3)


@dataclass(frozen=True)
class Overflow:
    """Rows of these instants (milliseconds, both ends included) may be out of reach. None: rows without an instant."""

    from_ms: int | None
    to_ms: int | None


@dataclass(frozen=True)
class PageResult(Generic[R]):
    """One page of a walk.

    `covered_from_ms`: every row from this instant up to the beginning of the walk has been read, or None while that
    cannot be said. The last page may reach further back than was asked for; it is `BEGINNING_MS` where the list has
    ended. `newest_ms`: the newest instant on the page that is not in the API's future, if any. `is_in_order`: whether
    the page is where its rows' times say, newest first; `outliers` are the keys of rows that are not.
    """

    page: Page[R]
    covered_from_ms: int | None
    newest_ms: int | None
    overflow: Overflow | None
    is_last: bool
    is_in_order: bool = True
    outliers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Boundary:
    """These rows are at `at_ms` by this field: one of them has to be on the page before the millisecond after."""

    field: str
    at_ms: int
    keys: frozenset[str]

    def is_on(self, page: Page[R], *, by_time: bool) -> bool:
        return any(row.key in self.keys or (by_time and _time_ms(row, self.field) == self.at_ms) for row in page.rows)

    def may_follow(self, page: Page[R]) -> bool:
        """Whether the rows may be further down: others of this timestamp, or of the next, take up the page."""
        found = [at for row in page.rows if (at := _time_ms(row, self.field)) is not None]
        return bool(found) and min(found) >= self.at_ms and (page.full or bool(page.has_more))


@dataclass(frozen=True)
class _Times:
    """The rows of a page by one of their times, newest first as the API sends them.

    `all_ms` holds one entry for each row, None where the row has no such time. `timed` are time and key of the rows
    that count: not newer than `before`, which are `above`, and not at a timestamp that misled before. `in_order` are
    the times of the most rows that are in order.
    """

    field: str
    all_ms: list[int | None]
    timed: list[tuple[int, str]]
    in_order: list[int]
    above: int

    @property
    def is_in_order(self) -> bool:
        return not self.above and len(self.in_order) == sum(at is not None for at in self.all_ms)

    @property
    def is_mostly_in_order(self) -> bool:
        return len(self.in_order) >= MOSTLY * len(self.timed)

    @property
    def is_one_timestamp(self) -> bool:
        return len(self.timed) >= FEWEST_ROWS_IN_ORDER and len({at for at, _ in self.timed}) == 1

    @property
    def timed_ms(self) -> list[int]:
        return [at for at, _ in self.timed]

    @property
    def trusted_ms(self) -> list[int]:
        """Times to take a boundary from: of a page in no order those of all rows."""
        return self.in_order if self.is_mostly_in_order else self.timed_ms

    def boundary(self, at_ms: int) -> _Boundary:
        return _Boundary(self.field, at_ms, frozenset(key for at, key in self.timed if at == at_ms))


class Paginator(Generic[R]):
    """Reads every row with an instant from `lo_ms` up to `before_ms` (None: from the newest), newest first: ask for the
    page before `before`, and hand it to `advance`, until `is_over`.

    Rows outside of that stretch that share a page with it come too. `lo_ms` may be raised meanwhile: somebody else
    reads what is below it.
    """

    def __init__(self, *, lo_ms: int, before_ms: int | None, stream: str) -> None:
        self.lo_ms = lo_ms
        self.is_over = False
        self.edge_ms: int | None = None  # the boundary of what was read
        self._before_ms = before_ms
        self._stream = stream
        self._is_of_all = before_ms is None
        self._field = CURSOR
        self._recent: set[str] = set()  # keys of the pages since the walk went further down
        self._idle = 0  # answers in a row that brought nothing new
        self._pages_here = 0  # answers in a row that brought new rows, and none further down
        self._confirmed_empty = False
        self._covered_from_ms: int | None = None
        # The boundary that the page that is asked for has to prove, and the newest that was proven.
        self._expected: _Boundary | None = None
        self._proven_ms: int | None = None
        # The page that the boundary is of, what it was asked with, and what else its boundary may be.
        self._last: tuple[Page[R], _Times, int | None] | None = None
        self._others: list[_Boundary] | None = None
        self._misled: set[tuple[str, int]] = set()
        self._asked_again: frozenset[str] = frozenset()
        self._unproven_pages = 0
        self._ids_change = False
        # A tie overflow, unless one of these rows turns out to come after the tied ones.
        self._suspected: tuple[Overflow, frozenset[str]] | None = None
        self._may_hide_untimed = False

    @property
    def before(self) -> str | None:
        """The ISO 8601 instant to ask for."""
        return None if self._before_ms is None else format_ms(self._before_ms)

    def advance(self, page: Page[R]) -> PageResult[R]:
        """What the page that was asked for means. Raises `PermanentError` when the API breaks its own paging."""
        awaited = self._expected
        if awaited is not None:
            if awaited.is_on(page, by_time=self._ids_change):
                self._proven_ms, self._field, self._unproven_pages = awaited.at_ms, awaited.field, 0
                self.edge_ms = awaited.at_ms
                awaited = None
            elif not awaited.may_follow(page):
                return self._try_another(page, awaited)
        before_ms, stream = self._before_ms, self._stream
        times = self._times_of(page)
        keys = {row.key for row in page.rows}
        lowest_ms = min(times.trusted_ms, default=None)
        without = times.all_ms.count(None)
        fresh_ms = [
            at
            for row, at in zip(page.rows, times.all_ms, strict=True)
            if row.key not in self._recent and (at is None or before_ms is None or at <= before_ms)
        ]
        is_fresh = bool(fresh_ms)
        goes_down = lowest_ms is not None and (self.edge_ms is None or lowest_ms < self.edge_ms)
        if goes_down:
            self.edge_ms, self._recent, self._pages_here = lowest_ms, set(), 0
        self._recent |= keys

        edge_ms = self.edge_ms
        may_hide_rows = page.full or bool(page.has_more)
        overflow = self._confirmed_overflow(times, keys)
        is_proven = not self._asked_again & keys  # asked a second time, the same rows: their times mislead
        if self._asked_again and is_proven and self._last is not None:
            self._ids_change = self._ids_change or sorted(times.timed_ms) == sorted(self._last[1].timed_ms)
        if not is_proven and times.timed:
            overflow = Overflow(min(times.trusted_ms), max(times.trusted_ms))
        self._asked_again = frozenset()
        self._note_untimed(page, times, brings_timed=fresh_ms.count(None) < len(fresh_ms))
        sure_ms = self._sure_ms(page, times)
        is_at_end = is_last = False
        next_ms, expected = before_ms, None
        if len(page) == 0:
            # An empty page that promises more is asked for once more, then believed to be the end.
            is_at_end = self._confirmed_empty or not page.has_more
            self._confirmed_empty = True
        elif sure_ms is not None and sure_ms < self.lo_ms:
            is_last = True
        elif page.has_more is False and not page.full and (times.is_in_order or (lowest_ms is None and times.above)):
            is_at_end = True
        elif lowest_ms is None and times.above and not page.full and self._idle < SHORT_ATTEMPTS:
            self._idle += 1
        elif lowest_ms is None and times.above:
            raise PermanentError(f"{stream}: {BEFORE_IGNORED}")
        elif lowest_ms is None and not without:
            raise PermanentError(f"{stream}: a whole page could not be read, so there is no instant to go on from")
        elif lowest_ms is None and before_ms is None:
            # Rows without an instant come first here; the others begin behind them.
            overflow = Overflow(None, None) if page.full else None
            next_ms = to_epoch_ms(page.server_at) + DAY_MS
        elif lowest_ms is None and edge_ms is None and self._is_of_all:
            raise PermanentError(f"{stream}: a page of rows without an instant hides the others")
        elif lowest_ms is None and edge_ms is None and not page.full and self._idle < SHORT_ATTEMPTS:
            self._idle += 1
        elif lowest_ms is None and is_fresh and may_hide_rows and self._pages_here < MAX_PAGES_AT_ONE_TIMESTAMP:
            self._pages_here += 1
        elif lowest_ms is None or edge_ms is None:
            # Rows without an instant come last here. Where they come first again, the others are behind them.
            overflow = Overflow(None, None) if may_hide_rows else overflow
            is_at_end = True
        elif is_fresh or goes_down:
            self._idle = 0
            self._pages_here += not goes_down
            if self._pages_here < MAX_PAGES_AT_ONE_TIMESTAMP:
                next_ms = edge_ms + 1
                expected = awaited or (times.boundary(edge_ms) if is_proven else None)
            else:
                next_ms = edge_ms if before_ms is None or before_ms > edge_ms else edge_ms - 1
                overflow = Overflow(next_ms, edge_ms)
        elif may_hide_rows and times.above > len(times.timed):
            raise PermanentError(f"{stream}: {BEFORE_IGNORED}")
        elif lower := [at for at, _ in times.timed if at < edge_ms]:
            # Not in order: where the next row down is older for the API as well, nothing of the edge is hidden.
            self._idle, next_ms, expected = 0, max(lower) + 1, times.boundary(max(lower))
        elif before_ms is None or before_ms > edge_ms:
            self._idle += 1
            attempts = TIE_ATTEMPTS if page.full else SHORT_ATTEMPTS
            older = self._untimed_after(page, times, edge_ms)
            if older or self._idle >= attempts or not may_hide_rows:
                self._idle = 0
                next_ms = edge_ms
                if may_hide_rows and older:
                    self._suspected = Overflow(edge_ms, edge_ms), older
                elif may_hide_rows:
                    overflow = Overflow(edge_ms, edge_ms)
            else:
                next_ms, expected = edge_ms + 1, awaited
        elif may_hide_rows:
            # `before` includes its instant, so this has to go below it. Microseconds behind the millisecond that is
            # skipped are then out of reach too.
            next_ms = edge_ms - 1
            if self._suspected is not None:
                self._suspected = Overflow(edge_ms - 1, edge_ms), self._suspected[1]
            else:
                overflow = Overflow(edge_ms - 1, edge_ms)
        else:
            is_at_end = True  # nothing new twice
        is_at_end = is_at_end or (next_ms is not None and next_ms < BEGINNING_MS)

        if is_at_end and self._may_hide_untimed:
            overflow = overflow or Overflow(None, None)
        if is_at_end:
            self._covered_from_ms = BEGINNING_MS
        elif not self._may_hide_untimed:
            self._covered_from_ms = None if sure_ms is None else sure_ms + 1
        self.is_over = is_at_end or is_last
        if expected is not awaited:
            self._last, self._others = (page, times, before_ms), None
        self._before_ms, self._expected = next_ms, expected
        return self._build_result(page, times, overflow)

    def _build_result(
        self, page: Page[R], times: _Times, overflow: Overflow | None, *, is_in_order: bool = True
    ) -> PageResult[R]:
        edge_ms = self.edge_ms
        outliers: frozenset[str] = frozenset()
        if not times.is_in_order:
            outliers = frozenset(
                row.key
                for row, at in zip(page.rows, times.all_ms, strict=True)
                if at is not None and edge_ms is not None and at < edge_ms
            )
        return PageResult(
            page,
            self._covered_from_ms,
            _newest_ms(page, times),
            overflow,
            self.is_over,
            is_in_order and times.is_in_order,
            outliers,
        )

    def _try_another(self, page: Page[R], failed: _Boundary) -> PageResult[R]:
        """Ask on from another boundary of the page before this one: the row that the last was taken from is not where
        its time says. Where no boundary is left, ask for that page once more: all of its rows may have moved."""
        assert self._last is not None  # noqa: S101 - set with the boundary
        last_page, last, before_ms = self._last
        if self._others is None:
            self._others = self._boundaries(failed, last_page, last, before_ms)
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
            self._asked_again = frozenset(row.key for row in last_page.rows)
            self._expected, self.edge_ms, self._before_ms = None, self._proven_ms, before_ms
            self._misled.clear()
        return self._build_result(page, self._times_by(CURSOR, page, before_ms), None, is_in_order=False)

    def _boundaries(self, failed: _Boundary, page: Page[R], times: _Times, before_ms: int | None) -> list[_Boundary]:
        """Other boundaries of a page, which are newer: by another field that the page is in order of, then rows further
        up, and further with each."""
        others = [self._times_by(field, page, before_ms) for field in (CURSOR, *OTHER_FIELDS) if field != times.field]
        found = [
            one.boundary(one.in_order[-1])
            for one in others
            if self._is_order(page, one) and one.in_order[-1] > failed.at_ms
        ]
        for one in [times] if times.field == CURSOR else [times, others[0]]:
            newer = sorted({at for at in one.trusted_ms if at > failed.at_ms or one is not times})
            places = {2**exponent - 1 for exponent in range(len(newer).bit_length())} | {len(newer) - 1}
            found += [one.boundary(newer[place]) for place in sorted(places) if newer]
        return found

    def _times_of(self, page: Page[R]) -> _Times:
        """The times that the page is in order of: those of the field that was right until now, if it can be."""
        before_ms = self._before_ms
        times = self._times_by(self._field, page, before_ms)
        if times.is_mostly_in_order and not times.is_one_timestamp:
            return times
        others = (self._times_by(field, page, before_ms) for field in (CURSOR, *OTHER_FIELDS) if field != self._field)
        return next((one for one in others if self._is_order(page, one)), times)

    def _is_order(self, page: Page[R], times: _Times) -> bool:
        """Whether the API can have ordered a page by these times."""
        return (
            len(times.timed) == len(page.rows) >= FEWEST_ROWS_IN_ORDER
            and times.is_in_order
            and not times.is_one_timestamp
        )

    def _times_by(self, field: str, page: Page[R], before_ms: int | None) -> _Times:
        all_ms, misled = [_time_ms(row, field) for row in page.rows], self._misled
        found = [(at, row.key) for row, at in zip(page.rows, all_ms, strict=True) if at is not None]
        timed = found if before_ms is None else [one for one in found if one[0] <= before_ms]
        above = len(found) - len(timed)
        if misled:
            timed = [one for one in timed if (field, one[0]) not in misled] or timed
        return _Times(field, all_ms, timed, _in_order([at for at, _ in timed]), above)

    def _sure_ms(self, page: Page[R], times: _Times) -> int | None:
        """Down to which timestamp the pages until now leave nothing out; None while that cannot be said. The API has
        shown it, or the page is in order: then it is the last row, or the last but one where that row is far from the
        others, or was sent later than it says."""
        proven_ms, count, in_order = self._proven_ms, len(times.timed), times.in_order
        outliers = count + times.above - len(in_order)
        if len(in_order) < 2 or times.field != self._field or outliers * DOUBTFUL_SHARE > count:
            return proven_ms
        ages_ms = [in_order[0] - at for at in in_order]
        is_close = times.is_in_order and (ages_ms[-1] - ages_ms[-2]) * (len(ages_ms) - 2) <= 2 * ages_ms[-2]
        last = 1 if is_close and len(ages_ms) > 2 else 2
        sure_ms = in_order[-last]
        for place in range(len(ages_ms) - max(len(ages_ms) // DOUBTFUL_SHARE, 2), len(ages_ms) - 1):
            if place > 1 and ages_ms[place] > (DOUBTFUL_GAP + 1) * ages_ms[place - 1]:
                sure_ms, last = in_order[place - 1], 2
                break
        last_keys = {key for _, key in times.timed[-last:]}
        sent_ms = [at for row in page.rows if row.key in last_keys and (at := _time_ms(row, "sent_at")) is not None]
        sure_ms = max(sure_ms, *sent_ms, *(at for at, _ in times.timed[-last:]))
        return sure_ms if proven_ms is None else min(sure_ms, proven_ms)

    def _confirmed_overflow(self, times: _Times, keys: set[str]) -> Overflow | None:
        """A tie overflow that was suspected, once a page below the timestamp is there without the rows that came last
        before."""
        if self._suspected is None:
            return None
        overflow, older = self._suspected
        if overflow.to_ms in times.all_ms:
            return None
        self._suspected = None
        return None if keys & older else overflow

    @staticmethod
    def _untimed_after(page: Page[R], times: _Times, edge_ms: int) -> frozenset[str]:
        """Keys of the rows without a time that come after those of the edge."""
        at_edge = [place for place, at in enumerate(times.all_ms) if at == edge_ms]
        first = at_edge[-1] + 1 if at_edge else len(page.rows)
        return frozenset(row.key for row in page.rows[first:] if _time_ms(row, times.field) is None)

    def _note_untimed(self, page: Page[R], times: _Times, *, brings_timed: bool) -> None:
        """Rows without a time at the end of a page may be followed by others, which `before` may leave out; but not
        where rows with a time follow."""
        if None in times.all_ms:
            may_hide = page.full or bool(page.has_more)
            self._may_hide_untimed = may_hide and (times.all_ms[-1] is None or not times.is_in_order)
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
    """The instant a row is ordered by, as it is shown: milliseconds since 1970, what is behind them cut off."""
    at = row.cursor_at
    return None if at is None else to_epoch_ms(at)


def _time_ms(row: Row, field: str) -> int | None:
    if field == CURSOR:
        return cursor_ms(row)
    at: datetime | None = getattr(row, field, None)
    return None if at is None else to_epoch_ms(at if at.tzinfo else at.replace(tzinfo=UTC))


def _in_order(times_ms: list[int]) -> list[int]:
    """The longest part of a list that does not rise; of several, the one that ends highest."""
    if all(newer >= older for newer, older in pairwise(times_ms)):
        return times_ms
    # By length, the place where the part that ends highest does, and before each place the one it goes on from.
    ends: list[int] = []
    lengths: list[int] = []
    before: list[int | None] = []
    for place, at_ms in enumerate(times_ms):
        length = bisect_right(lengths, -at_ms)
        before.append(ends[length - 1] if length else None)
        ends[length : length + 1] = [place]
        lengths[length : length + 1] = [-at_ms]
    found: list[int] = []
    at: int | None = ends[-1]
    while at is not None:
        found.append(times_ms[at])
        at = before[at]
    return found[::-1]


def _newest_ms(page: Page[R], times: _Times) -> int | None:
    # An instant in the future says nothing about what is still to come before it.
    latest_ms = to_epoch_ms(page.server_at + CLOCK_TOLERANCE)
    return max((at for at in times.trusted_ms if at <= latest_ms), default=None)
