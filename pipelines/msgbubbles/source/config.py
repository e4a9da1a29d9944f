"""Convert the settings of the source to the units that reading needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from msgbubbles.settings import DEFAULTS, RefreshRule, SourceSettings
from msgbubbles.times import BEGINNING_MS, to_epoch_ms


@dataclass(frozen=True)
class SourceConfig:
    """What to read, and how fast.

    Attributes:
        start_ms: Rows before this time are not read.
        lookback_ms: How long after its own timestamp a row may become visible.
        rules: What each stream reads again, and how often.
        refresh_per_minute: Requests that a stream may spend on reading again, per minute since the last run; null for
            no limit.
        participants: Whether to ask for the participants of groups.
        requests_per_minute: The rate limit; 0 for none.
        min_workers, max_workers: How many requests may be in flight at once.
    """

    start_ms: int = BEGINNING_MS
    lookback_ms: int = round(DEFAULTS.lookback_seconds * 1000)
    rules: Mapping[str, Sequence[RefreshRule]] = field(default_factory=dict)
    refresh_per_minute: float | None = None
    participants: bool = DEFAULTS.read_participants
    requests_per_minute: int = 0
    min_workers: int = 1
    max_workers: int = DEFAULTS.parallel_requests

    @classmethod
    def from_settings(cls, source: SourceSettings) -> SourceConfig:
        per_minute = source.requests_per_minute
        return cls(
            _parse_start(source.start_date),
            round(source.lookback_seconds * 1000),
            {"chats": source.refresh_chats, "messages": source.refresh_messages},
            # Half for each of the two streams.
            per_minute * source.refresh_share / 2 if per_minute else None,
            source.read_participants,
            per_minute,
            max_workers=source.parallel_requests,
        )


def _parse_start(start_date: str | None) -> int:
    if start_date is None:
        return BEGINNING_MS
    at = datetime.fromisoformat(start_date)
    return to_epoch_ms(at if at.tzinfo else at.replace(tzinfo=UTC))
