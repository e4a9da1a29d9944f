"""Numbers in messages."""

from __future__ import annotations

import math


def format_count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 file`, `2 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def estimate_minutes(requests: int, per_minute: int) -> int:
    """Return how many minutes requests wait for a rate limit (0: none); those of the first minute are sent at once."""
    return max(math.ceil(requests / per_minute) - 1, 0) if per_minute else 0
