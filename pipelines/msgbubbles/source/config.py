"""The settings of the source in the units that reading needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from msgbubbles.settings import DEFAULTS, RefreshRule, SourceSettings
from msgbubbles.times import BEGINNING_MS, HOUR_MS, to_epoch_ms

from .coverage import Tier


@dataclass(frozen=True)
class Settings:
    """`start_ms`: nothing older is read. `lookback_ms`: how late a row may become visible after its own timestamp.
    `tiers`: by stream, what is read again and how often. `refresh_per_minute`: requests that each stream may spend on
    reading again, for each minute since the run before; null for any number. `participants`: whether groups are asked
    for their participants. `requests_per_minute`: the limit, 0 for none. `least_walks`, `most_walks`: how many requests
    may be under way at once, at least where there is enough to read, and at most.
    """

    start_ms: int = BEGINNING_MS
    lookback_ms: int = round(DEFAULTS.lookback_seconds * 1000)
    tiers: Mapping[str, Sequence[Tier]] = field(default_factory=dict)
    refresh_per_minute: float | None = None
    participants: bool = DEFAULTS.read_participants
    requests_per_minute: int = 0
    least_walks: int = 1
    most_walks: int = DEFAULTS.parallel_requests

    @classmethod
    def from_source(cls, source: SourceSettings) -> Settings:
        """Convert checked settings."""
        per_minute = source.requests_per_minute
        return cls(
            _start_ms(source.start_date),
            round(source.lookback_seconds * 1000),
            {"chats": _tiers(source.refresh_chats), "messages": _tiers(source.refresh_messages)},
            # Each of the two streams has its half.
            per_minute * source.refresh_share / 2 if per_minute else None,
            source.read_participants,
            per_minute,
            most_walks=source.parallel_requests,
        )


def _tiers(rules: Sequence[RefreshRule]) -> tuple[Tier, ...]:
    return tuple(
        Tier(
            round(rule.every_hours * HOUR_MS), None if rule.within_hours is None else round(rule.within_hours * HOUR_MS)
        )
        for rule in rules
    )


def _start_ms(start_date: str | None) -> int:
    """Return the first timestamp to read; a date without a time zone is UTC."""
    if start_date is None:
        return BEGINNING_MS
    at = datetime.fromisoformat(start_date)
    return to_epoch_ms(at if at.tzinfo else at.replace(tzinfo=UTC))
