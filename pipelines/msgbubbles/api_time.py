"""Read the clock of this machine, and estimate that of the API from the `Date` of its answers.

Coverage records times by the API's clock, so one answer with a wrong `Date` would prevent rows from being read again
until that date. A `Date` near the expected one is accepted at once, any other only when several answers in a row agree
on it: then the clock of this machine is wrong, or was set meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from .times import EPOCH

# How far a `Date` may be from the expected one to be accepted at once.
MAX_SURPRISE = timedelta(minutes=15)
# Two dates agree if their offsets from this machine's clock differ by less than this.
AGREEMENT = timedelta(minutes=1)
# Answers in a row that have to agree on an unexpected date: before any date was accepted, and after.
FIRST_ANSWERS, MORE_ANSWERS = 2, 10
# How long ages go on counting after an answer.
MAX_UNCONFIRMED = timedelta(days=1)


class ApiTime:
    """The API's clock. It is thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # How far the API's clock is ahead of this machine's.
        self._ahead = timedelta(0)
        self._answers_needed = FIRST_ANSWERS
        self._unexpected = timedelta(0)
        self._agreeing = 0

    def at(self, date: datetime | None, now: datetime) -> datetime:
        """Return the API's time when this machine's is `now`, given the `Date` of an answer (null without one; UTC)."""
        with self._lock:
            if date is None:
                return now + self._ahead
            ahead = date - now
            if abs(ahead - self._ahead) > MAX_SURPRISE and not self._is_agreed(ahead):
                return now + self._ahead
            self._ahead, self._answers_needed, self._agreeing = ahead, MORE_ANSWERS, 0
            return date

    def _is_agreed(self, ahead: timedelta) -> bool:
        is_same = self._agreeing > 0 and abs(ahead - self._unexpected) <= AGREEMENT
        self._agreeing = self._agreeing + 1 if is_same else 1
        self._unexpected = ahead
        return self._agreeing >= self._answers_needed


class Clock:
    """Wall time that never goes back, so that the later of two fetches of a row always has the later time.

    `wall` returns the time in UTC. `api` estimates the API's clock.
    """

    def __init__(self, wall: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.api = ApiTime()
        self._wall = wall
        self._last_at = datetime.min.replace(tzinfo=UTC)
        self._lock = threading.Lock()
        # How far the latest `Date` is ahead of this machine's clock; null before one.
        self._ahead: timedelta | None = None
        self._answered_at: datetime | None = None

    def now(self) -> datetime:
        with self._lock:
            self._last_at = max(self._wall(), self._last_at + timedelta(microseconds=1))
            return self._last_at

    def note_date(self, date: datetime | None, now: datetime, *, is_success: bool) -> None:
        """Note the `Date` of an answer (null without one; UTC), received at `now`."""
        if date is not None:
            self._ahead = date - now
        if date is not None or is_success:  # an error without a date may be a proxy's
            self._answered_at = now

    @property
    def confirmed_at(self) -> datetime | None:
        """When the API last answered, by this machine's clock or by the API's, whichever is earlier; null before that.

        What is removed for its age is old by both, so that a wrong clock removes nothing.
        """
        return None if self._answered_at is None else self._by_both(self._answered_at)

    def ages_from(self) -> datetime:
        """Return the time that ages count from: see `confirmed_at` and `limit_unconfirmed`."""
        return limit_unconfirmed(self._by_both(self._wall()), self.confirmed_at)

    def _by_both(self, at: datetime) -> datetime:
        return at + min(self._ahead or timedelta(0), timedelta(0))


def limit_unconfirmed(now: datetime, confirmed_at: datetime | None) -> datetime:
    """Return `now`, but at most a day after `confirmed_at`. If that is null, return 1970: nothing is old."""
    return EPOCH if confirmed_at is None else min(now, confirmed_at + MAX_UNCONFIRMED)
