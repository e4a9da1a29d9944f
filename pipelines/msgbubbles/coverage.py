"""Which stretches of time have been read, and when: the answer to what has to be read next.

Coverage of a stream says: *every row whose instant lay here, then, has been landed*. It is kept in the state of the
dlt resource, so it commits with the rows it speaks of. Instants are whole milliseconds since 1970; stretches include
their first instant and exclude their last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import portion

HOUR_MS = 3600 * 1000
DAY_MS = 24 * HOUR_MS
# When something was read is kept the more coarsely the longer ago it was: (up to this age, to this grain). Rounding
# is down, so nothing ever looks fresher than it is, and a year of runs every five minutes stays a few hundred pieces.
READ_AT_GRAINS = ((6 * HOUR_MS, 10 * 60 * 1000), (7 * DAY_MS, HOUR_MS), (31 * DAY_MS, DAY_MS))
OLDEST_GRAIN_MS = 7 * DAY_MS

Piece = tuple[int, int, int]


class Coverage:
    """A map of stretches to when they were read."""

    def __init__(self, pieces: Iterable[Piece] = ()) -> None:
        self._read_ms = portion.IntervalDict()
        for lo_ms, hi_ms, read_ms in pieces:
            self.add(lo_ms, hi_ms, read_ms)

    @property
    def pieces(self) -> list[Piece]:
        """(from, to, read at), oldest first."""
        return sorted(
            (atom.lower, atom.upper, read_ms) for stretch, read_ms in self._read_ms.items() for atom in stretch
        )

    @property
    def newest_ms(self) -> int | None:
        """The newest instant that was read."""
        domain = self._read_ms.domain()
        return None if domain.empty else domain.upper - 1

    def add(self, lo_ms: int, hi_ms: int, read_ms: int) -> None:
        """Everything from `lo_ms` to before `hi_ms` was read at `read_ms`."""
        if lo_ms < hi_ms:
            self._read_ms[portion.closedopen(lo_ms, hi_ms)] = read_ms

    def forget_from(self, lo_ms: int) -> None:
        """What begins at `lo_ms` has to be read again."""
        self._read_ms = self._read_ms[portion.open(-portion.inf, lo_ms)]

    def gaps(self, lo_ms: int) -> list[tuple[int, int]]:
        """The stretches from `lo_ms` to the newest instant read that were never read, newest first."""
        domain = self._read_ms.domain()
        if domain.empty or lo_ms >= domain.upper:
            return []
        missing = portion.closedopen(lo_ms, domain.upper) - domain
        return [(atom.lower, atom.upper) for atom in reversed(list(missing)) if not atom.empty]

    def complete_to(self, lo_ms: int) -> int | None:
        """Up to where nothing is missing since `lo_ms`; None when not even that was read."""
        for atom in self._read_ms.domain():
            if not atom.empty and atom.lower <= lo_ms < atom.upper:
                return int(atom.upper)
        return None

    def compacted(self, now_ms: int) -> Coverage:
        """The same stretches, with the times of reading kept more coarsely the older they are."""
        return Coverage((lo, hi, _rounded_down(read_ms, now_ms - read_ms)) for lo, hi, read_ms in self.pieces)


def _rounded_down(read_ms: int, age_ms: int) -> int:
    grain_ms = next((grain for up_to, grain in READ_AT_GRAINS if age_ms <= up_to), OLDEST_GRAIN_MS)
    return read_ms - read_ms % grain_ms


@dataclass(frozen=True)
class Task:
    """A stretch to read: from `lo_ms` to before `hi_ms`, or to the newest row where that is None."""

    kind: Literal["head", "gap"]
    lo_ms: int
    hi_ms: int | None


def head(coverage: Coverage, start_ms: int, settle_ms: int) -> Task:
    """What came since the last run. It begins `settle_ms` before the newest instant read, because a row can become
    visible later than its own instant."""
    newest_ms = coverage.newest_ms
    return Task("head", start_ms if newest_ms is None else max(newest_ms - settle_ms, start_ms), None)


def gaps(coverage: Coverage, start_ms: int) -> list[Task]:
    """What was never read: the rest of a first run, or of one that was cut off. Newest first."""
    return [Task("gap", lo_ms, hi_ms) for lo_ms, hi_ms in coverage.gaps(start_ms)]
