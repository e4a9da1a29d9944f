"""Numbers and spans of time in messages."""

from __future__ import annotations

import math


def format_count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 file`, `2 files`, `2 deliveries`, `2 people`."""
    if noun == "person" and number != 1:
        return f"{number:,} people"
    plural = f"{noun.removesuffix('y')}ies" if noun.endswith("ry") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def format_span(seconds: float) -> str:
    """Return a span of time in the unit that suits it: `50 seconds`, `90 minutes`, `36 hours`, `3 days`."""
    if seconds < 60:
        return format_count(round(max(seconds, 0.0)), "second")
    if seconds < 2 * 3600:
        return format_count(round(seconds / 60), "minute")
    return (
        format_count(round(seconds / 3600), "hour")
        if seconds <= 48 * 3600
        else format_count(round(seconds / 86_400), "day")
    )


def estimate_minutes(requests: int, per_minute: int) -> int:
    """Return how many minutes requests wait for a rate limit (0: none); those of the first minute are sent at once."""
    return max(math.ceil(requests / per_minute) - 1, 0) if per_minute else 0
