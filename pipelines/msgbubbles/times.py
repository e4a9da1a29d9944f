"""Read timestamps in the spellings of APIs, and convert them to and from milliseconds since 1970."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Annotated, Any

import msgspec
from msgspec import Raw

# A timestamp without a time zone takes the lenient path, and is UTC.
Timestamp = Annotated[datetime, msgspec.Meta(tz=True)]
# The type of a timestamp field.
TIME: Any = Timestamp | None

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Python supports the years 1 to 9999. A year less at both ends is valid in every time zone.
FIRST, END = datetime(2, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
HOUR_MS = 3600 * 1000
DAY_MS = 24 * HOUR_MS
# The beginning of "everything": the first day that is a valid date in every time zone.
BEGINNING_MS = (datetime(1, 1, 2, tzinfo=UTC) - EPOCH) // timedelta(milliseconds=1)
LAST_MS = 250_000_000_000_000  # in the year 9892
_ZERO_DAYS = frozenset({(1, 1, 1), (1970, 1, 1)})
# The zero time of MySQL, which is not a date.
_NO_DATE = re.compile(r"0000-00-00(?:[T ][0:.]*)?(?:Z|[+-]00:?00)?", re.IGNORECASE)
_LEAP_SECOND = re.compile(r"(?<=:[0-5][0-9]:)60")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
# The zero time of Go and .NET, in seconds since 1970.
_ZERO_SECONDS = frozenset({0, -62_135_596_800, -62_135_596_800_000})
# The ranges of seconds, milliseconds, microseconds and nanoseconds since 1970, for times from 1973 on.
_UNITS = ((10**8, 10**11, 1), (10**11, 10**14, 10**3), (10**14, 10**17, 10**6), (10**17, 10**20, 10**9))


def to_epoch_ms(at: datetime) -> int:
    """Return milliseconds since 1970, rounded down. A timestamp without a time zone is UTC."""
    return to_epoch_us(at) // 1000


def to_epoch_us(at: datetime) -> int:
    """Return microseconds since 1970. A timestamp without a time zone is UTC."""
    # Five times as fast as a division of timedeltas; this is called for every row.
    since = (at if at.tzinfo else at.replace(tzinfo=UTC)) - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def from_epoch_ms(at_ms: int) -> datetime:
    """Return the timestamp for milliseconds since 1970, limited to the range that every destination can store."""
    return EPOCH + timedelta(milliseconds=min(max(at_ms, BEGINNING_MS), LAST_MS))


def format_ms(at_ms: int) -> str:
    """Format milliseconds since 1970 as the API writes timestamps: `2026-11-23T09:30:00.000Z`."""
    return f"{(EPOCH + timedelta(milliseconds=at_ms)).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


def is_recent(at_ms: int | None, now_ms: int, within_ms: int) -> bool:
    """Return whether a stored time is less than `within_ms` ago.

    A time further than that in the future is of a clock that has been set back since, and not recent.
    """
    return at_ms is not None and abs(now_ms - at_ms) < within_ms


def check_time(at: datetime) -> datetime | None:
    """Return a time as it is; null for a zero time. Raises `ValueError` if no destination can store it."""
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
    """Read a timestamp in any unambiguous spelling; null for a zero time.

    Understands RFC 3339, ISO 8601 (UTC by default), HTTP dates, and numbers of seconds to nanoseconds since 1970.
    Raises `msgspec.DecodeError` for anything else, and for a time that no destination can store.
    """
    try:
        return check_time(msgspec.json.decode(value, type=datetime))
    except msgspec.ValidationError:
        written = msgspec.json.decode(value, type=str | int | float | None)
    except ValueError:
        raise msgspec.DecodeError("out of range") from None
    try:
        at = _parse(written)
        return None if at is None else check_time(at)
    except (ValueError, OverflowError, TypeError):
        raise msgspec.DecodeError("not a timestamp") from None


def parse_time(value: Any) -> datetime | None:
    """Parse a timestamp as `read_time` does, in UTC; null for anything else, and for times up to 1970-01-01."""
    try:
        parsed = _parse(value)
        at = None if parsed is None else check_time(parsed)
    except (ValueError, OverflowError, TypeError):
        return None
    return at.astimezone(UTC) if at is not None and at > EPOCH else None


def _parse(written: str | int | float | None) -> datetime | None:
    text = "" if written is None else str(written).strip()
    if not text or _NO_DATE.fullmatch(text):
        return None
    if _NUMBER.fullmatch(text) and not (isinstance(written, str) and len(text) == 8):
        return _from_number(float(text) if "." in text else int(text))
    text = re.sub(r"\s*(?:UTC|GMT)$", "Z", text) if text[:1].isdigit() else text
    seconds = timedelta(seconds=1) if _LEAP_SECOND.search(text) else timedelta(0)
    text = _LEAP_SECOND.sub("59", text)
    try:
        return datetime.fromisoformat(text.upper()) + seconds
    except ValueError:
        return parsedate_to_datetime(text) + seconds


def _from_number(number: float) -> datetime | None:
    if number in _ZERO_SECONDS:
        return None
    for least, end, per_second in _UNITS:
        if least <= number < end:
            return EPOCH + timedelta(microseconds=number * 1_000_000 // per_second)
    raise ValueError("neither seconds, milliseconds, microseconds nor nanoseconds since 1970")
