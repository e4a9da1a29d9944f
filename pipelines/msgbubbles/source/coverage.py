"""Which intervals of time have been read, and when: the answer to what has to be read next.

Coverage of a stream says: *every row whose cursor time lay here, then, has been loaded*. It is kept in the state of the
dlt resource, so it commits with the rows it speaks of. Times are whole milliseconds since 1970; intervals include their
first millisecond and exclude their last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from msgbubbles.times import DAY_MS, HOUR_MS

# When something was read is kept the more coarsely the longer ago it was: (up to this age, to this grain). Rounding
# is down, so nothing ever looks fresher than it is, and a year of runs every five minutes is a few hundred intervals.
READ_AT_GRAINS = ((6 * HOUR_MS, 10 * 60 * 1000), (7 * DAY_MS, HOUR_MS), (31 * DAY_MS, DAY_MS))
OLDEST_GRAIN_MS = 7 * DAY_MS

CoveredInterval = tuple[int, int, int]


class Coverage:
    """A map of intervals to when they were read: `intervals` are (from, to, read at), oldest first, without overlap."""

    def __init__(self, intervals: Iterable[CoveredInterval] = ()) -> None:
        self.intervals: list[CoveredInterval] = []
        for lo_ms, hi_ms, read_ms in intervals:
            self.add(lo_ms, hi_ms, read_ms)

    @property
    def newest_ms(self) -> int | None:
        """Return the newest time that was read."""
        return self.intervals[-1][1] - 1 if self.intervals else None

    def add(self, lo_ms: int, hi_ms: int, read_ms: int) -> None:
        """Record that everything from `lo_ms` to before `hi_ms` was read at `read_ms`."""
        if lo_ms < hi_ms:
            before = [(lo, min(hi, lo_ms), read) for lo, hi, read in self.intervals if lo < lo_ms]
            after = [(max(lo, hi_ms), hi, read) for lo, hi, read in self.intervals if hi > hi_ms]
            self.intervals = _join([*before, (lo_ms, hi_ms, read_ms), *after])

    def forget_from(self, lo_ms: int) -> None:
        """Forget what begins at `lo_ms`, so that it is read again."""
        self.intervals = [(lo, min(hi, lo_ms), read) for lo, hi, read in self.intervals if lo < lo_ms]

    def without(self, lo_ms: int, hi_ms: int) -> Coverage:
        """Return the same but for what lies from `lo_ms` to before `hi_ms`."""
        rest = Coverage()
        for lo, hi, read in self.intervals:
            rest.add(lo, min(hi, lo_ms), read)
            rest.add(max(lo, hi_ms), hi, read)
        return rest

    def forget_readings_after(self, latest_ms: int) -> None:
        """Count what was read later than `latest_ms` as read as long ago as can be, so that it is soon read again."""
        self.intervals = _join([(lo, hi, read if read <= latest_ms else 0) for lo, hi, read in self.intervals])

    def gaps(self, lo_ms: int) -> list[tuple[int, int]]:
        """Return the intervals from `lo_ms` to the newest time read that were never read, newest first."""
        found = []
        for lo, hi, _ in self.intervals:
            if lo > lo_ms:
                found.append((lo_ms, lo))
            lo_ms = max(lo_ms, hi)
        return found[::-1]

    def complete_to(self, lo_ms: int) -> int | None:
        """Return up to where nothing is missing since `lo_ms`; None when not even that was read."""
        end_ms = lo_ms
        for lo, hi, _ in self.intervals:
            if lo <= end_ms < hi:
                end_ms = hi
        return end_ms if end_ms > lo_ms else None

    @property
    def newest_interval(self) -> tuple[int, int] | None:
        """Return the interval without a gap that ends at the newest time read."""
        if not self.intervals:
            return None
        lo_ms, hi_ms, _ = self.intervals[-1]
        for lo, hi, _ in reversed(self.intervals):
            lo_ms = lo if hi >= lo_ms else lo_ms
        return lo_ms, hi_ms

    def compact(self, now_ms: int) -> Coverage:
        """Return the same intervals, with the times of reading kept more coarsely the older they are."""
        compact = Coverage()
        compact.intervals = _join([(lo, hi, _round_down(read, now_ms - read)) for lo, hi, read in self.intervals])
        return compact


def _join(intervals: list[CoveredInterval]) -> list[CoveredInterval]:
    """Join neighbours that were read at the same time."""
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
    """A interval to read: from `lo_ms` to before `hi_ms`, or to the newest row where that is None."""

    kind: Literal["incremental", "backfill", "refresh"]
    lo_ms: int
    hi_ms: int | None


@dataclass(frozen=True)
class Tier:
    """Rows that are at most `within_ms` old (None: of any age) are read again every `every_ms`."""

    every_ms: int
    within_ms: int | None = None


def incremental(coverage: Coverage, start_ms: int, lookback_ms: int) -> Task:
    """Plan what came since the last run. It begins `lookback_ms` before the newest time read, because a row can become
    visible later than its own time.
    """
    newest_ms = coverage.newest_ms
    return Task("incremental", start_ms if newest_ms is None else max(newest_ms - lookback_ms, start_ms), None)


def backfill(coverage: Coverage, start_ms: int) -> list[Task]:
    """Plan what was never read: the rest of a first run, or of one that was cut off. Newest first."""
    return [Task("backfill", lo_ms, hi_ms) for lo_ms, hi_ms in coverage.gaps(start_ms)]


def refresh(coverage: Coverage, tiers: Iterable[Tier], start_ms: int, now_ms: int) -> Task | None:
    """Plan what was read longest ago, of that which has to be read again by now; None when nothing has to.

    Neighbours that have come half of their way are read with it: reading many small intervals at once costs as
    many requests as there are rows, reading each alone costs one request each at least. But a refresh that
    cannot keep up begins exactly where it stopped, or the newest rows would be read again and again and the others
    never.
    """
    most_overdue, task = 0.0, None
    for tier in tiers:
        floor_ms = start_ms if tier.within_ms is None else max(start_ms, now_ms - tier.within_ms)
        intervals = [(max(lo, floor_ms), hi, now_ms - read) for lo, hi, read in coverage.intervals if hi > floor_ms]
        if not intervals:
            continue
        seed = max(range(len(intervals)), key=lambda number: (intervals[number][2], number))
        overdue = intervals[seed][2] / tier.every_ms
        if overdue < max(1.0, most_overdue):
            continue
        lo_ms, hi_ms, _ = intervals[seed]
        for lo, hi, age in reversed(intervals[:seed]):
            if hi != lo_ms or age < tier.every_ms / 2:
                break
            lo_ms = lo
        for lo, hi, age in intervals[seed + 1 :]:
            if lo != hi_ms or age < tier.every_ms / 2 or overdue >= 2:
                break
            hi_ms = hi
        most_overdue, task = overdue, Task("refresh", lo_ms, hi_ms)
    return task
