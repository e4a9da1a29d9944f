"""Track which intervals of time have been read, and when, and plan what to read next.

Coverage of a stream states: *every row whose cursor time was in this interval, at that time, has been loaded*. It is
stored in the state of the dlt resource, so it commits together with the rows. Times are milliseconds since 1970;
intervals include their first millisecond and exclude their last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from msgbubbles.settings import RefreshRule
from msgbubbles.times import DAY_MS, HOUR_MS

# The older a time of reading, the more coarsely it is stored: (up to this age, to this grain). It is rounded down, so
# nothing looks fresher than it is. A year of runs every five minutes takes a few hundred intervals.
READ_AT_GRAINS = ((6 * HOUR_MS, 10 * 60 * 1000), (7 * DAY_MS, HOUR_MS), (31 * DAY_MS, DAY_MS))
OLDEST_GRAIN_MS = 7 * DAY_MS

# The end of an interval without one.
OPEN_END_MS = 2**53

CoveredInterval = tuple[int, int, int]


class Coverage:
    """Maps intervals to when they were read: `intervals` are (from, to, read at), oldest first, without overlap."""

    def __init__(self, intervals: Iterable[CoveredInterval] = ()) -> None:
        self.intervals: list[CoveredInterval] = []
        for lo_ms, hi_ms, read_ms in intervals:
            self.add(lo_ms, hi_ms, read_ms)

    @property
    def newest_ms(self) -> int | None:
        return self.intervals[-1][1] - 1 if self.intervals else None

    def add(self, lo_ms: int, hi_ms: int, read_ms: int) -> None:
        """Record that the interval was read at `read_ms`."""
        if lo_ms < hi_ms:
            before, after = self._list_around(lo_ms, hi_ms)
            self.intervals = _join([*before, (lo_ms, hi_ms, read_ms), *after])

    def _list_around(self, lo_ms: int, hi_ms: int) -> tuple[list[CoveredInterval], list[CoveredInterval]]:
        """Return what is covered before an interval, and after it."""
        before = [(lo, min(hi, lo_ms), read) for lo, hi, read in self.intervals if lo < lo_ms]
        after = [(max(lo, hi_ms), hi, read) for lo, hi, read in self.intervals if hi > hi_ms]
        return before, after

    def forget_from(self, lo_ms: int) -> None:
        """Remove everything from `lo_ms` on, so that it is read again."""
        self.intervals, _ = self._list_around(lo_ms, OPEN_END_MS)

    def without(self, lo_ms: int, hi_ms: int) -> Coverage:
        """Return a copy without this interval."""
        rest = Coverage()
        before, after = self._list_around(lo_ms, hi_ms)
        rest.intervals = [*before, *after]
        return rest

    def forget_readings_after(self, latest_ms: int) -> None:
        """Treat what was read after `latest_ms` as read long ago, so that it is soon read again."""
        self.intervals = _join([(lo, hi, read if read <= latest_ms else 0) for lo, hi, read in self.intervals])

    def gaps(self, lo_ms: int) -> list[tuple[int, int]]:
        """Return the intervals between `lo_ms` and the newest time read that were never read, newest first.

        These are the rest of a first run, or of one that was cut off.
        """
        gaps = []
        for lo, hi, _ in self.intervals:
            if lo > lo_ms:
                gaps.append((lo_ms, lo))
            lo_ms = max(lo_ms, hi)
        return gaps[::-1]

    def complete_to(self, lo_ms: int) -> int | None:
        """Return the end of the first gap-free interval that begins at `lo_ms`; null if `lo_ms` was not read."""
        end_ms = lo_ms
        for lo, hi, _ in self.intervals:
            if lo <= end_ms < hi:
                end_ms = hi
        return end_ms if end_ms > lo_ms else None

    @property
    def newest_interval(self) -> tuple[int, int] | None:
        """The gap-free interval that ends at the newest time read."""
        if not self.intervals:
            return None
        lo_ms, hi_ms, _ = self.intervals[-1]
        for lo, hi, _ in reversed(self.intervals):
            lo_ms = lo if hi >= lo_ms else lo_ms
        return lo_ms, hi_ms

    def compact(self, now_ms: int) -> Coverage:
        """Return a copy with older times of reading rounded down, so that neighbors merge."""
        compact = Coverage()
        compact.intervals = _join([(lo, hi, _round_down(read, now_ms - read)) for lo, hi, read in self.intervals])
        return compact


def _join(intervals: list[CoveredInterval]) -> list[CoveredInterval]:
    """Join neighbors that were read at the same time."""
    joined: list[CoveredInterval] = []
    for lo, hi, read in intervals:
        if joined and joined[-1][1:] == (lo, read):
            lo = joined.pop()[0]
        joined.append((lo, hi, read))
    return joined


def _round_down(read_ms: int, age_ms: int) -> int:
    grain_ms = next((grain for up_to, grain in READ_AT_GRAINS if age_ms <= up_to), OLDEST_GRAIN_MS)
    return read_ms - read_ms % grain_ms


@dataclass(frozen=True)
class Task:
    """An interval to read: from `lo_ms` to before `hi_ms`, or to the newest row where that is None."""

    kind: Literal["incremental", "backfill", "refresh"]
    lo_ms: int
    hi_ms: int | None


def plan_incremental(coverage: Coverage, start_ms: int, lookback_ms: int) -> Task:
    """Plan the rows since the last run.

    The task begins `lookback_ms` before the newest time read, because a row can become visible later than its own time.
    """
    newest_ms = coverage.newest_ms
    return Task("incremental", start_ms if newest_ms is None else max(newest_ms - lookback_ms, start_ms), None)


def plan_refresh(coverage: Coverage, rules: Iterable[RefreshRule], start_ms: int, now_ms: int) -> Task | None:
    """Plan the interval that is most overdue to be read again; null if none is due.

    Neighbors that are at least half due are included, because every separate interval costs a request or more. But a
    refresh that cannot keep up resumes exactly where it stopped: otherwise it would read the newest rows again and
    again, and never the others.
    """
    most_overdue, task = 0.0, None
    for rule in rules:
        floor_ms = start_ms if rule.within_ms is None else max(start_ms, now_ms - rule.within_ms)
        intervals = [(max(lo, floor_ms), hi, now_ms - read) for lo, hi, read in coverage.intervals if hi > floor_ms]
        if not intervals:
            continue
        seed = max(range(len(intervals)), key=lambda number: (intervals[number][2], number))
        overdue = intervals[seed][2] / rule.every_ms
        if overdue < max(1.0, most_overdue):
            continue
        lo_ms, hi_ms, _ = intervals[seed]
        for lo, hi, age in reversed(intervals[:seed]):
            if hi != lo_ms or age < rule.every_ms / 2:
                break
            lo_ms = lo
        for lo, hi, age in intervals[seed + 1 :]:
            if lo != hi_ms or age < rule.every_ms / 2 or overdue >= 2:
                break
            hi_ms = hi
        most_overdue, task = overdue, Task("refresh", lo_ms, hi_ms)
    return task
