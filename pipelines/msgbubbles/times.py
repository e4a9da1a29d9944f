"""Timestamps as APIs write them: which are none, and which no destination can hold."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Annotated, Any

import msgspec
from msgspec import Raw

# With a time zone; what is written without one takes the lenient path, and is UTC.
Timestamp = Annotated[datetime, msgspec.Meta(tz=True)]
# The type of a field that may have none.
TIME: Any = Timestamp | None

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Python, and with it every reader of a warehouse here, ends with the year 9999 and begins with the year 1. A year less
# at both ends is a valid time in every time zone.
FIRST, END = datetime(2, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
_ZERO_DAYS = frozenset({(1, 1, 1), (1970, 1, 1)})
# A zero time of MySQL, which is no date.
_NO_DATE = re.compile(r"0000-00-00(?:[T ][0:.]*)?(?:Z|[+-]00:?00)?", re.IGNORECASE)
_LEAP_SECOND = re.compile(r"(?<=:[0-5][0-9]:)60")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
# The zero time of Go and .NET, in seconds since 1970.
_ZERO_SECONDS = frozenset({0, -62_135_596_800, -62_135_596_800_000})
# How large numbers of seconds, milliseconds, microseconds and nanoseconds since 1970 are, from 1973 on.
_UNITS = ((10**8, 10**11, 1), (10**11, 10**14, 10**3), (10**14, 10**17, 10**6), (10**17, 10**20, 10**9))


def checked(at: datetime) -> datetime | None:
    """Return a time as it is; null for a zero time. Raises `ValueError` where no destination can hold it."""
    try:
        utc = at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except OverflowError:
        raise ValueError("out of range") from None
    if 1970 < utc.year < END.year:
        return at if at.tzinfo else utc
    if (utc.year, utc.month, utc.day) == (1, 1, 1) or utc == EPOCH or _is_zero(at):
        return None
    if not FIRST <= utc < END:
        raise ValueError("out of range")
    return at if at.tzinfo else utc


def _is_zero(at: datetime) -> bool:
    return (at.year, at.month, at.day) in _ZERO_DAYS and not (at.hour or at.minute or at.second or at.microsecond)


def read_time(value: Raw) -> datetime | None:
    """Read a timestamp in any spelling that has one meaning; null where it says "never".

    Understands RFC 3339, ISO 8601 (UTC where no zone is given), HTTP dates, and numbers of seconds to nanoseconds since
    1970. Raises `msgspec.DecodeError` for anything else, and for a time that no destination can hold.
    """
    try:
        return checked(msgspec.json.decode(value, type=datetime))
    except msgspec.ValidationError:
        written = msgspec.json.decode(value, type=str | int | float | None)
    except ValueError:
        raise msgspec.DecodeError("out of range") from None
    try:
        at = _parsed(written)
        return None if at is None else checked(at)
    except (ValueError, OverflowError, TypeError):
        raise msgspec.DecodeError("not a timestamp") from None


def _parsed(written: str | int | float | None) -> datetime | None:
    text = "" if written is None else str(written).strip()
    if not text or _NO_DATE.fullmatch(text):
        return None
    if _NUMBER.fullmatch(text) and not (isinstance(written, str) and len(text) == 8):
        return _since_1970(float(text) if "." in text else int(text))
    text = re.sub(r"\s*(?:UTC|GMT)$", "Z", text) if text[:1].isdigit() else text
    seconds = timedelta(seconds=1) if _LEAP_SECOND.search(text) else timedelta(0)
    text = _LEAP_SECOND.sub("59", text)
    try:
        return datetime.fromisoformat(text.upper()) + seconds
    except ValueError:
        return parsedate_to_datetime(text) + seconds


def _since_1970(number: float) -> datetime | None:
    if number in _ZERO_SECONDS:
        return None
    for least, end, per_second in _UNITS:
        if least <= number < end:
            return EPOCH + timedelta(microseconds=number * 1_000_000 // per_second)
    raise ValueError("neither seconds, milliseconds, microseconds nor nanoseconds since 1970")
