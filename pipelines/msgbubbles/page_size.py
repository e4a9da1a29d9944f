"""Choose how many rows to ask a list endpoint for: fewer while larger pages fail, then more again.

A page that fails is tried twice at its size, then with each further failure at half of it. What worked is remembered
for the pages that follow. They grow again one after another, so a short outage costs little; after a larger size has
failed it is tried again more and more seldom.
"""

from __future__ import annotations

import threading

from .errors import RateLimitedError, RetryableError, UnreachableError

# How many pages have to work before a larger size is tried: one at first, and so many times more each time that fails.
PAGES_BEFORE_GROWTH_FACTOR, MAX_PAGES_BEFORE_GROWTH = 4, 64


class PageSize:
    """The size of one endpoint's pages. Several threads may use it.

    `limit` is what is asked for at most, null while that is whatever is wanted.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self._lock = threading.Lock()
        self._proven = 0  # what has worked since `limit` last went down
        self._pages = 0
        self._pages_before_growth = 1

    def is_proven(self, limit: int) -> bool:
        """Return whether a page of this size has worked, or none has failed."""
        return self.limit is None or limit <= self._proven

    def restore(self, limit: int | None) -> None:
        """Forget what failed since it was `limit`."""
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
        """Record that a size has worked, where `wanted` rows were wanted."""
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
    """The attempts to get one page of at most `wanted` rows. `limit` is the size to ask for now."""

    def __init__(self, size: PageSize, wanted: int, max_attempts: int) -> None:
        self.limit = wanted if size.limit is None else min(size.limit, wanted)
        self._size = size
        self._wanted = wanted
        self._limit_before = size.limit
        # The last of several tries is for a single row, however few they are.
        self._divisor = max(round(wanted ** (1 / max(max_attempts - 2, 1))), 2)
        self._failures_allowed = 1 if max_attempts != 2 and size.is_proven(self.limit) else 0

    @property
    def is_reduced(self) -> bool:
        return self.limit < self._wanted

    def note_failure(self, error: RetryableError) -> None:
        """Make the next attempt smaller, unless the size cannot be the reason, or the fault may pass."""
        if isinstance(error, RateLimitedError | UnreachableError):
            return
        if self._failures_allowed:
            self._failures_allowed -= 1
        else:
            self.reduce()

    def reduce(self) -> None:
        """Make the next attempt smaller."""
        self.limit = self._size.reduce(self.limit, self._divisor)

    def enlarge(self) -> None:
        """Make the next attempt larger, although it may fail."""
        self.limit = min(2 * self.limit, self._wanted)
        self._failures_allowed = 0

    def give_up(self) -> None:
        """Forget the failures of this page: at every size the same, they say nothing about the size."""
        self._size.restore(self._limit_before)

    def note_answer(self) -> None:
        """Record that this size has worked."""
        self._size.note_answer(self.limit, self._wanted)
