"""Estimate the API's clock from the `Date` of its answers.

Coverage records times by this clock, so one answer with a wrong `Date` would prevent rows from being read again until
that date. A `Date` near the expected one is accepted at once, any other only when several answers in a row agree on it:
then the clock of this machine is wrong, or was set meanwhile.
"""

from __future__ import annotations

import threading
from datetime import datetime, timedelta

# How far a `Date` may be from the expected one to be accepted at once.
MAX_SURPRISE = timedelta(minutes=15)
# Two dates agree if their offsets from this machine's clock differ by less than this.
AGREEMENT = timedelta(minutes=1)
# Answers in a row that have to agree on an unexpected date: before any date was accepted, and after.
FIRST_ANSWERS, MORE_ANSWERS = 2, 10


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
