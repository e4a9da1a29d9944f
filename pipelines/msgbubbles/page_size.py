"""Choose how many rows to request from a list endpoint: fewer while larger pages fail, then more again.

A page that fails is tried twice at its size, then at half the size after each further failure. The next pages start
with the size that worked, and grow step by step, so a short outage costs little. A larger size that has failed is tried
again less and less often.
"""

from __future__ import annotations

import threading

from .errors import RateLimitedError, RetryableError, UnreachableError

# How many pages have to succeed before a larger size is tried: one at first, then this factor more after each failure.
PAGES_BEFORE_GROWTH_FACTOR, MAX_PAGES_BEFORE_GROWTH = 4, 64


class PageSize:
    """The size of one endpoint's pages. It is thread-safe. `limit` is the current maximum, null without one."""

    def __init__(self) -> None:
        self.limit: int | None = None
        self._lock = threading.Lock()
        self._proven = 0  # the size that has worked since `limit` last went down
        self._pages = 0
        self._pages_before_growth = 1

    def is_proven(self, limit: int) -> bool:
        """Return whether a page of this size has succeeded, or none has failed."""
        return self.limit is None or limit <= self._proven

    def restore(self, limit: int | None) -> None:
        """Return to a former `limit`, and forget later failures."""
        with self._lock:
            self.limit, self._proven = limit, limit or 0

    def reduce(self, failed: int, divisor: int) -> int:
        """Record that a size has failed, and return the one to try next."""
        with self._lock:
            self._pages = 0
            if self._proven and failed > self._proven:
                pages = self._pages_before_growth * PAGES_BEFORE_GROWTH_FACTOR
                self._pages_before_growth = min(pages, MAX_PAGES_BEFORE_GROWTH)
                self.limit = self._proven
            else:
                self.limit = max(min(failed // divisor, self.limit or failed), 1)
                self._proven = 0
            return self.limit

    def note_answer(self, limit: int, wanted: int) -> None:
        """Record that a page with `limit` of the `wanted` rows has succeeded."""
        with self._lock:
            if self.limit is None or limit < self.limit:
                return
            if limit >= wanted:
                self.limit, self._proven, self._pages_before_growth = None, 0, 1
                return
            self.limit = self._proven = limit
            self._pages += 1
            if self._pages >= self._pages_before_growth:
                self._pages = 0
                self.limit = min(2 * limit, wanted)


class PageRequest:
    """The attempts to read one page of at most `wanted` rows. `limit` is the size to request now."""

    def __init__(self, size: PageSize, wanted: int, max_attempts: int) -> None:
        self.limit = wanted if size.limit is None else min(size.limit, wanted)
        self._size = size
        self._wanted = wanted
        self._limit_before = size.limit
        # However few the attempts are, the last one requests a single row.
        self._divisor = max(round(wanted ** (1 / max(max_attempts - 2, 1))), 2)
        self._failures_allowed = 1 if max_attempts != 2 and size.is_proven(self.limit) else 0

    @property
    def is_reduced(self) -> bool:
        return self.limit < self._wanted

    def note_failure(self, error: RetryableError) -> None:
        """Make the next attempt smaller, unless the size cannot be the reason, or the fault may be temporary."""
        if isinstance(error, RateLimitedError | UnreachableError):
            return
        if self._failures_allowed:
            self._failures_allowed -= 1
        else:
            self.reduce()

    def reduce(self) -> None:
        self.limit = self._size.reduce(self.limit, self._divisor)

    def enlarge(self) -> None:
        """Make the next attempt larger, although it may fail."""
        self.limit = min(2 * self.limit, self._wanted)
        self._failures_allowed = 0

    def give_up(self) -> None:
        """Forget the failures of this page: it failed at every size, so the size is not the reason."""
        self._size.restore(self._limit_before)

    def note_answer(self) -> None:
        self._size.note_answer(self.limit, self._wanted)
