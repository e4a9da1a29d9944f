"""Timestamps as senders write them: ISO 8601, an HTTP date, or a number since 1970 in one of four units."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A number below the first is seconds, below the next milliseconds, then microseconds, then nanoseconds. As seconds
# each ends in the year 5138.
MICROSECONDS_PER_UNIT = ((1e11, 1e6), (1e14, 1e3), (1e17, 1.0), (1e20, 1e-3))
_NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{1,9})?")


def parse_time(value: Any) -> datetime | None:
    """Return the timestamp in UTC that a text or a number stands for, a text without a zone taken as UTC.

    Null for anything else, and for what many languages write for "never": 1970-01-01 and what is before it.
    """
    try:
        at = _parsed(value.strip()) if isinstance(value, str) else _since_1970(value)
        if at is None:
            return None
        at = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError, TypeError):
        return None
    return at if at > EPOCH else None


def _parsed(text: str) -> datetime | None:
    if _NUMBER.fullmatch(text):
        return _since_1970(float(text))
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return parsedate_to_datetime(text)


def _since_1970(number: Any) -> datetime | None:
    if not isinstance(number, int | float) or isinstance(number, bool) or number <= 0:
        return None
    microseconds = next((per_unit for below, per_unit in MICROSECONDS_PER_UNIT if number < below), None)
    return None if microseconds is None else EPOCH + timedelta(microseconds=number * microseconds)
