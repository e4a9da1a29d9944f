"""What the source is told by its configuration, checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from msgbubbles.errors import ConfigurationError

from .coverage import HOUR_MS, Tier
from .fetch import MOST_WALKS
from .paginate import BEGINNING_MS, epoch_ms

# Renames move no cursor, at any age. Statuses, receipts and edits come within days.
REFRESH_CHATS = ({"every_hours": 24},)
REFRESH_MESSAGES = ({"within_hours": 72, "every_hours": 1},)


@dataclass(frozen=True)
class Settings:
    """`start_ms`: nothing older is read. `lookback_ms`: how late a row may become visible after its own instant.
    `tiers`: by stream, what is read again and how often. `refresh_per_minute`: requests that each stream may spend on
    reading again, for each minute since the run before; null for any number. `participants`: whether groups are asked
    for their participants. `requests_per_minute`: the limit, 0 for none. `least_walks`, `most_walks`: how many requests
    may be under way at once, at least where there is enough to read, and at most."""

    start_ms: int = BEGINNING_MS
    lookback_ms: int = 300_000
    tiers: Mapping[str, Sequence[Tier]] = field(default_factory=dict)
    refresh_per_minute: float | None = None
    participants: bool = False
    requests_per_minute: int = 0
    least_walks: int = 1
    most_walks: int = MOST_WALKS


def settings_of(
    start_date: str | None,
    lookback_seconds: float,
    refresh_chats: Any,
    refresh_messages: Any,
    refresh_share: float,
    requests_per_minute: int,
    read_participants: bool = False,
    parallel_requests: int = MOST_WALKS,
) -> Settings:
    """Raises `ConfigurationError`, which names the key and what it should be."""
    if not 0 < refresh_share <= 1:
        raise ConfigurationError("refresh_share is a part of the requests, more than 0 and 1 at most; expected 0.25")
    if lookback_seconds < 0:
        raise ConfigurationError("lookback_seconds is a duration in seconds, 0 at least; expected one like 300.0")
    if parallel_requests < 1:
        raise ConfigurationError(
            f"parallel_requests is how many requests may be under way at once, 1 at least; expected {MOST_WALKS}"
        )
    tiers = {
        "chats": tiers_of("refresh_chats", refresh_chats),
        "messages": tiers_of("refresh_messages", refresh_messages),
    }
    return Settings(
        start_of(start_date),
        round(lookback_seconds * 1000),
        tiers,
        # Each of the two streams has its half.
        requests_per_minute * refresh_share / 2 if requests_per_minute else None,
        read_participants,
        requests_per_minute,
        most_walks=parallel_requests,
    )


def tiers_of(key: str, tables: Any) -> tuple[Tier, ...]:
    """Tiers from a list of tables, or from the same as JSON, which is how an environment variable has it."""
    try:
        tables = json.loads(tables) if isinstance(tables, str) else list(tables)
        return tuple(_tier(**table) for table in tables)
    except (TypeError, ValueError):
        raise ConfigurationError(
            f"{key} is a list of tables like {{ within_hours = 72, every_hours = 1 }}, without within_hours for rows "
            "of any age; every_hours is more than 0"
        ) from None


def _tier(every_hours: float, within_hours: float | None = None) -> Tier:
    if every_hours <= 0 or (within_hours is not None and within_hours <= 0):
        raise ValueError
    return Tier(round(every_hours * HOUR_MS), None if within_hours is None else round(within_hours * HOUR_MS))


def start_of(start_date: str | None) -> int:
    """The first instant to read, in milliseconds; `start_date` is an ISO 8601 date or time, UTC unless it says, or null
    for everything.

    Raises `ConfigurationError`.
    """
    if start_date is None:
        return BEGINNING_MS
    try:
        at = datetime.fromisoformat(start_date)
    except ValueError:
        raise ConfigurationError('start_date is not a date; expected one like "2026-01-31"') from None
    return epoch_ms(at if at.tzinfo else at.replace(tzinfo=UTC))


def check_number(key: str, value: Any, *, at_least: float, expected: float) -> None:
    """Raise `ConfigurationError` where a setting is not a finite number of `at_least`; 1 for "1 or more", and so on."""
    try:
        is_good = at_least <= float(value) < math.inf
    except (TypeError, ValueError):
        is_good = False
    if not is_good:
        raise ConfigurationError(
            f"{key} must be a number of at least {at_least:g}, not {value!r}; set it to {expected:g}, for example"
        )
