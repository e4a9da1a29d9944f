"""Declare `[transforms.business_hours]` and `[transforms.sla]`, and convert them to variables of the dbt project."""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Iterable, Iterator
from datetime import date
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from msgbubbles.handles import fold_handle

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 24 * 60
HOURS = re.compile(rf"({'|'.join(WEEKDAYS)})(?:-({'|'.join(WEEKDAYS)}))? (\d\d):([0-5]\d)-(\d\d):([0-5]\d)")


class Opening(NamedTuple):
    """A time of the week that counts, within a day: `weekday` is 1 (Monday) to 7, minutes are since midnight."""

    weekday: int
    opens_minute: int
    closes_minute: int


def parse_hours(texts: Iterable[str]) -> list[Opening]:
    """Parse texts like `mon-fri 09:00-17:30`; hours over midnight become two openings. Raises `ValueError`."""
    return sorted({opening for text in texts for opening in _parse_days(text)})


def _parse_days(text: str) -> Iterator[Opening]:
    match = HOURS.fullmatch(text)
    if match is None:
        raise ValueError
    first = WEEKDAYS.index(match[1])
    last = WEEKDAYS.index(match[2] or match[1])
    opens, closes = int(match[3]) * 60 + int(match[4]), int(match[5]) * 60 + int(match[6])
    if opens == closes or opens >= DAY_MINUTES or closes > DAY_MINUTES:
        raise ValueError
    for day in range(first, first + (last - first) % 7 + 1):
        weekday, next_weekday = day % 7 + 1, (day + 1) % 7 + 1
        if opens < closes:
            yield Opening(weekday, opens, closes)
        else:
            yield Opening(weekday, opens, DAY_MINUTES)
            if closes:
                yield Opening(next_weekday, 0, closes)


def is_time_zone(name: str) -> bool:
    """Return whether this machine's time zone database has a zone of this name."""
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def is_hours(texts: tuple[str, ...]) -> bool:
    """Return whether these are business hours, at least one."""
    try:
        return bool(parse_hours(texts))
    except ValueError:
        return False


TimeZone = Annotated[str, Meta(description='a name like "Europe/Berlin" or "UTC"', extra={"check": is_time_zone})]
Hours = Annotated[
    tuple[str, ...],
    Meta(description='a list like ["mon-fri 09:00-17:30", "sat 10:00-14:00"]', extra={"check": is_hours}),
]
Holidays = Annotated[tuple[date, ...], Meta(description='a list of days like ["2026-12-25"]')]


class NumberHours(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The hours of one of our numbers. What is not set is as in `[transforms.business_hours]`."""

    handle: str
    hours: tuple[str, ...] | None = None
    holidays: tuple[date, ...] | None = None
    time_zone: str | None = None


def are_numbers(numbers: tuple[NumberHours, ...]) -> bool:
    """Return whether the hours and time zones of numbers are valid, and no number is there twice."""
    return len({fold_handle(number.handle) for number in numbers}) == len(numbers) and all(
        (number.hours is None or is_hours(number.hours))
        and (number.time_zone is None or is_time_zone(number.time_zone))
        for number in numbers
    )


class BusinessHours(msgspec.Struct, frozen=True, kw_only=True):
    """`[transforms.business_hours]`: the hours that count for response times, by default all."""

    hours: Hours = ("mon-sun 00:00-24:00",)
    holidays: Holidays = ()
    time_zone: TimeZone | None = None
    numbers: Annotated[
        tuple[NumberHours, ...],
        Meta(
            description='a list of tables like { handle = "+14155550100", hours = ["mon-fri 09:00-17:30"] }; holidays '
            "and time_zone are its other keys, and each number has one table",
            extra={"check": are_numbers},
        ),
    ] = ()


class Schedule(NamedTuple):
    """When hours count, for one number or, if `handle` is null, for all others. Handles are folded."""

    handle: str | None
    time_zone: str
    openings: list[Opening]
    holidays: tuple[date, ...]

    def to_variable(self) -> dict[str, object]:
        """Return what dbt needs: `changes` are the weekdays and minutes at which hours start or stop to count."""
        return {
            "handle": self.handle,
            "time_zone": self.time_zone,
            "changes": [change for weekday in range(1, 8) for change in self._list_changes(weekday)],
            "holidays": sorted({day.isoformat() for day in self.holidays}),
        }

    def _list_changes(self, weekday: int) -> Iterator[list[Any]]:
        """Yield weekday, minute and whether hours count from there; midnight is always among the minutes."""
        openings = [opening for opening in self.openings if opening.weekday == weekday]
        minutes = {0} | {minute for opening in openings for minute in opening[1:]}
        for minute in sorted(minutes - {DAY_MINUTES}):
            is_open = any(opening.opens_minute <= minute < opening.closes_minute for opening in openings)
            yield [weekday, minute, is_open]


def list_schedules(hours: BusinessHours, time_zone: str) -> list[Schedule]:
    """Return the schedule of all numbers, then those of single numbers. `time_zone` is that of the marts."""
    own_zone = hours.time_zone or time_zone
    return [
        Schedule(None, own_zone, parse_hours(hours.hours), hours.holidays),
        *(
            Schedule(
                fold_handle(number.handle),
                number.time_zone or own_zone,
                parse_hours(number.hours or hours.hours),
                hours.holidays if number.holidays is None else number.holidays,
            )
            for number in hours.numbers
        ),
    ]


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How soon we should answer; without numbers or channels, on all of them."""

    metric: Literal["first_response", "next_response"]
    minutes: Annotated[float, Meta(gt=0, le=30 * DAY_MINUTES)]
    clock: Literal["business", "wall"] = "business"
    numbers: tuple[str, ...] = ()
    channels: tuple[Literal["imessage", "sms", "whatsapp"], ...] = ()

    def to_variable(self) -> dict[str, object]:
        """Return what dbt needs, with folded handles."""
        return {
            "metric": self.metric,
            "seconds": round(self.minutes * 60),
            "clock": self.clock,
            "handles": [fold_handle(number) for number in self.numbers],
            "channels": list(self.channels),
        }


class ServiceLevels(msgspec.Struct, frozen=True, kw_only=True):
    """`[transforms.sla]`: targets, of which the first that matches applies."""

    targets: Annotated[
        tuple[Target, ...],
        Meta(
            description='a list of tables like { metric = "first_response", minutes = 60 }; metric is "first_response" '
            'or "next_response", minutes are more than 0 and at most 43,200; clock ("business" or "wall"), numbers and '
            "channels are its other keys"
        ),
    ] = ()
