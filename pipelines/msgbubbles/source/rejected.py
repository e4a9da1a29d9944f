"""Read intervals of a list again whose rows could not be read: an answer may have been garbled once.

Each interval is read with the next runs at first, then after growing pauses, and given up after `MAX_TRIES`. A run
reads a few of them, one or two pages each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from .state import ListState, RejectedInterval, is_waiting

INTERVALS_A_RUN = 10
MAX_INTERVALS = 100
MAX_TRIES = 20


class RejectedIntervals:
    """The intervals of one list with rejected rows, in its state."""

    def __init__(self, state: ListState) -> None:
        self._state = state

    @property
    def hashes(self) -> set[str]:
        """The hashes of all rejected rows that may be read again."""
        return {row_hash for entry in self._state.rejected for row_hash in entry.hashes}

    def add(self, lo_ms: int, hi_ms: int, hashes: Iterable[str], now_ms: int, chat_id: str | None = None) -> None:
        """Record that rows of an interval were rejected, unless they are known."""
        if new := {*hashes} - self.hashes:
            entries = [*self._state.rejected, RejectedInterval(lo_ms, hi_ms, now_ms, 0, sorted(new), chat_id)]
            self._state.rejected = entries[-MAX_INTERVALS:]

    def list_due(self, now_ms: int) -> Iterator[RejectedInterval]:
        """Return the intervals that a run should read again."""
        due = [entry for entry in self._state.rejected if not is_waiting(entry.tries, entry.last_tried_ms, now_ms)]
        return iter(due[:INTERVALS_A_RUN])

    def finish(self, entry: RejectedInterval, rejected: set[str], now_ms: int) -> set[str]:
        """Record which rows of an interval were rejected again, and return those that were not, if none was."""
        self._state.rejected = [other for other in self._state.rejected if other != entry]
        if not rejected:
            return {*entry.hashes}
        again = msgspec.structs.replace(
            entry, last_tried_ms=now_ms, tries=entry.tries + 1, hashes=sorted({*entry.hashes, *rejected})
        )
        if again.tries < MAX_TRIES:
            self._state.rejected.append(again)
        return set()
