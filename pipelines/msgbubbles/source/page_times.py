"""Examine the times of a page's rows: which of them order the page, and how far down they can be trusted."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from msgbubbles.models import Page, Row
from msgbubbles.times import to_epoch_ms

# If this share of a page's rows is in order, the others count as outliers.
MOSTLY = 0.75
# Fewer rows can be in order by chance, or share a timestamp, whatever the API orders them by.
FEWEST_ROWS_IN_ORDER = 10
# Rows at the end of a page (a tenth, or up to five of a short one) are doubtful if the gap before them is this many
# times the span above it.
DOUBTFUL_SHARE, DOUBTFUL_ROWS, DOUBTFUL_GAP = 10, 5, 4
# The cursor time of a row (see `models`), and the fields that the API may order by instead.
CURSOR = ""
OTHER_FIELDS = ("sent_at", "updated_at", "created_at")
# The `Date` header has whole seconds, and servers cache it for another one or two.
CLOCK_TOLERANCE = timedelta(seconds=3)


def read_time_ms(row: Row, field: str) -> int | None:
    """Return one of a row's times in milliseconds since 1970, rounded down; null if the row has none."""
    at: datetime | None = row.cursor_at if field == CURSOR else getattr(row, field, None)
    return None if at is None else to_epoch_ms(at)


@dataclass(frozen=True)
class Boundary:
    """Rows at `at_ms` by `field`. One of them has to be on the page before the next millisecond."""

    field: str
    at_ms: int
    keys: frozenset[str]

    def is_on(self, page: Page[Any], *, by_time: bool) -> bool:
        """Return whether one of the rows is on a page; with `by_time`, or any other row of their time."""
        return any(
            row.key in self.keys or (by_time and read_time_ms(row, self.field) == self.at_ms) for row in page.rows
        )

    def may_follow(self, page: Page[Any]) -> bool:
        """Return whether the rows may be further down because rows of this timestamp, or newer ones, fill the page."""
        times_ms = [at for row in page.rows if (at := read_time_ms(row, self.field)) is not None]
        return bool(times_ms) and min(times_ms) >= self.at_ms and page.may_hide_rows


@dataclass(frozen=True)
class PageTimes:
    """One of the times of each row of a page, in the order of the page.

    Attributes:
        all_ms: One entry per row, null if the row has no such time.
        timed: Time and key of the usable rows: not newer than the requested `before`, nor at a misleading timestamp.
        in_order: The times of the longest sequence that is in order.
        above: How many rows are newer than the requested `before`.
    """

    field: str
    all_ms: list[int | None]
    timed: list[tuple[int, str]]
    in_order: list[int]
    above: int

    @classmethod
    def from_page(cls, page: Page[Any], field: str, before_ms: int | None, misleading: Collection[int]) -> PageTimes:
        """Read the times of the page before `before_ms`. Timestamps in `misleading` are not trusted."""
        all_ms = [read_time_ms(row, field) for row in page.rows]
        pairs = [(at, row.key) for row, at in zip(page.rows, all_ms, strict=True) if at is not None]
        timed = pairs if before_ms is None else [pair for pair in pairs if pair[0] <= before_ms]
        above = len(pairs) - len(timed)
        if misleading:
            timed = [pair for pair in timed if pair[0] not in misleading] or timed
        return cls(field, all_ms, timed, _find_longest_order([at for at, _ in timed]), above)

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
    def can_be_order(self) -> bool:
        """Whether the API can have ordered the page by these times."""
        is_whole = len(self.timed) == len(self.all_ms) >= FEWEST_ROWS_IN_ORDER
        return is_whole and self.is_in_order and not self.is_one_timestamp

    @property
    def timed_ms(self) -> list[int]:
        return [at for at, _ in self.timed]

    @property
    def trusted_ms(self) -> list[int]:
        """The times to take a boundary from; all of them if the page is in no order."""
        return self.in_order if self.is_mostly_in_order else self.timed_ms

    def boundary(self, at_ms: int) -> Boundary:
        return Boundary(self.field, at_ms, frozenset(key for at, key in self.timed if at == at_ms))

    def newest_ms(self, page: Page[Any]) -> int | None:
        """Return the newest trusted time that is not in the future."""
        latest_ms = to_epoch_ms(page.server_at + CLOCK_TOLERANCE)
        return max((at for at in self.trusted_ms if at <= latest_ms), default=None)

    def sure_ms(self, page: Page[Any]) -> int | None:
        """Return the time down to which the page leaves nothing out; null if its order proves nothing.

        That is the last row, or the last but one if the last is far from the others, or was sent later than it says.
        """
        in_order = self.in_order
        outliers = len(self.timed) + self.above - len(in_order)
        if len(in_order) < 2 or outliers * DOUBTFUL_SHARE > len(self.timed):
            return None
        ages_ms = [in_order[0] - at for at in in_order]
        is_close = self.is_in_order and (ages_ms[-1] - ages_ms[-2]) * (len(ages_ms) - 2) <= 2 * ages_ms[-2]
        last = 1 if is_close and len(ages_ms) > 2 else 2
        sure_ms = in_order[-last]
        doubtful = max(len(ages_ms) // DOUBTFUL_SHARE, min(len(ages_ms) // 2, DOUBTFUL_ROWS), 2)
        for index in range(len(ages_ms) - doubtful, len(ages_ms) - 1):
            if index > 1 and ages_ms[index] > (DOUBTFUL_GAP + 1) * ages_ms[index - 1]:
                sure_ms, last = in_order[index - 1], 2
                break
        last_keys = {key for _, key in self.timed[-last:]}
        sent_ms = [at for row in page.rows if row.key in last_keys and (at := read_time_ms(row, "sent_at")) is not None]
        return max(sure_ms, *sent_ms, *(at for at, _ in self.timed[-last:]))

    def find_outliers(self, page: Page[Any], edge_ms: int | None) -> frozenset[str]:
        """Return the keys of the rows that are older than the boundary, if the page is not in order."""
        if self.is_in_order or edge_ms is None:
            return frozenset()
        times = zip(page.rows, self.all_ms, strict=True)
        return frozenset(row.key for row, at in times if at is not None and at < edge_ms)

    def untimed_after(self, page: Page[Any], at_ms: int) -> frozenset[str]:
        """Return the keys of the rows without a time that come after the last row of this timestamp."""
        indices = [index for index, at in enumerate(self.all_ms) if at == at_ms]
        first = indices[-1] + 1 if indices else len(page.rows)
        return frozenset(row.key for row, at in zip(page.rows[first:], self.all_ms[first:], strict=True) if at is None)


def _find_longest_order(times_ms: list[int]) -> list[int]:
    """Return the longest non-increasing subsequence; of several, the one that ends highest."""
    if all(newer >= older for newer, older in pairwise(times_ms)):
        return times_ms
    # By length, the index where the subsequence that ends highest does; and for each index the one before it.
    ends: list[int] = []
    lengths: list[int] = []
    before: list[int | None] = []
    for index, at_ms in enumerate(times_ms):
        length = bisect_right(lengths, -at_ms)
        before.append(ends[length - 1] if length else None)
        ends[length : length + 1] = [index]
        lengths[length : length + 1] = [-at_ms]
    longest: list[int] = []
    at: int | None = ends[-1]
    while at is not None:
        longest.append(times_ms[at])
        at = before[at]
    return longest[::-1]
